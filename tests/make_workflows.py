"""Writes the templates in workflows/ (UI form) and their API forms in tests/workflows/, from one description each, and
the blueprint in subgraphs/: a node with others inside, which ComfyUI lists like a node.

    python tests/make_workflows.py

A test holds the files against this script, and against the nodes of a real ComfyUI.
"""

import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OURS = {"PUDataset", "PUOptions", "PUUnlearn", "PUApplyLoRA", "PUCompare", "PUPlan"}
OURS |= {"PUMakeData", "PUAudit", "PUEvaluate", "PUCompareRuns", "PUCheckpoint", "PUCheckpointFromModel"}

# node -> widgets in the order of its schema, then link inputs (name, type), then outputs (name, type)
NODES: dict[str, tuple[list[str], list[tuple[str, str]], list[tuple[str, str]]]] = {
    "PUCheckpoint": (
        ["checkpoint"],
        [],
        [("checkpoint_link", "PU_CHECKPOINT"), ("model", "MODEL"), ("clip", "CLIP"), ("vae", "VAE")],
    ),
    "PUCheckpointFromModel": (
        [],
        [("model", "MODEL"), ("clip", "CLIP"), ("vae", "VAE")],
        [("checkpoint_link", "PU_CHECKPOINT")],
    ),
    "PUDataset": (
        [
            "unlabeled",
            "sensitive",
            "prompt",
            "sensitive_prompt",
            "resolution",
            "skip_bad_images",
            "more_unlabeled",
            "more_sensitive",
        ],
        [
            ("unlabeled_images", "IMAGE"),
            ("unlabeled_captions", "STRING"),
            ("sensitive_images", "IMAGE"),
            ("sensitive_captions", "STRING"),
        ],
        [("dataset", "PU_DATASET"), ("sheet", "IMAGE"), ("counts", "STRING")],
    ),
    "PUOptions": (
        [
            "bucket",
            "flip",
            "crops",
            "caption_dropout",
            "clip_skip",
            "caption_prefix",
            "caption_suffix",
            "shuffle_caption",
            "keep_tokens",
            "max_token_length",
            "noise_offset",
            "temperature_mode",
            "min_snr_gamma",
            "sensitive_prompt_share",
            "keep_prompts",
            "batch_unlabeled",
            "batch_sensitive",
            "lr_scheduler",
            "optimizer",
        ],
        [],
        [("options", "PU_OPTIONS")],
    ),
    "PUUnlearn": (
        [
            "checkpoint",
            "preset",
            "steps",
            "rank",
            "lr",
            "prior",
            "temperature",
            "objective",
            "seed",
            "name",
            "retrain",
            "init_lora",
        ],
        [
            ("dataset", "PU_DATASET"),
            ("options", "PU_OPTIONS"),
            ("checkpoint_link", "PU_CHECKPOINT"),
            ("plan", "STRING"),
        ],
        [
            ("lora", "LORA_MODEL"),
            ("path", "STRING"),
            ("curve", "IMAGE"),
            ("before_after", "IMAGE"),
            ("report", "STRING"),
            ("before", "IMAGE"),
            ("after", "IMAGE"),
            ("loss", "LOSS_MAP"),
            ("prior_used", "FLOAT"),
            ("prior_low", "FLOAT"),
            ("prior_high", "FLOAT"),
            ("rate_before", "FLOAT"),
            ("rate_after", "FLOAT"),
        ],
    ),
    "PUAudit": (
        ["checkpoint", "top"],
        [("dataset", "PU_DATASET"), ("checkpoint_link", "PU_CHECKPOINT")],
        [
            ("sheet", "IMAGE"),
            ("report", "STRING"),
            ("prior", "FLOAT"),
            ("prior_low", "FLOAT"),
            ("prior_high", "FLOAT"),
        ],
    ),
    "PUEvaluate": (
        ["checkpoint", "lora_name", "prompt", "pictures", "resolution", "labeled", "retain_prompts"],
        [("path", "STRING"), ("checkpoint_link", "PU_CHECKPOINT")],
        [
            ("before_after", "IMAGE"),
            ("report", "STRING"),
            ("rate_before", "FLOAT"),
            ("rate_after", "FLOAT"),
            ("before_low", "FLOAT"),
            ("before_high", "FLOAT"),
            ("after_low", "FLOAT"),
            ("after_high", "FLOAT"),
            ("before", "IMAGE"),
            ("after", "IMAGE"),
        ],
    ),
    "PUCompareRuns": (["runs"], [("path", "STRING")], [("curves", "IMAGE"), ("report", "STRING")]),
    "PUMakeData": (
        [
            "checkpoint",
            "unlabeled_prompt",
            "n_unlabeled",
            "contaminate_prompt",
            "n_contaminate",
            "sensitive_prompt",
            "n_sensitive",
            "negative_prompt",
            "resolution",
            "steps",
            "guidance",
            "sampler",
            "seed",
            "folder",
        ],
        [("checkpoint_link", "PU_CHECKPOINT")],
        [("dataset", "PU_DATASET"), ("sheet", "IMAGE"), ("report", "STRING"), ("prior", "FLOAT")],
    ),
    "PUApplyLoRA": (
        ["lora_name", "strength"],
        [("model", "MODEL"), ("clip", "CLIP"), ("lora", "LORA_MODEL")],
        [("model", "MODEL"), ("clip", "CLIP")],
    ),
    "PUCompare": (
        ["prompt", "first_seed", "count", "width", "height", "steps", "cfg", "sampler", "scheduler", "negative_prompt"],
        [("before", "MODEL"), ("after", "MODEL"), ("clip", "CLIP"), ("vae", "VAE")],
        [("grid", "IMAGE"), ("before_images", "IMAGE"), ("after_images", "IMAGE")],
    ),
    "PUPlan": (
        ["checkpoint", "preset", "steps", "rank", "lr", "prior", "temperature", "objective", "seed", "name"],
        [("dataset", "PU_DATASET"), ("options", "PU_OPTIONS"), ("checkpoint_link", "PU_CHECKPOINT")],
        [("plan", "STRING"), ("table", "IMAGE")],
    ),
    "CheckpointLoaderSimple": (["ckpt_name"], [], [("MODEL", "MODEL"), ("CLIP", "CLIP"), ("VAE", "VAE")]),
    "PreviewImage": ([], [("images", "IMAGE")], []),
    "PreviewAny": ([], [("source", "*")], []),
    "MarkdownNote": (["text"], [], []),
}
SEEDS = {"seed"}  # the page adds a widget after these: what happens to the seed with each run


@dataclass(frozen=True)
class Use:
    """One node of a workflow, `height` pixels high. links: input name -> (id of the source, its output)."""

    kind: str
    height: int
    values: dict[str, Any] = field(default_factory=dict)
    links: dict[str, tuple[int, str]] = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True)
class Column:
    """Nodes below each other, by their ids: no two nodes of a template can overlap."""

    width: int
    uses: dict[int, Use]


GAP, TITLE = 60, 30  # between nodes, and the height of a node's title, which lies above its place
CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
DOWNLOAD = f"https://huggingface.co/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/{CHECKPOINT}"
TRAIN = {
    "checkpoint": "[built-in digits demo]",
    "preset": "auto",
    "steps": 600,
    "rank": 16,
    "lr": 1e-3,
    "prior": 0,
    "temperature": 1.5,
    "objective": "pu",
    "seed": 0,
    "name": "pu-digits",
}
LEARN = {"retrain": False, "init_lora": "[none: a new one]"}  # what PU Unlearn has beside PU Plan's widgets
OPTIONS = {
    "bucket": True,
    "flip": False,
    "crops": 1,
    "caption_dropout": 0.05,
    "clip_skip": 1,
    "caption_prefix": "",
    "caption_suffix": "",
    "shuffle_caption": False,
    "keep_tokens": 0,
    "max_token_length": 75,
    "noise_offset": 0.0,
    "temperature_mode": "per-timestep",
    "min_snr_gamma": 0.2,
    "sensitive_prompt_share": 0.25,
    "keep_prompts": "",
    "batch_unlabeled": 16,
    "batch_sensitive": 8,
    "lr_scheduler": "cosine",
    "optimizer": "adamw",
}
SD_TRAIN = {**TRAIN, "steps": 1000, "lr": 1e-4, "name": "pu-lora"}
DATASET = {
    "unlabeled": "unlabeled",
    "sensitive": "sensitive",
    "prompt": "a photo of a man",
    "sensitive_prompt": "",
    "resolution": 512,
    "skip_bad_images": False,
    "more_unlabeled": "",
    "more_sensitive": "",
}
COMPARE = {
    "prompt": "a photo of a man",
    "first_seed": 0,
    "count": 4,
    "width": 512,
    "height": 512,
    "steps": 20,
    "cfg": 7.0,
    "sampler": "euler",
    "scheduler": "normal",
    "negative_prompt": "",
}
MAKE_DATA = {
    "checkpoint": "[built-in digits demo]",
    "unlabeled_prompt": "a photo of a man",
    "n_unlabeled": 200,
    "contaminate_prompt": "a photo of a man wearing glasses",
    "n_contaminate": 40,
    "sensitive_prompt": "",
    "n_sensitive": 20,
    "negative_prompt": "",
    "resolution": 512,
    "steps": 25,
    "guidance": 7.5,
    "sampler": "ddim",
    "seed": 0,
    "folder": "glasses",
}
DEMO_NOTE = """## First try: digits

Nothing to choose. Press **Run**.

A small model that draws digits unlearns the odd ones (1, 3, 5, 7, 9), in about two minutes without a graphics card.
It gets
400 *unlabeled* pictures, where odd ones hide, and 100 *sensitive* examples: odd ones only.

**PU Unlearn** shows the newest pictures while it trains. **Before / after** has the same seeds without and with the
LoRA: the
odd digits are gone. To stop, cancel the job in the queue."""
SD_NOTE = """## Unlearn with your own checkpoint

1. Make two folders in `ComfyUI/input`: *unlabeled*, with the pictures that you train on anyway (a hundred or more),
   and
   *sensitive*, with about twenty examples of what must not come out. Press **R**.
2. **PU Checkpoint**: choose a Stable Diffusion 1.x model. The other nodes follow it.
3. **PU Dataset**: choose both folders, and write what the pictures show as *prompt*.
4. Press **Run**. *Will it fit?* comes first, the training takes minutes to hours.

The LoRA is in `output/loras`; press R, then Load LoRA lists it. Too weak? Raise *temperature*. Broken pictures?
Lower it."""
AUDIT_NOTE = """## What hides in my folder?

1. Make two folders in `ComfyUI/input`: *unlabeled*, the folder to look through, and *sensitive*, with about twenty
   examples
   of what you look for. Press **R**.
2. Choose the checkpoint and both folders, and press **Run**.

**Most likely sensitive** shows the suspects first, **Report** says how many there are, and where the whole list is.
Nothing is
deleted or changed."""
MAKE_NOTE = """## Make training pictures

Only an idea, no pictures? The checkpoint makes both folders itself.

1. **PU Checkpoint**: choose a Stable Diffusion 1.x model.
2. **PU Make Data**: the first prompt is what you want to keep (*a photo of a man*), the second what you want to
   lose (*a photo
   of a man wearing glasses*). A *sensitive prompt* is needed only if the examples shall show something else.
3. Press **Run**. The pictures are saved in `ComfyUI/input`, in the folder named at the bottom.

Then connect *dataset* to **PU Unlearn**, or open the template for your own checkpoint."""
STRENGTHS_NOTE = """## How strong should the LoRA be?

1. Choose the checkpoint, and a trained LoRA in all three **PU Apply LoRA** nodes (press **R** if it is not listed).
2. Write a prompt into the three **PU Compare** nodes and press **Run**.

Each picture shows the same seeds without and with the LoRA, at strength 0.5, 1 and 1.5. Take the smallest that does
what you
want: write it into Load LoRA, or `<lora:name:0.5>` in A1111."""


def _strength(number: int, strength: float) -> Column:
    """Return a column that shows the LoRA at one strength: nodes number, number + 1 and number + 2."""
    apply = Use(
        "PUApplyLoRA",
        190,
        {"lora_name": "pu-lora.safetensors", "strength": strength},
        {"model": (2, "model"), "clip": (2, "clip")},
        f"Strength {strength:g}",
    )
    links = {"before": (2, "model"), "after": (number, "model"), "clip": (2, "clip"), "vae": (2, "vae")}
    compare = Use("PUCompare", 690, {**COMPARE, "count": 2}, links)
    shown = Use("PreviewImage", 460, links={"images": (number + 1, "grid")}, title=f"Before / after at {strength:g}")
    return Column(440, {number: apply, number + 1: compare, number + 2: shown})


LAYOUTS: dict[str, list[Column]] = {
    "digits-demo-without-checkpoint": [
        Column(
            440,
            {
                1: Use("MarkdownNote", 300, {"text": DEMO_NOTE}, title="Read me"),
                2: Use("PUOptions", 470, OPTIONS),
            },
        ),
        Column(480, {3: Use("PUUnlearn", 1360, {**TRAIN, **LEARN}, {"options": (2, "options")})}),
        Column(
            620,
            {
                5: Use("PreviewImage", 480, links={"images": (3, "before_after")}, title="Before / after"),
                4: Use("PreviewImage", 420, links={"images": (3, "curve")}, title="Loss"),
                6: Use("PreviewAny", 220, links={"source": (3, "report")}, title="Report"),
            },
        ),
    ],
    "unlearn-with-sd15-checkpoint": [
        Column(
            440,
            {
                1: Use("MarkdownNote", 360, {"text": SD_NOTE}, title="Read me"),
                2: Use("PUCheckpoint", 170, {"checkpoint": CHECKPOINT}),
                3: Use("PUDataset", 470, DATASET),
                4: Use("PreviewImage", 360, links={"images": (3, "sheet")}, title="What will be trained on"),
            },
        ),
        Column(
            440,
            {
                5: Use("PUPlan", 480, SD_TRAIN, {"dataset": (3, "dataset"), "checkpoint_link": (2, "checkpoint_link")}),
                6: Use("PreviewImage", 380, links={"images": (5, "table")}, title="Will it fit?"),
                11: Use("PreviewImage", 360, links={"images": (7, "curve")}, title="Loss"),
            },
        ),
        Column(
            480,
            {
                7: Use(
                    "PUUnlearn",
                    1420,
                    {**SD_TRAIN, **LEARN},
                    {"dataset": (3, "dataset"), "checkpoint_link": (2, "checkpoint_link"), "plan": (5, "plan")},
                )
            },
        ),
        Column(
            440,
            {
                8: Use(
                    "PUApplyLoRA",
                    190,
                    {"lora_name": "[from input]", "strength": 1.0},
                    {"model": (2, "model"), "clip": (2, "clip"), "lora": (7, "lora")},
                ),
                9: Use(
                    "PUCompare",
                    690,
                    COMPARE,
                    {"before": (2, "model"), "after": (8, "model"), "clip": (2, "clip"), "vae": (2, "vae")},
                ),
                12: Use("PreviewAny", 260, links={"source": (7, "report")}, title="Report"),
            },
        ),
        Column(620, {10: Use("PreviewImage", 1240, links={"images": (9, "grid")}, title="Before / after")}),
    ],
    "audit-a-folder": [
        Column(
            440,
            {
                1: Use("MarkdownNote", 300, {"text": AUDIT_NOTE}, title="Read me"),
                2: Use("PUCheckpoint", 170, {"checkpoint": CHECKPOINT}),
                3: Use("PUDataset", 470, DATASET),
            },
        ),
        Column(
            440,
            {
                4: Use(
                    "PUAudit",
                    250,
                    {"checkpoint": "[built-in digits demo]", "top": 16},
                    {"dataset": (3, "dataset"), "checkpoint_link": (2, "checkpoint_link")},
                ),
                5: Use("PreviewImage", 360, links={"images": (3, "sheet")}, title="Both folders"),
                6: Use("PreviewAny", 200, links={"source": (4, "report")}, title="Report"),
            },
        ),
        Column(640, {7: Use("PreviewImage", 880, links={"images": (4, "sheet")}, title="Most likely sensitive")}),
    ],
    "make-training-data": [
        Column(
            440,
            {
                1: Use("MarkdownNote", 380, {"text": MAKE_NOTE}, title="Read me"),
                2: Use("PUCheckpoint", 170, {"checkpoint": CHECKPOINT}),
            },
        ),
        Column(480, {3: Use("PUMakeData", 660, MAKE_DATA, {"checkpoint_link": (2, "checkpoint_link")})}),
        Column(
            640,
            {
                4: Use("PreviewImage", 440, links={"images": (3, "sheet")}, title="What was made"),
                5: Use("PreviewAny", 220, links={"source": (3, "report")}, title="Report"),
            },
        ),
    ],
    "compare-strengths": [
        Column(
            440,
            {
                1: Use("MarkdownNote", 300, {"text": STRENGTHS_NOTE}, title="Read me"),
                2: Use("PUCheckpoint", 170, {"checkpoint": CHECKPOINT}),
            },
        ),
        *(_strength(3 + 3 * i, strength) for i, strength in enumerate((0.5, 1.0, 1.5))),
    ],
}
WORKFLOWS = {
    name: {i: use for column in columns for i, use in column.uses.items()} for name, columns in LAYOUTS.items()
}


@dataclass(frozen=True)
class Blueprint:
    """A subgraph that ComfyUI's page lists as a node. Each of its inputs and outputs stands for those of nodes inside.

    inputs: name -> places inside, (id, input); of a widget: one place. outputs: name -> (id, output).
    """

    about: str
    columns: list[Column]
    inputs: dict[str, list[tuple[int, str]]]
    outputs: dict[str, tuple[int, str]]


BLUEPRINTS = {
    "PU Unlearn and compare": Blueprint(
        about="Trains a LoRA that does not generate what the sensitive images show, and makes pictures from the same "
        "seeds without and with it. Connect all four outputs of PU Checkpoint, and PU Dataset.",
        columns=[
            Column(480, {1: Use("PUUnlearn", 1420, {**SD_TRAIN, **LEARN})}),
            Column(
                440,
                {
                    2: Use("PUApplyLoRA", 190, {"lora_name": "[from input]", "strength": 1.0}, {"lora": (1, "lora")}),
                    3: Use("PUCompare", 690, COMPARE, {"after": (2, "model")}),
                },
            ),
        ],
        inputs={
            "dataset": [(1, "dataset")],
            "checkpoint_link": [(1, "checkpoint_link")],
            "model": [(2, "model"), (3, "before")],
            "clip": [(2, "clip"), (3, "clip")],
            "vae": [(3, "vae")],
            "steps": [(1, "steps")],
            "temperature": [(1, "temperature")],
            "name": [(1, "name")],
            "prompt": [(3, "prompt")],
            "count": [(3, "count")],
        },
        outputs={"grid": (3, "grid"), "curve": (1, "curve"), "report": (1, "report"), "lora": (1, "lora")},
    )
}
LABELS = {"checkpoint_link": "checkpoint"}  # of a blueprint's inputs
WIDGET_TYPES = {"steps": "INT", "temperature": "FLOAT", "name": "STRING", "prompt": "STRING", "count": "INT"}


def _boxes(columns: list[Column]) -> dict[int, tuple[list[int], list[int]]]:
    """Return place and size of each node by its id."""
    found, x = {}, 0
    for column in columns:
        y = 0
        for number, use in column.uses.items():
            found[number] = ([x, y], [column.width, use.height])
            y += use.height + TITLE + GAP
        x += column.width + GAP
    return found


def _models(use: Use) -> dict[str, Any]:
    """Return what the page asks for if a checkpoint is missing: it then offers to download it."""
    if use.values.get("checkpoint") != CHECKPOINT:
        return {}
    return {"models": [{"name": CHECKPOINT, "url": DOWNLOAD, "directory": "checkpoints"}]}


def api_form(uses: dict[int, Use]) -> dict[str, Any]:
    """What POST /prompt takes."""
    found = {}
    for number, use in uses.items():
        if use.kind == "MarkdownNote":
            continue
        inputs: dict[str, Any] = {name: use.values[name] for name in NODES[use.kind][0]}
        for name, (source, output) in use.links.items():
            inputs[name] = [str(source), _slot(uses[source].kind, output)]
        found[str(number)] = {"class_type": use.kind, "inputs": inputs, "_meta": {"title": use.title or use.kind}}
    return found


def _slot(kind: str, output: str) -> int:
    return [name for name, _ in NODES[kind][2]].index(output)


def ui_form(columns: list[Column]) -> dict[str, Any]:
    """What the page saves and opens."""
    uses = {number: use for column in columns for number, use in column.uses.items()}
    boxes = _boxes(columns)
    links, nodes = [], []
    for number, use in uses.items():
        for slot, (name, kind) in enumerate(NODES[use.kind][1]):
            if name in use.links:
                source, output = use.links[name]
                from_slot = _slot(uses[source].kind, output)
                link_type = NODES[uses[source].kind][2][from_slot][1]
                links.append([len(links) + 1, source, from_slot, number, slot, link_type if kind == "*" else kind])
    for order, (number, use) in enumerate(uses.items()):
        widgets, inputs, outputs = NODES[use.kind]
        values = [v for name in widgets for v in ([use.values[name]] + (["fixed"] if name in SEEDS else []))]
        nodes.append(
            {
                "id": number,
                "type": use.kind,
                "pos": boxes[number][0],
                "size": boxes[number][1],
                "flags": {},
                "order": order,
                "mode": 0,
                "inputs": [
                    {"name": name, "type": kind, "link": _link_to(links, number, slot)}
                    for slot, (name, kind) in enumerate(inputs)
                ],
                "outputs": [
                    {"name": name, "type": kind, "links": _links_from(links, number, slot) or None}
                    for slot, (name, kind) in enumerate(outputs)
                ],
                "properties": {"Node name for S&R": use.kind, **_models(use)},
                "widgets_values": values,
                **({"title": use.title} if use.title else {}),
            }
        )
    return {
        "id": "00000000-0000-4000-8000-000000000000",
        "revision": 0,
        "last_node_id": max(uses),
        "last_link_id": len(links),
        "nodes": nodes,
        "links": links,
        "groups": [],
        "config": {},
        "extra": {"ds": {"scale": 0.7, "offset": [60, 60]}},
        "version": 0.4,
    }


def blueprint_form(name: str, blueprint: Blueprint) -> dict[str, Any]:
    """Return the file of a blueprint: a workflow with one node, whose type is the subgraph in its `definitions`."""
    inner = ui_form(blueprint.columns)
    nodes = {node["id"]: node for node in inner["nodes"]}
    links = [
        dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True))
        for link in inner["links"]
    ]
    inputs, outputs = [], []
    for slot, (label, places) in enumerate(blueprint.inputs.items()):
        kind = WIDGET_TYPES.get(label) or dict(NODES[nodes[places[0][0]]["type"]][1])[places[0][1]]
        ids = []
        for number, wanted in places:
            slots = nodes[number]["inputs"]
            if label in WIDGET_TYPES:
                slots.append({"name": wanted, "type": kind, "widget": {"name": wanted}, "link": None})
            target = [s["name"] for s in slots].index(wanted)
            ids.append(len(links) + 1)
            slots[target]["link"] = ids[-1]
            links.append(_inner_link(ids[-1], (INPUTS, slot), (number, target), kind))
        shown = {"label": LABELS[label]} if label in LABELS else {}
        inputs.append({"id": _uuid(name, "input", label), "name": label, **shown, "type": kind, "linkIds": ids})
    for slot, (label, (number, wanted)) in enumerate(blueprint.outputs.items()):
        source = _slot(nodes[number]["type"], wanted)
        end = nodes[number]["outputs"][source]
        links.append(_inner_link(len(links) + 1, (number, source), (OUTPUTS, slot), end["type"]))
        end["links"] = [*(end["links"] or []), len(links)]
        outputs.append(
            {"id": _uuid(name, "output", label), "name": label, "type": end["type"], "linkIds": [len(links)]}
        )
    right = max(node["pos"][0] + node["size"][0] for node in nodes.values())
    subgraph = {
        "id": _uuid(name),
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": max(nodes), "lastLinkId": len(links), "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": name,
        "description": blueprint.about,
        "inputNode": {"id": INPUTS, "bounding": [-240, 0, 120, 20 * len(inputs) + 40]},
        "outputNode": {"id": OUTPUTS, "bounding": [right + 120, 0, 120, 20 * len(outputs) + 40]},
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": inner["nodes"],
        "groups": [],
        "links": links,
        "extra": {},
    }
    return {
        **inner,
        "last_node_id": max(nodes) + 1,
        "last_link_id": 0,
        "nodes": [_blueprint_node(max(nodes) + 1, subgraph, blueprint)],
        "links": [],
        "definitions": {"subgraphs": [subgraph]},
    }


INPUTS, OUTPUTS = -10, -20  # ids by which links inside a subgraph name its own inputs and outputs


def _inner_link(number: int, origin: tuple[int, int], target: tuple[int, int], kind: str) -> dict[str, Any]:
    return {
        "id": number,
        "origin_id": origin[0],
        "origin_slot": origin[1],
        "target_id": target[0],
        "target_slot": target[1],
        "type": kind,
    }


def _blueprint_node(number: int, subgraph: dict[str, Any], blueprint: Blueprint) -> dict[str, Any]:
    values = {n: use.values for column in blueprint.columns for n, use in column.uses.items()}
    slots = [
        {**{key: one[key] for key in ("name", "label", "type") if key in one}, "link": None}
        for one in subgraph["inputs"]
    ]
    for slot in slots:
        if slot["name"] in WIDGET_TYPES:
            slot["widget"] = {"name": slot["name"]}
    places = [blueprint.inputs[slot["name"]][0] for slot in slots if "widget" in slot]
    return {
        "id": number,
        "type": subgraph["id"],
        "pos": [0, 0],
        "size": [400, 420],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": slots,
        "outputs": [{"name": one["name"], "type": one["type"], "links": []} for one in subgraph["outputs"]],
        "title": subgraph["name"],
        "properties": {},
        "widgets_values": [values[node][widget] for node, widget in places],
    }


def _uuid(*words: str) -> str:
    """Return an id that stays the same each time the files are made."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, "/".join(("pu-unlearn", *words))))


def _link_to(links: list, node: int, slot: int) -> int | None:
    return next((link[0] for link in links if link[3:5] == [node, slot]), None)


def _links_from(links: list, node: int, slot: int) -> list[int]:
    return [link[0] for link in links if link[1:3] == [node, slot]]


def files() -> dict[Path, str]:
    """Every file that this script writes, with its text."""
    found = {}
    for name, uses in WORKFLOWS.items():
        ui, api = ROOT / "workflows", ROOT / "tests" / "workflows"
        found[ui / f"{name}.json"] = json.dumps(ui_form(LAYOUTS[name]), indent=1, ensure_ascii=False) + "\n"
        found[api / f"{name}.json"] = json.dumps(api_form(uses), indent=1, ensure_ascii=False) + "\n"
    for name, blueprint in BLUEPRINTS.items():
        text = json.dumps(blueprint_form(name, blueprint), indent=1, ensure_ascii=False) + "\n"
        found[ROOT / "subgraphs" / f"{name}.json"] = text
    return found


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
