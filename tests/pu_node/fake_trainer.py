"""Pretends to be `python -m trainer`: writes the files and prints the events of one, without torch.

The prompt tells what goes wrong: "slow" takes 20 ms a step, "noise" prints what nodes must not repeat, "stuck" encodes
until it is stopped, and as long as there is a file of that name, "wrong" is refused.
"""

import base64
import json
import os
import signal
import sys
import time
from pathlib import Path

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC")
LORA = (2).to_bytes(8, "little") + b"{}"


RUN = []  # the folder of a training, whose events are kept there, too


def emit(event, **fields):
    line = json.dumps({"event": event, **fields})
    print(line, flush=True)
    for run in RUN:
        with (run / "events.jsonl").open("a") as file:
            file.write(line + "\n")


def train(options):
    out, name = Path(options["output-dir"]), options["name"]
    run, is_asked = out / name, []
    (run / "samples").mkdir(parents=True, exist_ok=True)
    RUN.append(run)
    signal.signal(signal.SIGTERM, lambda *_: is_asked.append(True))
    states = sorted((run / "state").glob("step*.safetensors"))
    first = int(states[-1].stem.removeprefix("step")) if "resume" in options and states else 0
    if "resume" in options:
        options = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(options))
    (run / "config.toml").touch()
    steps, prompt = int(options["steps"]), options.get("prompt", "")
    emit("plan", total_mib=3000.4, budget_mib=8000.0)
    for done in range(3):
        emit("phase", name="encode", what="images", done=done + 1, total=3)
    while "stuck" in prompt and (out / "stuck").exists() and not is_asked:
        time.sleep(0.02)
    if is_asked:
        return stopped()
    if "wrong" in prompt:
        emit("error", kind="input", message="--rank: 16 is not that of the LoRA\nName another LoRA: --init-lora")
        return 2
    emit("phase", name="prior")
    emit("prior", value=0.2, message="prior 0.2 (0.1 to 0.3)")
    emit("prior", value=0.2, message="prior: 0.20 (95 % interval 0.12 to 0.34), from 9 images")
    emit("phase", name="train")
    for step in range(first + 1, steps + 1):
        if is_asked:
            (run / "state").mkdir(exist_ok=True)
            time.sleep(0.3)
            (run / "state" / f"step{step - 1:08d}.safetensors").write_bytes(LORA)
            (out / f"{name}.safetensors").write_bytes(LORA)
            return stopped()
        emit(
            "step",
            step=step,
            of=steps,
            loss=1 / step if step != 2 else None,
            risk_unlabeled=1.0,
            ratio=None if step == 2 else 2.0,
            s_per_step=61.0,
        )
        if "noise" in prompt and step == 1:
            emit("warning", message="skipped 2 images: --skip-bad-images. To continue: python -m trainer --resume")
        time.sleep(0.02 if "slow" in prompt else 0)
    for kind in ("before", "after"):
        (run / "samples" / f"{kind}.png").write_bytes(PNG)
    (run / "loss.png").write_bytes(PNG)
    lora = out / f"{name}.safetensors"
    (run / "report.html").write_text(f"<code>sample --lora {lora}</code>")
    lora.write_bytes(LORA)
    summary = f"non-sensitive rate after: 0.9\nLoRA: {lora}\nreport: {run / 'report.html'}"
    emit("done", lora=str(lora), report=str(run / "report.html"), summary=summary, rate_before=0.5, rate_after=0.9)
    return 0


def stopped():
    emit("error", kind="stopped", message="stopped by the user")
    return 130


def make_data(options):
    out = Path(options["out"])
    seed, n = options["seed"], int(options["n-unlabeled"])
    mine = sorted((out / "unlabeled").glob("*.png"))
    if len(mine) > n or any(path.read_text() != seed for path in mine):
        message = f"{out}: --seed: the images there have others\nSay the same as then, or make another folder: --out"
        emit("error", kind="occupied", message=message)
        return 2
    for kind in ("unlabeled", "sensitive"):
        (out / kind).mkdir(parents=True, exist_ok=True)
    for i in range(n):
        (out / "unlabeled" / f"{i}.png").write_text(seed)
    (out / "sheet.png").write_bytes(PNG)
    places = {kind: str(out / kind) for kind in ("unlabeled", "sensitive")}
    text = f"prior: 0.2\nlook at them: {out / 'sheet.png'}; all about them: {out / 'report.html'}\n"
    text += "train with: python -m trainer --base x"
    emit("done", text=text, prompt="a photo", resolution=64, prior=0.2, sheet=str(out / "sheet.png"), **places)
    return 0


def audit(options):
    sheet = Path(options["output-dir"]) / "audit.png"
    sheet.parent.mkdir(parents=True, exist_ok=True)
    sheet.write_bytes(PNG)
    emit("audit", text="prior: 0.20 (95 % interval 0.12 to 0.34), from 9 images", prior=0.2, sheet=str(sheet))


def evaluate(options):
    """With a classifier unless --prompt is "unjudged"."""
    out = Path(options["out"])
    for kind in ("before", "after"):
        (out / "pictures" / kind).mkdir(parents=True, exist_ok=True)
        for i in range(100):
            (out / "pictures" / kind / f"{i:06d}.png").write_bytes(PNG)
    (out / "both.png").write_bytes(PNG)
    shares = {"before": {"rate": 0.5, "low": 0.4, "high": 0.6}, "after": {"rate": 0.9, "low": 0.8, "high": 0.95}}
    judged = {} if options["prompt"] == "unjudged" else shares
    emit("evaluate", text="rates", picture=str(out / "both.png"), **judged)


def main():
    words = [word for word in sys.argv[1:] if not word.startswith("--") and word != "jsonl"]
    pairs = [word[2:].partition("=") for word in sys.argv[1:] if word.startswith("--")]
    options = {name: value for name, _, value in pairs}
    with open(os.environ["FAKE_TRAINER_CALLS"], "a") as file:
        file.write(json.dumps([words, options]) + "\n")
    if "data" in words:
        Path(options["sheet"]).write_bytes(PNG)
        n = len(list(Path(options["unlabeled"]).glob("*")))
        emit("data", text=f"{n} unlabeled images")
    elif "plan" in words:
        emit("plan", lines=["fits"], fits=True)
    elif "audit" in words:
        audit(options)
    elif "evaluate" in words:
        evaluate(options)
    elif "make-data" in words:
        return make_data(options)
    else:
        return train(options)
    return 0


sys.exit(main())
