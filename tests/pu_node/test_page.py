"""The page without gradio: the form's values, folders, the training behind it, what it leaves; the `ui` command."""

import ast
import contextlib
import json
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from random_checkpoint import SMALL, write

from pu_node import form, launch, page_host, page_render, training_job
from pu_node.widgets import DEMO
from trainer import ui
from trainer.common.errors import UserError
from trainer.config import arguments
from trainer.config.train_config import TrainConfig
from trainer.data import captions, decoding
from trainer.models import lora_file

ROOT = Path(__file__).parents[2]


def values(**changes):
    return {"checkpoint": DEMO, "preset": "auto", "unlabeled": "", "sensitive": "", **form.defaults(DEMO), **changes}


def own(tmp_path, **changes):
    for name in ("u", "s"):
        (tmp_path / name).mkdir(exist_ok=True)
    return values(checkpoint="m", unlabeled="u", sensitive=str(tmp_path / "s"), **changes)


def test_the_demo_starts_with_its_own_settings():
    saved = arguments.tomllib.loads((ROOT / "trainer" / "builtin" / "config.toml").read_text())
    assert form.demo() == {name: value for name, value in saved.items() if name in form.fields()}
    settings, problems = form.read(values(), {}, [])
    assert not problems
    assert {"base", "unlabeled", "checkpoint", "preset"}.isdisjoint(settings)
    assert settings["steps"] == 600


def test_settings_are_what_the_trainer_takes(tmp_path):
    """Every field of the form comes through the trainer's own validation, as a child would be called."""
    from trainer.builtin import CONFIG

    model = tmp_path / "m.safetensors"
    model.touch()
    settings, problems = form.read(own(tmp_path, preset="low VRAM", flip=True), {"m": model}, [tmp_path])
    assert not problems
    assert settings["lowvram"] is True
    config = arguments.parse(launch.command([], settings)[2:], CONFIG).config
    assert (config.base, config.unlabeled, config.sensitive) == (str(model), tmp_path / "u", tmp_path / "s")
    assert config.flip
    assert config.vram_budget == 2.4
    assert set(form.fields()) <= set(TrainConfig.model_fields)


def test_what_is_wrong_is_said_by_field(tmp_path):
    bad = {"prior": 2, "steps": 1.5, "rank": None, "lr": "x", "temperature": float("nan"), "name": "../x", "crops": 65}
    bad |= {"objective": "best", "resolution": 100, "prompt": "two\nlines", "seed": 2**32, "min_snr_gamma": -1}
    _, problems = form.read(own(tmp_path, preset="huge", **bad), {}, [tmp_path])
    assert problems.pop("checkpoint") == "must be in the list; refresh it"
    assert problems.pop("preset").startswith("must be one of auto, low VRAM")
    assert problems.keys() == bad.keys()
    assert problems["prior"] == "must be less than 1"
    assert problems["steps"] == "must be a whole number"
    assert problems["rank"] == "must not be empty"
    assert problems["resolution"] == "must be a multiple of 8"
    assert problems["seed"] == f"must be less than {2**32}"
    assert problems["min_snr_gamma"] == "must be greater than 0"
    assert all(sentence.startswith("must ") for sentence in problems.values())


def test_values_never_become_options(tmp_path):
    settings, _ = form.read(values(prompt="--resume", sensitive_prompt="--base=/etc/passwd"), {}, [])
    assert "--prompt=--resume" in launch.command([], settings)
    assert "--sensitive-prompt=--base=/etc/passwd" in launch.command([], settings)


@pytest.mark.parametrize("text", ["in", "{root}/in", '"{root}/in"', "in/../in", " in "])
def test_folders_below_a_root_are_taken(tmp_path, text):
    (tmp_path / "in").mkdir()
    assert form.folder(text.format(root=tmp_path), [tmp_path / "other", tmp_path]) == tmp_path / "in"


OUTSIDE = ["/etc", "..", "../outside", "in/../../outside", "link", "{root}x", "file", "none", "a\0b"]


def test_a_root_may_be_named_by_a_way_round(tmp_path):
    (tmp_path / "in").mkdir()
    assert form.folder("in", [tmp_path / "in" / ".."]) == tmp_path / "in"


def test_what_the_trainer_refuses_is_said_by_field():
    said = "--sensitive-prompt: needs two samples\n--unlabeled: no folder x\nphotos: 1 image cannot be read\n--base: no"
    assert form.by_field(said) == {
        "sensitive_prompt": "needs two samples",
        "unlabeled": "no folder x",
        "general": "photos: 1 image cannot be read\n--base: no",
    }


@pytest.mark.parametrize("text", OUTSIDE)
def test_other_folders_are_refused_in_the_same_words(tmp_path, text):
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "in", outside, tmp_path / "rootx"):
        folder.mkdir(parents=True)
    (root / "file").touch()
    (root / "link").symlink_to(outside)
    with pytest.raises(ValueError, match=f"^no such folder below {root}, where images may lie"):
        form.folder(text.format(root=root), [root])


def test_a_folder_must_be_named(tmp_path):
    with pytest.raises(ValueError, match="name a folder"):
        form.folder(" ", [tmp_path])


@pytest.fixture
def host(tmp_path):
    """A host whose card is a lock, and whose LoRA list is another folder than that of the runs."""
    (tmp_path / "lists").mkdir()
    lock = threading.Lock()
    found = page_host.Host(dict, [tmp_path], tmp_path / "runs", lambda: tmp_path / "lists", lambda check: lock)
    yield found
    assert not lock.locked()


def child(*events, then=""):
    """Stands for the trainer: prints these events."""
    lines = "".join(f"print({json.dumps(event)!r}, flush=True)\n" for event in events)
    return [sys.executable, "-c", f"import sys, time\n{lines}{then}"]


def ended(work):
    seen = -1
    for _ in range(200):
        state, seen = work.state(seen, timeout_s=0.5)
        if state.ended:
            return state
    raise AssertionError(state)


STEP = {"event": "step", "step": 1, "of": 2, "risk_unlabeled": 2.0, "ratio": 1.5, "s_per_step": 3.0}
RUN = {"name": "x", "steps": 2, "objective": "pu", "prior": 0.2, "temperature": 3.0}


@pytest.mark.long
def test_a_training_leaves_the_lora_its_picture_and_its_notes(host, monkeypatch, tmp_path):
    runs, lists = tmp_path / "runs", tmp_path / "lists"
    (lists / "x.json").write_text("somebody's")
    called = {}

    def command(words, settings):
        called.update(settings)
        run = runs / settings["name"]
        run.mkdir(parents=True)
        run.with_name(f"{run.name}.safetensors").write_bytes(b"weights")
        (run / "report.html").write_text("page")
        Image.new("RGB", (900, 600)).save(run / "after.png")
        made = {"lora": f"{run}.safetensors", "report": f"{run}/report.html", "summary": "rate: 1\nLoRA: somewhere/x"}
        sample = {"event": "sample", "kind": "after", "path": f"{run}/after.png"}
        return child({"event": "phase", "name": "train"}, STEP, sample, {"event": "done", **made})

    monkeypatch.setattr(launch, "command", command)
    work = training_job.Job(host)
    work.start(RUN)
    state = ended(work)
    assert (state.ended, state.name, state.step, state.of) == ("done", "x-2", 1, 2), state
    assert (state.unlabeled, state.sensitive, state.seconds_left) == ([2.0], [3.0], 3.0)
    assert called["output_dir"] == str(runs)
    assert called["sample_every"] == 1
    assert (lists / "x-2.safetensors").read_bytes() == b"weights"
    with Image.open(lists / "x-2.preview.png") as preview:
        assert preview.size == (512, 341)
    notes = json.loads((lists / "x-2.json").read_text())
    assert (notes["sd version"], notes["preferred weight"]) == ("SD1", 1.0)
    assert "objective pu" in notes["description"]
    assert "rate: 1" in notes["description"]
    assert "somewhere" not in notes["description"]
    assert (lists / "x.json").read_text() == "somebody's"
    assert [path.name for path in state.files] == ["x-2.safetensors", "x-2-report.html"]
    assert state.files[0].read_bytes() == b"weights"
    assert "<lora:x-2:1>" in state.message


@pytest.mark.long
def test_an_own_checkpoint_and_two_folders_make_a_lora(host, digit_folders, tmp_path):
    """From what the form holds to the file in the webui's list, by the real trainer."""
    model = write(tmp_path / "own.safetensors", SMALL)
    images = digit_folders["unlabeled"].parent
    quick = {"steps": 2, "batch_unlabeled": 2, "batch_sensitive": 1, "resolution": 64, "prompt": "a digit", "rank": 2}
    chosen = {"checkpoint": "own", "preset": "auto", "unlabeled": "unlabeled", "sensitive": "sensitive"}
    settings, problems = form.read({**form.defaults("own"), **chosen, **quick}, {"own": model}, [images])
    assert not problems
    work = training_job.Job(host)
    work.start(settings)
    state = ended(work)
    assert (state.ended, state.step) == ("done", 2), state
    made = host.lora_folder() / "pu-lora.safetensors"
    metadata = lora_file.read_metadata(made)
    assert len(metadata["ss_new_sd_model_hash"]) == 64  # its name is not told
    assert (metadata["ss_num_train_images"], metadata["ss_network_dim"]) == ("14", "2")  # two of 16 are held out
    assert made.with_name("pu-lora.preview.png").exists()


@pytest.mark.long
def test_one_training_at_a_time_which_can_be_cancelled(host, monkeypatch):
    monkeypatch.setattr(launch, "command", lambda words, settings: child(STEP, then="time.sleep(60)"))
    work = training_job.Job(host)
    work.start(RUN)
    while not work.state(timeout_s=0.1)[0].step:
        pass
    with pytest.raises(ValueError, match="a training is running"):
        work.start(RUN)
    work.cancel()
    state = ended(work)
    assert state.ended == "cancelled"
    assert state.message == "Stopped at step 1, before the first save: there is nothing to resume."
    work._thread.join(5)
    saved = host.output / "x" / "config.toml"  # a run goes on from any phase
    saved.parent.mkdir(parents=True)
    saved.touch()
    assert '--resume --name "x"' in work._how_to_resume({"name": "x", "output_dir": str(host.output)})
    work.start(RUN)
    work.cancel()
    assert ended(work).ended == "cancelled"


@pytest.mark.long
def test_the_training_that_was_interrupted_last_is_resumed(host, monkeypatch, tmp_path):
    """By its own name, with all that the LoRA's notes say about it."""
    for i, (name, last) in enumerate((("old", "step"), ("newer", "step"), ("done", "done"))):
        run = host.output / name
        run.mkdir(parents=True)
        (run / "config.toml").write_text(f'objective = "nnpu"\nsteps = {5 + i}\nprior = 0.2\ntemperature = 3.0\n')
        (run / "events.jsonl").write_text('{"v": 1, "event": "phase"}\n' + json.dumps({"v": 1, "event": last}) + "\n")
        for path in run.iterdir():
            os.utime(path, (i, i))
    called = {}

    def command(words, settings):
        called.update(settings)
        run = host.output / settings["name"]
        for file in ("lora.safetensors", "report.html"):
            (run / file).write_bytes(b"x")
        return child(
            STEP, {"event": "done", "lora": f"{run}/lora.safetensors", "report": f"{run}/report.html", "summary": "s"}
        )

    monkeypatch.setattr(launch, "command", command)
    work = training_job.Job(host)
    work.resume()
    state = ended(work)
    assert (state.ended, state.name, state.step) == ("done", "newer", 1), state
    assert called == {"resume": True, "name": "newer", "output_dir": str(host.output), "device": "auto"}
    assert (
        "objective nnpu, steps 6, prior 0.2"
        in json.loads((tmp_path / "lists" / "lora.json").read_text())["description"]
    )


def test_nothing_to_resume_is_said(host):
    with pytest.raises(ValueError, match=r"nothing to resume: .* holds no training that was interrupted"):
        training_job.Job(host).resume()


def test_a_name_that_the_list_has_in_any_folder_is_not_taken_again(host, tmp_path):
    (tmp_path / "lists" / "people").mkdir()
    (tmp_path / "lists" / "people" / "jane.safetensors").touch()
    assert page_host.free_name(host, "jane") == "jane-2"


@pytest.mark.long
def test_waiting_for_the_card_can_be_cancelled(host):
    """A webui that makes pictures has it; nothing was trained then, and nothing is promised."""

    @contextlib.contextmanager
    def busy(check):
        while True:
            check()
            time.sleep(0.01)
        yield

    work = training_job.Job(replace(host, card=busy))
    work.start(RUN)
    with pytest.raises(ValueError, match="a training is running"):
        work.alone(lambda: None)
    work.cancel()
    state = ended(work)
    assert (state.ended, state.message) == ("cancelled", "")
    with pytest.raises(ZeroDivisionError):
        training_job.Job(host).alone(lambda: 1 // 0)


def test_what_is_trained_is_done_though_the_webui_cannot_have_its_model_back(host, monkeypatch, tmp_path):
    @contextlib.contextmanager
    def torn(check):
        yield
        raise MemoryError("no room")

    def command(words, settings):
        run = tmp_path / "runs" / settings["name"]
        run.mkdir(parents=True)
        for file in ("lora.safetensors", "report.html"):
            (run / file).write_bytes(b"x")
        done = {"event": "done", "lora": f"{run}/lora.safetensors", "report": f"{run}/report.html", "summary": "s"}
        return child({"event": "prior", "value": 0.17, "message": "m"}, STEP, done)

    monkeypatch.setattr(launch, "command", command)
    work = training_job.Job(replace(host, card=torn))
    work.start({**RUN, "prior": None})
    state = ended(work)
    assert (state.ended, state.warnings) == ("done", ["MemoryError: no room"])
    assert len(state.files) == 2
    assert state.notes == ["m"]
    assert "<pre>m</pre>" in page_render.status(state)
    assert "prior 0.17" in json.loads((tmp_path / "lists" / "lora.json").read_text())["description"]


def test_a_failure_is_shown(host, monkeypatch):
    error = {"event": "error", "kind": "out-of-memory", "message": "out of memory. Try less."}
    monkeypatch.setattr(launch, "command", lambda words, settings: child(error, then="exit(3)"))
    work = training_job.Job(host)
    work.start(RUN)
    state = ended(work)
    assert (state.ended, state.message) == ("failed", "out of memory. Try less.")


def test_what_a_run_says_is_shown_as_text():
    bad = "<script>alert(1)</script>"
    shown = page_render.status(training_job.State(phase="train", name=bad, message=bad, warnings=[bad], step=1, of=2))
    assert "<script>" not in shown
    assert shown.count("&lt;script&gt;") == 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--prot", "1"], "unrecognized arguments: --prot 1"),
        (["--port", "x"], "--port: must be a number from 1 to 65535, got 'x'"),
        (["--port", "70000"], "--port: must be a number from 1 to 65535, got '70000'"),
        (["--allow-dir", "/nowhere"], "--allow-dir: no folder /nowhere"),
        (["--checkpoint-dir", "/nowhere"], "--checkpoint-dir: no folder /nowhere"),
    ],
)
def test_the_command_says_what_is_wrong(trainer, words, sentence):
    done = trainer("ui", *words)
    assert (done.returncode, done.stderr.strip()) == (2, f"error: {sentence}")


def test_the_command_says_what_is_missing(trainer, monkeypatch, tmp_path):
    monkeypatch.setattr(ui.importlib.util, "find_spec", lambda name: None)
    done = trainer("ui")
    assert done.returncode == 2
    assert done.stderr == 'error: ui: the page needs gradio. Install it with: pip install "gradio>=3.41"\n'
    monkeypatch.setattr(ui, "PACK_FOLDER", tmp_path)
    with pytest.raises(UserError, match="comes with a checkout"):
        ui.main([])


def test_models_are_listed_by_their_place_below_the_folder(tmp_path):
    (tmp_path / "sd").mkdir()
    for name in ("sd/a.safetensors", "b.ckpt", "notes.txt"):
        (tmp_path / name).touch()
    found = {str(Path("sd/a.safetensors")): tmp_path / "sd" / "a.safetensors", "b.ckpt": tmp_path / "b.ckpt"}
    assert ui._models([tmp_path]) == found


@pytest.mark.parametrize(
    ("headers", "is_let_in"),
    [
        ({"host": "192.168.1.7:7860"}, False),
        ({"host": "127.0.0.1:7860"}, True),
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}, True),
        ({"host": "127.0.0.1:7860", "origin": "https://elsewhere.example"}, False),
        ({"host": "127.0.0.1:7860", "origin": "null"}, False),
        ({"host": "elsewhere.example"}, False),
        ({"host": "elsewhere.example", "origin": "http://elsewhere.example"}, False),
    ],
)
def test_other_web_pages_are_refused(headers, is_let_in):
    sent = []

    async def app(scope, receive, send):
        sent.append("let in")

    async def send(message):
        sent.append(message.get("status", message.get("code", "body")))

    scope = {"headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
    for kind, refused in (("http", [403, "body"]), ("websocket", [1008])):
        sent.clear()
        with contextlib.suppress(StopIteration):
            ui.OwnPageOnly(app, ui.LOOPBACK, any_address=False)({**scope, "type": kind}, None, send).send(None)
        assert sent == (["let in"] if is_let_in else refused)


@pytest.mark.parametrize(
    ("headers", "is_let_in"),
    [
        ({b"host": b"192.168.1.7:7860", b"origin": b"http://192.168.1.7:7860"}, True),
        ({b"host": b"[fe80::1]:7860"}, True),
        ({b"host": b"Studio:7860"}, True),
        ({b"host": b"elsewhere.example:7860", b"origin": b"http://elsewhere.example:7860"}, False),
    ],
)
def test_a_page_that_gives_its_name_another_address_is_refused(headers, is_let_in):
    """Where the server may be called from other machines: by an address, or by this machine's name."""
    guard = ui.OwnPageOnly(None, ["Studio"], any_address=True)
    assert guard._is_own(headers) == is_let_in


def test_the_webuis_script_is_thin():
    """A name that another extension may own is never imported there."""
    tree = ast.parse((ROOT / "scripts" / "pu_unlearn.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"importlib", "importlib.util", "sys", "pathlib", "modules"}
    assert len((ROOT / "scripts" / "pu_unlearn.py").read_text().splitlines()) < 40


@pytest.mark.parametrize("zero", [0, 0.0, "0", "0.0"])
def test_a_zero_is_no_empty_number(zero, tmp_path):
    """A prior of 0 would say that nothing is hidden: it must not be taken for "estimate it"."""
    _, problems = form.read(values(prior=zero, min_snr_gamma=zero), {}, [])
    assert problems == {"prior": "must be greater than 0", "min_snr_gamma": "must be greater than 0"}


def test_numbers_that_may_be_empty_are_read_from_text():
    settings, problems = form.read(values(prior="0.25", min_snr_gamma=" 5 "), {}, [])
    assert not problems
    assert (settings["prior"], settings["min_snr_gamma"]) == (0.25, 5.0)


def test_images_without_a_caption_are_counted(tmp_path):
    for name in ("a.png", "b.JPG", "c.jpg", ".hidden.png", "sub/d.webp", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert form.uncaptioned(tmp_path) == (4, 4)
    for name in ("a.txt", "B.TXT", "sub/d.caption"):
        (tmp_path / name).touch()
    assert form.uncaptioned(tmp_path) == (1, 4)
    said = form.without_caption({"unlabeled": tmp_path, "prompt": None})
    assert said == {"prompt": "1 of 4 unlabeled images have no caption beside them: write one that fits them all"}
    assert form.without_caption({"unlabeled": tmp_path, "prompt": "x"}) == {}
    assert form.without_caption({"prompt": None}) == {}  # the demo


def test_the_page_counts_the_kinds_of_image_that_the_trainer_reads():
    assert {*decoding.SUFFIXES, *decoding.FURTHER} == form.IMAGES
    assert set(form.CAPTIONS) == set(captions.SUFFIXES)


@pytest.mark.parametrize("empty", [None, "", " "])
def test_an_empty_number_is_left_to_the_trainer(empty):
    settings, problems = form.read(values(prior=empty, min_snr_gamma=empty), {}, [])
    assert not problems
    assert settings["prior"] is None
    assert settings["min_snr_gamma"] is None
