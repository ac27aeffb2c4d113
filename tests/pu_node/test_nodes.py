"""The nodes by plain calls: what a user does, and what must happen. ComfyUI's modules and the trainer only pretend."""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from comfy_stub import IO, Interrupted, Schema, comfy

from pu_node import launch, widgets

__all__ = ["comfy"]
DEMO = widgets.DEMO
SD = "sd.safetensors"


def loras(comfy):
    return comfy.listed("loras")


def trainings(comfy):
    return [options for words, options in comfy.calls() if not words]


def dataset(comfy, *contents):
    comfy.folder("unlabeled", *contents)
    comfy.folder("sensitive")
    comfy.checkpoint()
    return comfy.run("PUDataset", unlabeled="unlabeled", sensitive="sensitive").args[0]


def train(comfy, prompt="a photo", **values):
    """PU Unlearn on the dataset of the folders as they are now. Returns: its output."""
    images = comfy.run("PUDataset", unlabeled="unlabeled", sensitive="sensitive", prompt=prompt).args[0]
    return comfy.run("PUUnlearn", **{"checkpoint": SD, "dataset": images, "steps": 3, "name": "mine", **values})


def demo(comfy, **values):
    return comfy.run("PUUnlearn", **{"checkpoint": DEMO, "steps": 3, "name": "demo", **values})


# a LoRA of the user's own


def test_a_users_own_lora_is_kept(comfy):
    """In output/loras, where ours goes, and in models/loras, which LoraLoader would read instead of ours."""
    dataset(comfy)
    own = comfy.root / "output" / "loras" / "mine.safetensors"
    own.parent.mkdir()
    own.write_text("mine")
    (comfy.root / "models" / "loras" / "mine-2.safetensors").write_text("mine, too")
    done = train(comfy)
    assert own.read_text() == "mine"
    assert Path(done.args[1]) == own.with_name("mine-3.safetensors")
    assert [options["name"] for options in trainings(comfy)] == ["mine-3"]
    assert "there is a mine already, which was kept; this LoRA is mine-3" in done.args[4]


def test_a_file_that_comes_while_it_trains_is_kept(comfy):
    dataset(comfy)
    own = comfy.root / "output" / "loras" / "mine.safetensors"
    own.parent.mkdir()
    comfy.check = lambda: own.write_text("mine") if trainings(comfy) else None
    import comfy.model_management as management

    management.throw_exception_if_processing_interrupted = comfy.check
    done = train(comfy)
    assert own.read_text() == "mine"
    assert Path(done.args[1]).name == "mine-2.safetensors"


def test_a_lora_that_the_user_replaced_is_not_taken_for_ours(comfy):
    dataset(comfy)
    first = Path(train(comfy).args[1])
    first.write_text("the user's")
    assert Path(train(comfy).args[1]).name == "mine-2.safetensors"
    assert first.read_text() == "the user's"


# when it is trained anew


def test_an_unchanged_folder_is_trained_once(comfy):
    dataset(comfy, "a", "b")
    made = train(comfy).args[1]
    for path in (comfy.root / "input" / "unlabeled").iterdir():
        os.utime(path, (1, 1))  # touched, copied, unpacked anew: the same images
    again = train(comfy)
    assert again.args[1] == made
    assert len(trainings(comfy)) == 1
    assert "Nothing has changed since this was trained" in again.args[4]


@pytest.mark.parametrize("change", ["replaced", "added", "removed", "captioned", "renamed"])
def test_a_changed_folder_is_trained_anew(comfy, change):
    dataset(comfy, "a", "b")
    train(comfy)
    folder = comfy.root / "input" / "unlabeled"
    if change == "replaced":
        (folder / "0.png").write_text("x")  # of the same size
        os.utime(folder / "0.png", (1, 1))
    elif change == "added":
        (folder / "2.png").write_text("c")
    elif change == "removed":
        (folder / "1.png").unlink()
    elif change == "captioned":
        (folder / "0.txt").write_text("a caption")
    else:
        (folder / "0.png").rename(folder / "9.png")
    train(comfy)
    assert len(trainings(comfy)) == 2


def test_comfyui_notices_a_changed_folder(comfy):
    folder = comfy.folder("unlabeled", "a", "b")
    comfy.folder("sensitive")
    node, values = comfy.node("PUDataset"), {"unlabeled": "unlabeled", "sensitive": "sensitive"}
    before = node.fingerprint_inputs(**values, prompt="x")
    assert node.fingerprint_inputs(**values) == before
    assert comfy.run("PUDataset", **values).args[2] == "2 unlabeled images"
    (folder / "new.png").write_text("c")
    assert node.fingerprint_inputs(**values) != before
    assert comfy.run("PUDataset", **values).args[2] == "3 unlabeled images"


def test_comfyui_notices_a_replaced_checkpoint_lora_and_labeled_folder(comfy):
    comfy.checkpoint()
    labeled = comfy.folder("labeled")
    lora = comfy.root / "models" / "loras" / "l.safetensors"
    lora.write_text("l")
    values = {"checkpoint": SD, "retrain": False, "folder": "made", "lora_name": "l.safetensors", "labeled": "labeled"}
    nodes = ("PUUnlearn", "PUPlan", "PUAudit", "PUMakeData", "PUEvaluate")

    def prints():
        return {name: comfy.node(name).fingerprint_inputs(**values) for name in nodes}

    before = prints()
    assert prints() == before
    comfy.checkpoint(content="other weights")
    changed = prints()
    assert all(changed[name] != before[name] for name in nodes)
    lora.write_text("other")
    with_lora = prints()
    assert [name for name in nodes if with_lora[name] != changed[name]] == ["PUEvaluate"]
    (labeled / "more.png").write_text("more")
    assert prints()["PUEvaluate"] != with_lora["PUEvaluate"]
    comfy.folder("made")
    assert prints()["PUMakeData"] != changed["PUMakeData"]


def test_retrain_trains_with_every_run(comfy):
    node = comfy.node("PUUnlearn")
    prints = [node.fingerprint_inputs(checkpoint=DEMO, retrain=True)]
    assert prints[0] != node.fingerprint_inputs(checkpoint=DEMO, retrain=True)
    assert node.fingerprint_inputs(checkpoint=DEMO, retrain=False) == node.fingerprint_inputs(
        checkpoint=DEMO, retrain=False
    )
    for _ in range(2):
        demo(comfy, retrain=True)
    assert [options["name"] for options in trainings(comfy)] == ["demo", "demo-2"]


# what is chosen


def test_the_demo_does_not_ignore_a_dataset(comfy):
    images = dataset(comfy)
    for name in ("PUUnlearn", "PUPlan", "PUAudit"):
        with pytest.raises(ValueError, match=r"^checkpoint: \[built-in digits demo\] learns from its own digits"):
            comfy.run(name, checkpoint=DEMO, dataset=images)
    with pytest.raises(ValueError, match=r"^dataset: connect a PU Dataset"):
        comfy.run("PUUnlearn", checkpoint=SD)
    assert not trainings(comfy)


def test_a_request_cannot_name_other_folders_and_options(comfy):
    """Anything may stand in place of a link."""
    images = dataset(comfy)
    for wrong in ({"unlabeled": "/etc"}, {"sensitive": str(comfy.root)}, {"config": "/x.toml"}, {"base": "/x"}):
        for name in ("PUUnlearn", "PUPlan", "PUAudit"):
            with pytest.raises(ValueError, match=r"^dataset: its folders must lie below"):
                comfy.run(name, checkpoint=SD, dataset={**images, **wrong})
    with pytest.raises(ValueError, match=r"^options: logging_dir is no setting"):
        demo(comfy, options={"logging_dir": "/x"})


@pytest.mark.parametrize(
    ("folders", "unlabeled", "sensitive"),
    [
        (["cats", "dogs"], "cats", "dogs"),
        (["a-sensitive", "b", "c"], "b", "a-sensitive"),
        (["only"], "only", "only"),
        ([], "[no subfolder in ComfyUI/input]", "[no subfolder in ComfyUI/input]"),
    ],
)
def test_a_fresh_dataset_has_two_folders(comfy, folders, unlabeled, sensitive):
    for name in folders:
        comfy.folder(name)
    chosen = {p.id: p.more["default"] for p in comfy.schema("PUDataset").inputs[:2]}
    assert chosen == {"unlabeled": unlabeled, "sensitive": sensitive}


def test_equal_folders_are_refused(comfy):
    comfy.folder("one")
    node = comfy.node("PUDataset")
    said = "unlabeled and sensitive: both are 'one'; choose two folders"
    assert node.validate_inputs(unlabeled="one", sensitive="one") == said
    with pytest.raises(ValueError, match=said):
        comfy.run("PUDataset", unlabeled="one", sensitive="one")


def test_linked_values_are_checked_when_they_are_there(comfy):
    """Before, ComfyUI gives None for them."""
    comfy.folder("one")
    assert comfy.node("PUDataset").validate_inputs(unlabeled=None, sensitive="one") is True
    assert comfy.node("PUDataset").fingerprint_inputs(unlabeled=None, sensitive="one") > 0
    for name in ("PUUnlearn", "PUPlan", "PUAudit", "PUEvaluate", "PUMakeData"):
        assert comfy.node(name).validate_inputs(checkpoint=None) is True
    assert comfy.node("PUCompareRuns").validate_inputs(runs=None) is True
    assert comfy.node("PUApplyLoRA").validate_inputs(lora_name=None) is True
    comfy.node("PUEvaluate").fingerprint_inputs(checkpoint=None, lora_name=None, labeled=None)
    comfy.node("PUMakeData").fingerprint_inputs(checkpoint=None, folder=None)
    comfy.node("PUUnlearn").fingerprint_inputs(checkpoint=None, retrain=None)
    with pytest.raises(ValueError, match=r"^sensitive: '../etc' is no subfolder"):
        comfy.run("PUDataset", unlabeled="one", sensitive="../etc")
    with pytest.raises(ValueError, match=r"^name: '../x' must be a plain name"):
        demo(comfy, name="../x")
    with pytest.raises(ValueError, match=r"^folder: '../x' must be a plain name"):
        comfy.run("PUMakeData", checkpoint=DEMO, folder="../x")
    with pytest.raises(ValueError, match=r"^runs: '../x' must be a plain name"):
        comfy.run("PUCompareRuns", runs="../x")
    with pytest.raises(ValueError, match=r"^preset: 'huge' must be one of"):
        demo(comfy, preset="huge")


def test_one_checkpoint_is_chosen_once(comfy):
    """A linked one counts, whatever the widget says; and a refusal names the only input that is wrong."""
    images = dataset(comfy)
    chosen, model, clip, vae = comfy.run("PUCheckpoint", checkpoint=SD).args
    assert (model, clip, vae) == (f"model of {SD}", "clip", "vae")
    assert DEMO not in comfy.schema("PUCheckpoint").inputs[0].more["options"]
    train(comfy, checkpoint="gone.safetensors", checkpoint_link=chosen)
    comfy.run("PUPlan", checkpoint="gone.safetensors", checkpoint_link=chosen, dataset=images)
    base = str(comfy.root / "models" / "checkpoints" / SD)
    assert [options["base"] for words, options in comfy.calls() if words in ([], ["plan"])] == [base, base]
    for name in ("PUUnlearn", "PUPlan", "PUAudit", "PUEvaluate", "PUMakeData", "PUCheckpoint"):
        node = comfy.node(name)
        said = node.validate_inputs(checkpoint="gone.safetensors")
        assert said.startswith("checkpoint: 'gone.safetensors' is not in the list"), name
        if name != "PUCheckpoint":
            assert node.validate_inputs(checkpoint="gone.safetensors", checkpoint_link=None) is True
        taken = set(node.validate_inputs.__func__.__code__.co_varnames[: node.validate_inputs.__code__.co_argcount])
        assert taken <= {"cls", "checkpoint", "checkpoint_link"}, name


def test_the_plan_comes_before_the_training(comfy):
    (plan,) = (p for p in comfy.schema("PUUnlearn").inputs if p.id == "plan")
    assert plan.more["optional"]
    assert plan.more["force_input"]
    demo(comfy, plan=comfy.run("PUPlan", checkpoint=DEMO).args[0])
    assert [words for words, _ in comfy.calls()] == [["plan"], []]


# what is shown


def test_phases_prior_warnings_and_time_left_are_shown(comfy):
    dataset(comfy)
    done = train(comfy, prompt="slow noise", steps=60)
    texts = "\n".join(comfy.texts)
    for said in (
        "starting the trainer",
        "predicted peak: 3000 of 8000 MiB",
        "encoding images and captions",
        "estimating how many of the unlabeled images are sensitive",
        "prior 0.2 (0.1 to 0.3)",
        "training, step 60 of 60",
    ):
        assert said in texts, said
    assert re.search(r"training, step \d+ of 60, \d+ min \d+ s left", texts)
    assert "prior 0.2 (0.1 to 0.3)" in done.args[4]
    assert (3, 3) in comfy.bars  # of the images that are encoded
    assert (60, 60) in comfy.bars


def test_the_text_tells_what_the_bar_shows(comfy, monkeypatch):
    from pu_node import training_view

    monkeypatch.setattr(training_view, "SHOW_EVERY_S", 0.0)
    demo(comfy, steps=4)
    steps = [re.search(r"training, step (\d+) of 4", text) for text in comfy.texts]
    assert {int(step[1]) for step in steps if step} == {1, 2, 3, 4}
    assert comfy.bars[-1] == (4, 4)


def test_an_older_comfyui_shows_no_text_and_trains(comfy, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "comfy_execution.utils", None)
    assert demo(comfy).args[1].endswith("demo.safetensors")
    assert not comfy.texts


def test_a_failure_is_said_on_the_node(comfy):
    """In place of what was being done, and once: ComfyUI's own message names only the node until it is opened."""
    dataset(comfy)
    with pytest.raises(launch.TrainerError) as failed:
        train(comfy, prompt="wrong")
    assert str(failed.value) == "rank: 16 is not that of the LoRA\nName another LoRA: LoRA to continue"
    assert comfy.texts[-1].startswith(str(failed.value))
    assert "encoding" not in comfy.texts[-1]


def test_missing_packages_are_said_on_the_node(comfy, monkeypatch):
    def missing(*, is_checked=False):
        raise launch.TrainerError("The trainer's packages are not installed: …")

    dataset(comfy)
    monkeypatch.setattr(launch, "python", missing)
    with pytest.raises(launch.TrainerError):
        train(comfy)
    assert comfy.texts[-1] == "The trainer's packages are not installed: …"
    assert not trainings(comfy)


def test_no_message_speaks_of_the_command_line(comfy):
    dataset(comfy)
    done = train(comfy, prompt="noise")
    for text in ("\n".join(comfy.texts), done.args[4]):
        assert "skipped 2 images: skip bad images" in text
        assert "--" not in text
        assert "python -m" not in text


def test_the_lora_is_kept_once_where_loraloader_lists_it(comfy):
    dataset(comfy)
    done = train(comfy)
    path = Path(done.args[1])
    assert loras(comfy) == ["mine.safetensors"]
    assert [p for p in comfy.root.rglob("*.safetensors") if "models" not in p.parts] == [path]
    assert f"LoRA: mine.safetensors (in LoraLoader's list after R), {path}" in done.args[4]
    page = comfy.root / "output" / "pu_unlearn" / "mine" / "report.html"
    assert page.read_text() == f"<code>sample --lora {path}</code>"
    assert path.with_name("mine.preview.png").exists()


def test_the_demos_lora_is_listed_as_one(comfy):
    done = demo(comfy)
    assert loras(comfy) == ["pu_unlearn_demo/demo.safetensors"]
    from pu_node import comfy_host

    assert comfy_host.lora_file(done.args[1]) == Path(done.args[1])


def test_the_history_has_results(comfy):
    done = demo(comfy)
    folder = "pu_unlearn/demo"
    assert done.ui["images"] == [
        {"filename": "curve.png", "subfolder": folder, "type": "output"},
        {"filename": "before.png", "subfolder": f"{folder}/samples", "type": "output"},
        {"filename": "after.png", "subfolder": f"{folder}/samples", "type": "output"},
    ]
    assert done.ui["text"] == [done.args[4]]
    assert done.ui["lora"] == ["pu_unlearn_demo/demo.safetensors"]
    page = (comfy.root / "output" / folder / "report.html").as_uri()
    assert done.ui["report"] == [page]
    assert f"report: {page}" in done.args[4]
    json.dumps(done.ui)


# cancel


def cancel(comfy, **values):
    """Train until the bar has reached the training's steps, and press Cancel. Returns: how long that took, in s."""
    comfy.folder("unlabeled")
    comfy.folder("sensitive")
    comfy.checkpoint()
    from pu_node import training_view

    training_view.SHOW_EVERY_S, before = 0.0, training_view.SHOW_EVERY_S
    comfy.cancel_at = len(comfy.bars) + 15
    started = time.monotonic()
    try:
        with pytest.raises(Interrupted):
            train(comfy, prompt="slow", steps=150, **values)
    finally:
        training_view.SHOW_EVERY_S = before
    return time.monotonic() - started


def test_cancel_answers_at_once_and_the_next_run_goes_on(comfy):
    cancel(comfy)
    run = comfy.root / "output" / "pu_unlearn" / "mine"
    assert not list(run.glob("state/*")), "it answered before the child had saved"
    launch.wait_for_saving(lambda: None)
    (state,) = run.glob("state/step*.safetensors")
    step = int(state.stem.removeprefix("step"))
    assert step > 0
    done = train(comfy, prompt="slow", steps=150)
    assert trainings(comfy)[1].keys() == {"resume", "name", "output-dir", "events", "follow-parent"}
    assert f"continued from step {step}, where it was stopped" in done.args[4]
    assert f"continued from step {step}" in "\n".join(comfy.texts)
    assert loras(comfy) == ["mine.safetensors"]


def test_the_next_run_waits_until_the_cancelled_one_is_saved(comfy):
    cancel(comfy)
    train(comfy, prompt="slow", steps=150)
    assert "resume" in trainings(comfy)[1]


def stop_while_it_encodes(comfy):
    """Train, and press Cancel before the first step. Returns: the run's folder."""
    dataset(comfy)
    root = comfy.root / "output" / "pu_unlearn"
    root.mkdir()
    (root / "stuck").touch()
    comfy.cancel_at = len(comfy.bars) + 3
    with pytest.raises(Interrupted):
        train(comfy, prompt="stuck")
    launch.wait_for_saving(lambda: None)
    (root / "stuck").unlink()
    assert not list(root.glob("mine/state/*"))
    return root / "mine"


def test_a_run_that_was_stopped_before_its_first_state_goes_on(comfy, monkeypatch):
    from pu_node import training_view

    monkeypatch.setattr(training_view, "SHOW_EVERY_S", 0.0)
    cached = stop_while_it_encodes(comfy) / "cache" / "latents"
    cached.parent.mkdir()
    cached.touch()
    done = train(comfy, prompt="stuck")
    assert trainings(comfy)[1].keys() == {"resume", "name", "output-dir", "events", "follow-parent"}
    said = "continued where it was stopped, before anything was trained"
    assert said in done.args[4]
    assert said in "\n".join(comfy.texts)
    assert cached.exists()
    assert loras(comfy) == ["mine.safetensors"]


def test_a_run_that_cannot_go_on_begins_anew_under_its_name(comfy, monkeypatch):
    from pu_node import training_view

    monkeypatch.setattr(training_view, "SHOW_EVERY_S", 0.0)
    run = stop_while_it_encodes(comfy)
    (run / "config.json").write_text("damaged")
    done = train(comfy, prompt="stuck")
    assert ["resume" in options for options in trainings(comfy)] == [False, True, False]
    assert "it could not be continued, and began anew" in done.args[4]
    assert loras(comfy) == ["mine.safetensors"]


def test_other_settings_and_retrain_do_not_go_on(comfy):
    cancel(comfy)
    train(comfy, rank=8)
    train(comfy, prompt="slow", steps=150, retrain=True)
    assert all("resume" not in options for options in trainings(comfy))


# PU Make Data


def make(comfy, **values):
    return comfy.run("PUMakeData", **{"checkpoint": DEMO, "n_unlabeled": 2, **values})


def folder_of(done):
    return Path(done.args[0]["unlabeled"]).parent.name


def test_made_data_stay_where_they_are(comfy):
    assert [folder_of(make(comfy)) for _ in range(2)] == ["pu-data", "pu-data"]
    assert folder_of(make(comfy, seed=1)) == "pu-data-2"
    assert folder_of(make(comfy)) == "pu-data"
    assert folder_of(make(comfy, n_unlabeled=3)) == "pu-data"  # more of them are added
    fewer = make(comfy)
    assert folder_of(fewer) == "pu-data-3"
    assert fewer.args[2].startswith("The images are in ComfyUI/input/pu-data-3\n")


def test_a_users_own_folder_is_not_filled(comfy):
    own = comfy.folder("pu-data", "mine")
    assert folder_of(make(comfy)) == "pu-data-2"
    assert [path.name for path in own.iterdir()] == ["0.png"]


def test_made_data_are_told_in_the_nodes_words(comfy):
    text = make(comfy).args[2]
    assert "train with" not in text
    assert "--" not in text
    page = comfy.root / "input" / "pu-data" / "report.html"
    assert f"all about them: {page.as_uri()}" in text


# PU Compare


def test_compare_loads_each_model_once(comfy):
    class Clip:
        tokenize = staticmethod(lambda text: text)
        encode_from_tokens_scheduled = staticmethod(lambda tokens: f"<{tokens}>")

    class Vae:
        @staticmethod
        def decode(latent):
            import torch

            comfy.sampled.append(("decode", *latent))
            return torch.zeros(1, 8, 8, 3)

    values = {"before": "B", "after": "A", "clip": Clip, "vae": Vae, "count": 2, "negative_prompt": "blurry"}
    values |= {"steps": 1, "sampler": "euler", "scheduler": "normal"}
    comfy.run("PUCompare", **values)
    assert [entry[0] for entry in comfy.sampled] == ["B", "B", "A", "A", *["decode"] * 4]
    assert {entry[2] for entry in comfy.sampled[:4]} == {"<blurry>"}
    assert comfy.schema("PUCompare").inputs[-1].id == "negative_prompt"  # widgets are saved by position


# widgets

ALL = ("PUCheckpoint", "PUDataset", "PUOptions", "PUUnlearn", "PUPlan", "PUAudit", "PUApplyLoRA", "PUCompare")
ALL += ("PUCompareRuns", "PUEvaluate", "PUMakeData", "PUCheckpointFromModel")


def test_widgets_mean_what_they_show(comfy):
    shown = {p.id: p for name in ("PUUnlearn", "PUOptions") for p in comfy.schema(name).inputs}
    assert shown["prior"].display_name == "prior (0: estimated from the images)"
    assert shown["min_snr_gamma"].display_name == "min-SNR gamma (0: off)"
    lr = shown["lr"].more
    assert (lr["step"], lr["round"], lr["default"]) == (1e-6, 1e-6, 1e-4)
    for part in comfy.schema("PUOptions").inputs:
        assert part.display_name or "_" not in part.id, part.id
    for name in ALL:
        for part in comfy.schema(name).inputs:
            assert part.more.get("tooltip"), (name, part.id)
            if part.id == "seed":
                assert part.more["control_after_generate"] == "fixed", name


@pytest.mark.skipif(shutil.which("node") is None, reason="no node.js")
def test_older_pages_keep_the_seed_of_a_fresh_node(tmp_path):
    """Where the page takes no word for it from the node: its extension, with a stand-in for the page."""
    here = tmp_path / "extensions" / "pu-unlearn"
    here.mkdir(parents=True)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "scripts" / "app.js").write_text("export const app = {registerExtension: (e) => (app.extension = e)};")
    shutil.copy(Path(widgets.__file__).parent / "web" / "fixed_seed.js", here)
    (here / "run.js").write_text("""
        import { app } from "../../scripts/app.js";
        import "./fixed_seed.js";
        const values = (comfyClass) => {
            const widgets = [{name: "seed", value: 1}, {name: "control_after_generate", value: "randomize"}];
            app.extension.nodeCreated({comfyClass, widgets});
            return widgets.map((widget) => widget.value);
        };
        app.extension.nodeCreated({comfyClass: "PUPlan"});
        console.log(JSON.stringify([values("PUUnlearn"), values("KSampler")]));
    """)
    done = subprocess.run(["node", here / "run.js"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[1, "fixed"], [1, "randomize"]]


def test_nodes_are_found_by_the_words_people_search(comfy, monkeypatch):
    for name in ALL:
        assert {"erase", "forget", "never", "remove concept", "unlearn"} <= set(comfy.schema(name).search_aliases)
    monkeypatch.setattr(IO, "Schema", Schema)  # ComfyUI 0.3
    assert not hasattr(comfy.schema("PUUnlearn"), "search_aliases")


def test_the_templates_have_every_widget_where_the_nodes_have_it(comfy):
    """As test_comfyui has it from a real ComfyUI: required inputs first, then optional ones."""
    from make_workflows import NODES

    for name in ALL:
        parts = comfy.schema(name).inputs
        order = [p for p in parts if not p.more.get("optional")] + [p for p in parts if p.more.get("optional")]
        typed = ("Int", "Float", "String", "Boolean", "Combo")
        is_widget = {p.id: p.kind in typed and not p.more.get("force_input") for p in parts}
        assert [p.id for p in order if is_widget[p.id]] == NODES[name][0], name
        assert [p.id for p in order if not is_widget[p.id]] == [link for link, _ in NODES[name][1]], name
