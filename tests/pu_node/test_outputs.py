"""What a graph gets besides pictures and text: numbers, losses, single pictures; and a LoRA that goes in."""

from pathlib import Path

import numpy as np
import pytest
import torch
from comfy_stub import comfy

from pu_node import drawing, run_numbers
from trainer.audit.auto_prior import describe
from trainer.data import contact_sheet
from trainer.objective.class_prior import Prior

__all__ = ["comfy"]
DEMO = "[built-in digits demo]"


def named(comfy, name, /, **values):
    """A node's outputs by their ids."""
    ids = [part.id for part in comfy.schema(name).outputs]
    return dict(zip(ids, comfy.run(name, **values).args, strict=True))


def test_the_numbers_of_a_training_come_out(comfy):
    found = named(comfy, "PUUnlearn", checkpoint=DEMO, steps=4, name="x")
    assert list(found)[:5] == ["lora", "path", "curve", "before_after", "report"]  # links go by position
    assert (found["prior_used"], found["prior_low"], found["prior_high"]) == (0.2, 0.12, 0.34)
    assert (found["rate_before"], found["rate_after"]) == (0.5, 0.9)
    again = named(comfy, "PUUnlearn", checkpoint=DEMO, steps=4, name="x")
    assert (again["prior_low"], again["rate_after"]) == (0.12, 0.9)


def test_the_losses_are_what_plot_loss_graph_reads(comfy):
    """Its code, in ComfyUI 0.3.64: loss["loss"], of which it takes min, max and differences."""
    losses = named(comfy, "PUUnlearn", checkpoint=DEMO, steps=4, name="x")["loss"]["loss"]
    assert losses == [1, 1 / 3, 1 / 4]  # the second step was an overflow
    (output,) = (part for part in comfy.schema("PUUnlearn").outputs if part.id == "loss")
    assert output.kind == "LOSS_MAP"


def test_a_given_prior_has_no_interval(tmp_path):
    found = run_numbers.read(tmp_path, 0.3)
    assert (found.prior, found.prior_low, found.rate_after, found.losses) == (0.3, -1, -1, [])
    assert run_numbers.read(tmp_path, None).prior == -1
    (tmp_path / "events.jsonl").write_text('{"event": "step", "loss": 2.0}\n{"event": "st')  # killed
    assert run_numbers.read(tmp_path, None).losses == [2.0]


def test_the_interval_is_read_as_the_trainer_tells_it():
    prior = Prior(value=0.2, low=0.123, high=1.0, auc=0.9, elkan_noto=0.3, n_unlabeled=9, n_sensitive=5)
    assert run_numbers.interval("\n".join(describe(prior))) == (0.12, 1.0)
    assert run_numbers.interval("prior 0.2") == (-1, -1)


@pytest.mark.parametrize("count", [1, 5, 9, 16])
def test_a_grid_is_taken_apart_as_the_trainer_made_it(count):
    pixels = np.random.default_rng(count).integers(0, 255, (count, 64, 64, 3), dtype=np.uint8)
    found = drawing.tiles(contact_sheet.grid(pixels), 64)
    assert np.array_equal(np.stack([np.asarray(picture) for picture in found]), pixels)
    other = contact_sheet.grid(pixels)
    assert drawing.tiles(other, 100) == [other]


def test_before_and_after_are_batches_of_equal_size(comfy):
    first = named(comfy, "PUUnlearn", checkpoint=DEMO, steps=2, name="x")
    pixels = np.full((4, 64, 64, 3), 51, dtype=np.uint8)
    for kind in ("before", "after"):
        contact_sheet.grid(pixels).save(comfy.root / "output" / "pu_unlearn" / "x" / "samples" / f"{kind}.png")
    found = named(comfy, "PUUnlearn", checkpoint=DEMO, steps=2, name="x")
    assert found["path"] == first["path"]
    for kind in ("before", "after"):
        assert found[kind].shape == (4, 64, 64, 3)
        assert found[kind].unique().tolist() == [pytest.approx(0.2)]


def test_audit_and_evaluate_give_their_intervals(comfy):
    found = named(comfy, "PUAudit", checkpoint=DEMO)
    assert [found[name] for name in ("prior", "prior_low", "prior_high")] == [0.2, 0.12, 0.34]
    lora = comfy.root / "models" / "loras" / "l.safetensors"
    lora.write_text("l")
    found = named(comfy, "PUEvaluate", checkpoint=DEMO, lora_name="l.safetensors")
    shares = [found[name] for name in ("rate_before", "rate_after")]
    assert shares == [0.5, 0.9]
    assert [found[f"{kind}_{end}"] for kind in ("before", "after") for end in ("low", "high")] == [0.4, 0.6, 0.8, 0.95]
    assert len(found["before"]) == len(found["after"]) == 64
    few = named(comfy, "PUEvaluate", checkpoint=DEMO, lora_name="l.safetensors", pictures=3, prompt="unjudged")
    assert len(few["after"]) == 3  # of those that lie there
    assert {few[name] for name in ("rate_before", "rate_after", "before_low", "after_high")} == {-1}


# a LoRA to continue


def lora(comfy, content):
    file = comfy.root / "models" / "loras" / "old.safetensors"
    file.write_text(content)
    return file


def test_a_lora_is_continued_into_a_new_one(comfy):
    file = lora(comfy, "weights")
    (widget,) = (part for part in comfy.schema("PUUnlearn").inputs if part.id == "init_lora")
    assert widget.more["options"] == ["[none: a new one]", "old.safetensors"]
    assert comfy.schema("PUUnlearn").inputs[-1].id == widget.id == "init_lora"  # workflows save widgets by position
    assert widget.more["optional"]

    def train(**values):
        return comfy.run("PUUnlearn", checkpoint=DEMO, steps=2, name="x", **values).args

    from_nothing, continued = train(), train(init_lora="old.safetensors")
    assert "Nothing has changed" not in continued[4]
    assert [options.get("init-lora") for _, options in comfy.calls()] == [None, str(file)]
    assert Path(continued[1]) != Path(from_nothing[1])
    assert "Nothing has changed" in train(init_lora="old.safetensors")[4]
    node = comfy.node("PUUnlearn")
    print_before = node.fingerprint_inputs(checkpoint=DEMO, retrain=False, init_lora="old.safetensors")
    lora(comfy, "other weights")
    assert node.fingerprint_inputs(checkpoint=DEMO, retrain=False, init_lora="old.safetensors") != print_before
    assert "Nothing has changed" not in train(init_lora="old.safetensors")[4]


@pytest.mark.parametrize("name", ["../etc/passwd", "gone.safetensors"])
def test_a_lora_from_elsewhere_is_not_continued(comfy, name):
    with pytest.raises(ValueError, match=r"^LoRA to continue: .* is no LoRA of this ComfyUI"):
        comfy.run("PUUnlearn", checkpoint=DEMO, init_lora=name)
    assert not comfy.calls()


def test_compare_gives_single_pictures(comfy):
    class Clip:
        tokenize = encode_from_tokens_scheduled = staticmethod(lambda text: text)

    class Vae:
        @staticmethod
        def decode(latent):
            model, seed = latent
            return torch.full((1, 8, 8, 3), {"B": 0, "A": 100}[model] / 255 + seed / 255)

    values = {"before": "B", "after": "A", "clip": Clip, "vae": Vae, "count": 2}
    found = named(comfy, "PUCompare", **values, steps=1, sampler="euler", scheduler="normal")
    assert list(found) == ["grid", "before_images", "after_images"]
    assert (found["before_images"][:, 0, 0, 0] * 255).round().tolist() == [0, 1]
    assert (found["after_images"][:, 0, 0, 0] * 255).round().tolist() == [100, 101]
