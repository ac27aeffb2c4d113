"""Writes the templates in workflows/ (UI form) and their API forms in tests/workflows/, from one description each.

    python tests/make_workflows.py

A test holds the files against this script, and against the nodes of a real ComfyUI.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
AUX_ID = "pu-unlearn/pu-unlearn"
OURS = {"PUDataset", "PUOptions", "PUUnlearn", "PUApplyLoRA", "PUCompare", "PUPlan"}
OURS |= {"PUMakeData", "PUAudit", "PUEvaluate", "PUCompareRuns", "PUCheckpoint"}

# node -> widgets in the order of its schema, then link inputs (name, type), then outputs (name, type)
NODES: dict[str, tuple[list[str], list[tuple[str, str]], list[tuple[str, str]]]] = {
    "PUCheckpoint": (
        ["checkpoint"],
        [],
        [("checkpoint_link", "PU_CHECKPOINT"), ("model", "MODEL"), ("clip", "CLIP"), ("vae", "VAE")],
    ),
    "PUDataset": (
        ["unlabeled", "sensitive", "prompt", "sensitive_prompt", "resolution", "skip_bad_images"],
        [],
        [("dataset", "PU_DATASET"), ("sheet", "IMAGE"), ("counts", "STRING")],
    ),
    "PUOptions": (
        [
            "bucket",
            "flip",
            "crops",
            "caption_dropout",
            "clip_skip",
            "temperature_mode",
            "min_snr_gamma",
            "sensitive_prompt_share",
            "keep_prompts",
            "batch_unlabeled",
            "batch_sensitive",
            "optimizer",
        ],
        [],
        [("options", "PU_OPTIONS")],
    ),
    "PUUnlearn": (
        ["checkpoint", "preset", "steps", "rank", "lr", "prior", "temperature", "objective", "seed", "name", "retrain"],
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
        ],
    ),
    "PUAudit": (
        ["checkpoint", "top"],
        [("dataset", "PU_DATASET"), ("checkpoint_link", "PU_CHECKPOINT")],
        [("sheet", "IMAGE"), ("report", "STRING"), ("prior", "FLOAT")],
    ),
    "PUEvaluate": (
        ["checkpoint", "lora_name", "prompt", "pictures", "resolution", "labeled", "retain_prompts"],
        [("path", "STRING"), ("checkpoint_link", "PU_CHECKPOINT")],
        [("before_after", "IMAGE"), ("report", "STRING"), ("rate_before", "FLOAT"), ("rate_after", "FLOAT")],
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
        [("grid", "IMAGE")],
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
    """One node of a workflow. links: input name -> (id of the source, its output)."""

    kind: str
    place: tuple[int, int]
    size: tuple[int, int]
    values: dict[str, Any] = field(default_factory=dict)
    links: dict[str, tuple[int, str]] = field(default_factory=dict)
    title: str = ""


TRAIN = {
    "checkpoint": "[built-in digits demo]",
    "preset": "auto",
    "steps": 600,
    "rank": 16,
    "lr": 1e-3,
    "prior": 0,
    "temperature": 3.0,
    "objective": "pu",
    "seed": 0,
    "name": "pu-digits",
}
OPTIONS = {
    "bucket": True,
    "flip": False,
    "crops": 1,
    "caption_dropout": 0.05,
    "clip_skip": 1,
    "temperature_mode": "per-timestep",
    "min_snr_gamma": 0.2,
    "sensitive_prompt_share": 0.25,
    "keep_prompts": "",
    "batch_unlabeled": 16,
    "batch_sensitive": 8,
    "optimizer": "adamw",
}
DEMO_NOTE = """## Digits: a first try, no checkpoint needed

Press **Run**. A miniature Stable Diffusion unlearns the odd digits from 400 unlabeled and 100 sensitive images,
in about two minutes on a CPU. The node shows the two losses while it trains; the X of the queue cancels at any time.

*Before / after*: the same seeds, without and with the LoRA."""
SD_NOTE = """## Unlearn with your own checkpoint

1. Put images into two subfolders of `ComfyUI/input`: what you train on anyway (*unlabeled*), and some twenty
   examples of what must not come out (*sensitive*). Press R.
2. Choose the checkpoint twice (loader and PU Unlearn), the folders and the prompt.
3. **Run**. PU Plan says beforehand whether it fits your card. The LoRA is listed by LoraLoader after R."""

WORKFLOWS: dict[str, dict[int, Use]] = {
    "digits-demo-without-checkpoint": {
        1: Use("MarkdownNote", (0, 0), (420, 220), {"text": DEMO_NOTE}, title="Read me"),
        2: Use("PUOptions", (0, 270), (320, 330), OPTIONS),
        3: Use("PUUnlearn", (470, 0), (420, 900), {**TRAIN, "retrain": False}, {"options": (2, "options")}),
        4: Use("PreviewImage", (940, 0), (480, 330), links={"images": (3, "curve")}, title="Loss"),
        5: Use("PreviewImage", (940, 390), (620, 380), links={"images": (3, "before_after")}, title="Before / after"),
        6: Use("PreviewAny", (940, 830), (620, 160), links={"source": (3, "report")}, title="Report"),
    },
    "unlearn-with-sd15-checkpoint": {
        1: Use("MarkdownNote", (0, 0), (420, 270), {"text": SD_NOTE}, title="Read me"),
        2: Use("CheckpointLoaderSimple", (0, 320), (420, 100), {"ckpt_name": "v1-5-pruned-emaonly.safetensors"}),
        3: Use(
            "PUDataset",
            (0, 480),
            (420, 260),
            {
                "unlabeled": "unlabeled",
                "sensitive": "sensitive",
                "prompt": "a photo of a man",
                "sensitive_prompt": "",
                "resolution": 512,
                "skip_bad_images": False,
            },
        ),
        4: Use("PreviewImage", (0, 800), (420, 330), links={"images": (3, "sheet")}, title="What will be trained on"),
        5: Use(
            "PUPlan",
            (470, 0),
            (400, 340),
            {
                **TRAIN,
                "checkpoint": "v1-5-pruned-emaonly.safetensors",
                "steps": 1000,
                "lr": 1e-4,
                "temperature": 2.0,
                "name": "pu-lora",
            },
            {"dataset": (3, "dataset")},
        ),
        6: Use("PreviewImage", (470, 400), (400, 280), links={"images": (5, "table")}, title="Will it fit?"),
        7: Use(
            "PUUnlearn",
            (920, 0),
            (420, 900),
            {
                **TRAIN,
                "checkpoint": "v1-5-pruned-emaonly.safetensors",
                "steps": 1000,
                "lr": 1e-4,
                "temperature": 2.0,
                "name": "pu-lora",
                "retrain": False,
            },
            {"dataset": (3, "dataset"), "plan": (5, "plan")},
        ),
        8: Use(
            "PUApplyLoRA",
            (1390, 0),
            (360, 140),
            {"lora_name": "[from input]", "strength": 1.0},
            {"model": (2, "MODEL"), "clip": (2, "CLIP"), "lora": (7, "lora")},
        ),
        9: Use(
            "PUCompare",
            (1390, 200),
            (360, 380),
            {
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
            },
            {"before": (2, "MODEL"), "after": (8, "model"), "clip": (2, "CLIP"), "vae": (2, "VAE")},
        ),
        10: Use("PreviewImage", (1800, 0), (620, 900), links={"images": (9, "grid")}, title="Before / after"),
        11: Use("PreviewImage", (1390, 640), (360, 260), links={"images": (7, "curve")}, title="Loss"),
        12: Use("PreviewAny", (920, 960), (830, 170), links={"source": (7, "report")}, title="Report"),
    },
}


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


def ui_form(uses: dict[int, Use]) -> dict[str, Any]:
    """What the page saves and opens."""
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
                "pos": list(use.place),
                "size": list(use.size),
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
                "properties": {"Node name for S&R": use.kind, **({"aux_id": AUX_ID} if use.kind in OURS else {})},
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


def _link_to(links: list, node: int, slot: int) -> int | None:
    return next((link[0] for link in links if link[3:5] == [node, slot]), None)


def _links_from(links: list, node: int, slot: int) -> list[int]:
    return [link[0] for link in links if link[1:3] == [node, slot]]


def files() -> dict[Path, str]:
    """Every file that this script writes, with its text."""
    found = {}
    for name, uses in WORKFLOWS.items():
        ui, api = ROOT / "workflows", ROOT / "tests" / "workflows"
        found[ui / f"{name}.json"] = json.dumps(ui_form(uses), indent=1, ensure_ascii=False) + "\n"
        found[api / f"{name}.json"] = json.dumps(api_form(uses), indent=1, ensure_ascii=False) + "\n"
    return found


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
