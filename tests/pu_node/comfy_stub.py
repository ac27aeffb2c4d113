"""ComfyUI's modules as far as the nodes use them, for tests without ComfyUI; and a trainer that only pretends.

`comfy` is a fixture: folders below tmp_path, nodes by name, and what ComfyUI was asked to show.
"""

import dataclasses
import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from pu_node import launch

FAKE_TRAINER = Path(__file__).with_name("fake_trainer.py")
COMMON = {"display_name", "optional", "tooltip", "default", "force_input"}
WORDS = {  # of each kind of input, as in comfy_api.latest of ComfyUI 0.3.64
    "Combo": COMMON - {"force_input"} | {"options", "control_after_generate"},
    "Int": COMMON | {"min", "max", "step", "control_after_generate"},
    "Float": COMMON | {"min", "max", "step", "round"},
    "Boolean": COMMON,
    "String": COMMON | {"multiline"},
    **{kind: COMMON - {"default", "force_input"} for kind in ("Image", "Model", "Clip", "Vae", "LoraModel")},
}


class Put:
    """One input or output of a node."""

    def __init__(self, kind, words, id, display_name=None, **more):
        assert set(more) <= words, f"{id}: {kind} has no {set(more) - words}"
        self.kind, self.id, self.display_name, self.more = kind, id, display_name, more


def kind(name, words):
    def made(id, *names, **more):
        return Put(name, words, id, *names, **more)

    return types.SimpleNamespace(Input=made, Output=made)


@dataclasses.dataclass
class Schema:
    node_id: str
    display_name: str = ""
    category: str = "sd"
    inputs: list = dataclasses.field(default_factory=list)
    outputs: list = dataclasses.field(default_factory=list)
    description: str = ""
    is_output_node: bool = False
    is_input_list: bool = False

    def __post_init__(self):
        ids = [part.id for part in (*self.inputs, *self.outputs)]
        assert len(set(ids)) == len(ids), f"{self.node_id}: ComfyUI wants one id for each input and output"


@dataclasses.dataclass
class NewerSchema(Schema):
    search_aliases: list = dataclasses.field(default_factory=list)


class NodeOutput:
    def __init__(self, *args, ui=None):
        self.args, self.ui = args, ui


class ComfyNode:
    pass


IO = types.SimpleNamespace(
    **{name: kind(name, words) for name, words in WORDS.items()},
    Custom=lambda name: kind(name, {"display_name", "optional", "tooltip"}),
    Schema=NewerSchema,
    ComfyNode=ComfyNode,
    NodeOutput=NodeOutput,
)


class Interrupted(BaseException):
    """ComfyUI's InterruptProcessingException."""


class Comfy:
    """Folders, nodes, and what was shown. `cancel_at`: number of the update of the bar that finds Cancel pressed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bars: list[tuple[int, int]] = []  # (done, of)
        self.texts: list[str] = []
        self.pictures: list[Any] = []
        self.sampled: list[str] = []
        self.cancel_at = -1
        for folder in ("input", "output", "models/checkpoints", "models/loras"):
            (root / folder).mkdir(parents=True)

    def folder(self, name, *contents):
        """Make a subfolder of the input folder with files of this content."""
        folder = self.root / "input" / name
        folder.mkdir(parents=True, exist_ok=True)
        for i, content in enumerate(contents or (name,)):
            (folder / f"{i}.png").write_text(content)
        return folder

    def checkpoint(self, name="sd.safetensors", content="weights"):
        (self.root / "models" / "checkpoints" / name).write_text(content)
        return name

    def schema(self, name):
        return self.node(name).define_schema()

    def node(self, name):
        for module in ("input", "dataset", "train", "audit", "apply", "compare", "evaluate", "make_data"):
            if found := getattr(importlib.import_module(f"pu_node.nodes_{module}"), name, None):
                return found
        raise LookupError(name)

    def run(self, name, /, **values):
        """Execute a node with its defaults and these values."""
        defaults = {p.id: p.more["default"] for p in self.schema(name).inputs if "default" in p.more}
        return self.node(name).execute(**{**defaults, **values})

    def calls(self):
        """What the trainer was started with: its words and options, call by call."""
        file = self.root / "calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def update(self, bar, done, total, preview):
        self.bars.append((done, total))
        if preview:
            self.pictures.append(preview[1])
        self.check()

    def check(self):
        if 0 <= self.cancel_at <= len(self.bars):
            self.cancel_at = -1
            raise Interrupted

    def listed(self, kind):
        roots = self.paths(kind)
        return sorted({p.relative_to(r).as_posix() for r in roots for p in r.rglob("*.safetensors")})

    def paths(self, kind):
        return [self.root / "models" / kind, *([self.root / "output" / "loras"] if kind == "loras" else [])]

    def full_path(self, kind, name):
        return str(next(root / name for root in self.paths(kind) if (root / name).exists()))


@pytest.fixture
def comfy(monkeypatch, tmp_path):
    found = Comfy(tmp_path)

    def module(name, **names):
        made = types.ModuleType(name)
        made.__dict__.update(names)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    class ProgressBar:
        def __init__(self, total):
            self.total = total

        def update_absolute(self, done, total, preview=None):
            found.update(self, done, total, preview)

    def sample(model, seed, steps, cfg, sampler, scheduler, positive, negative, latent):
        found.sampled.append((model, seed, negative))
        return ({"samples": (model, seed)},)

    def load(self, name):
        return f"model of {name}", "clip", "vae"

    latest = module("comfy_api.latest", io=IO)
    module("comfy_api", latest=latest)
    utils = module("comfy.utils", ProgressBar=ProgressBar, load_torch_file=lambda path, safe_load: load_file(path))
    management = module(
        "comfy.model_management",
        throw_exception_if_processing_interrupted=found.check,
        unload_all_models=lambda: None,
        soft_empty_cache=lambda: None,
    )
    choices = types.SimpleNamespace(SAMPLERS=["euler"], SCHEDULERS=["normal"])
    samplers = module("comfy.samplers", KSampler=choices)
    module("comfy", utils=utils, model_management=management, samplers=samplers)
    module("nodes", common_ksampler=sample, CheckpointLoaderSimple=type("Loader", (), {"load_checkpoint": load}))
    server = types.SimpleNamespace(send_progress_text=lambda text, node: found.texts.append(text))
    module("server", PromptServer=types.SimpleNamespace(instance=server))
    context = types.SimpleNamespace(node_id="7")
    executing = module("comfy_execution.utils", get_executing_context=lambda: context)
    module("comfy_execution", utils=executing)
    module(
        "folder_paths",
        get_output_directory=lambda: str(tmp_path / "output"),
        get_input_directory=lambda: str(tmp_path / "input"),
        get_temp_directory=lambda: str(tmp_path / "temp"),
        get_input_subfolders=lambda: sorted(
            p.relative_to(tmp_path / "input").as_posix() for p in (tmp_path / "input").rglob("*") if p.is_dir()
        ),
        get_filename_list=found.listed,
        get_folder_paths=lambda kind: [str(path) for path in found.paths(kind)],
        get_full_path_or_raise=found.full_path,
    )
    monkeypatch.setattr(launch, "TRAINER", FAKE_TRAINER)
    monkeypatch.setattr(launch, "python", lambda **_: sys.executable)
    monkeypatch.setenv("FAKE_TRAINER_CALLS", str(tmp_path / "calls.jsonl"))
    yield found
    launch.wait_for_saving(lambda: None)
