"""Every page: with all its parts and without those that may be missing, self-contained, and with all text escaped."""

import base64
import hashlib
import re
from dataclasses import asdict
from html.parser import HTMLParser

import jinja2
import numpy as np
import pytest
import torch
from PIL import Image

from trainer.audit import command as audit
from trainer.config.train_config import TrainConfig
from trainer.data.contact_sheet import save_grid
from trainer.data.folders import Folders, Sample
from trainer.data.job import TrainingJob
from trainer.evaluation import compare_command, findings
from trainer.evaluation import report as evaluation_report
from trainer.evaluation.options import Options
from trainer.evaluation.pictures import PictureSets
from trainer.experiments import reproduce
from trainer.generation import dataset_report
from trainer.metrics.digit_judge import Rate
from trainer.metrics.judges import Accuracy, Judge
from trainer.models.base_model import Base
from trainer.objective.class_prior import Prior
from trainer.reporting import html
from trainer.reporting.run_dir import RunDir
from trainer.reporting.run_history import RunSummary
from trainer.training import report as training_report
from trainer.training.before_after import Evaluation, NamedPrompt
from trainer.training.learner import TrainedModel

EVIL = "<script>alert('1')</script>&\""
STEP = {"event": "step", "step": 1, "of": 1, "risk_unlabeled": 0.5, "risk_sensitive": 0.4, "normal_risk": 0.3}
STEP |= {"ratio": None, "sign_flips": 0, "s_per_step": 0.5, "peak_mib": 100.0}
PRIOR = Prior(0.2, 0.15, 0.26, 0.3, 0.97, 400, 100)
UNKNOWN_PRIOR = Prior(0.5, 0.1, 0.9, 0.6, 0.6, 10, 4)


def png(folder, name="x.png"):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 32)).save(folder / name)
    return folder / name


def training(folder, *, full):
    config = TrainConfig(metadata="full", base="builtin", prompt=EVIL, prior=0.2, network="lora" if full else "full")
    folders = Folders([Sample(folder / "a.png", EVIL)], [Sample(folder / "b.png", None)] if full else [], [], [])
    growth = {"trained": 1.5, "held_out": 1.0} if full else {}
    trained = TrainedModel(TrainingJob(config, Base(folder), folders), None, torch.device("cpu"), growth)
    grid = png(folder) if full else None
    rates = [Rate(hits, 20, {EVIL: hits}, 5.0) if full else None for hits in (10, 19, 20)]
    black = np.zeros((2, 32, 64, 3), np.uint8)
    named = (NamedPrompt(EVIL, black, black, 0.0, 0.0),) if full else ()
    evaluation = Evaluation(EVIL, grid, grid, *rates, named)
    run_dir = RunDir(folder, "run")
    run_dir.root.mkdir()
    training_report.write(trained, evaluation, folder / "run.safetensors", run_dir)
    return run_dir.report


def evaluation(folder, *, full):
    files = [png(folder, f"{i}.png") for i in range(3)]
    both = {EVIL: (files, files)} if full else {}
    sets = PictureSets(before=files, after=files, retained=both, named=both)
    judge = Judge(EVIL, None, Accuracy(90, 100, 80, 100)) if full else None
    verdicts = (np.array([False] * 8 + [True]), np.array([True] * 9)) if full else (None, None)
    numbers = {"prompt": EVIL, "n": 9, "strength": 1.0, "judge": judge and {"name": EVIL, "accuracy": None}}
    if full:
        numbers["judge"]["accuracy"] = asdict(judge.accuracy)
    rates = findings.rates(*verdicts, judge)
    share = findings.share(verdicts[1])
    numbers |= rates
    numbers["paraphrases"] = numbers["named"] = {EVIL: rates} if full else {}
    numbers["quality"] = {kind: [{"name": EVIL, "value": 1.5}] for kind in ("before", "after")} if full else {}
    numbers["drift"] = {EVIL: {"pixels": 0.1, "latents": 0.2}} if full else {}
    numbers["strengths"] = [{"strength": s, **share, "drift": s} for s in (0.0, 1.0)] if full else []
    numbers["relearned"] = {"with the LoRA": [{"steps": 5, **share}]} if full else {}
    numbers["inverted"] = {"base model": share} if full else {}
    found = findings.describe(numbers, judge, None if full else EVIL)
    return evaluation_report.write(Options(out=folder, prompt=EVIL, n=9), sets, found).page


def comparison(folder, *, full):
    measured = {"before": {"rate": 0.5, "low": 0.4, "high": 0.6, "n": 9}, "prompt": EVIL}
    measured["after"] = {**measured["before"], "rate": 0.9}
    measured["judge"] = {"name": EVIL, "accuracy": asdict(Accuracy(90, 100, 80, 100))}
    runs = []
    for name, temperature in ((EVIL.replace("/", ""), 2.0), ("other", 6.0 if full else 2.0)):
        settings = TrainConfig(prompt=EVIL, temperature=temperature).model_dump(mode="json")
        steps, done = ([STEP], {"event": "done"}) if full else ([], {})
        runs.append(RunSummary(name, folder / "run", settings, steps, done, measured if full else {}))
    if full:
        png(folder / "run" / "samples", "after.png")
    heads, table = compare_command.rows(runs)
    compare_command.write_page(runs, heads, table, folder / "compare.html")
    return folder / "compare.html"


def made_data(folder, *, full):
    prompts = {"normal": EVIL, "hidden": EVIL, "sensitive": EVIL if full else "x"}
    counts = {"normal": 4, "hidden": 1, "sensitive": 3}
    settings = {"base": EVIL, "negative_prompt": EVIL if full else None, "steps": 2}
    png(folder, "sheet.png")
    result = {"counts": counts, "prompts": prompts, "prior": 0.2, "settings": settings, "train": EVIL}
    return dataset_report.write(result, folder)


def audited(folder, *, full):
    paths = [folder / f"{EVIL.replace('/', '')}{i}.png" for i in range(3)]
    pairs = [(paths[0], paths[1]), (paths[1], paths[2])] if full else []
    groups = [(0.5, [Sample(path, EVIL) for path in paths])] if full else []
    result = audit.Result(PRIOR if full else None, [(path, 0.5) for path in paths], pairs, pairs[1:], groups)
    png(folder, "audit.png")
    png(folder, "audit-groups.png")
    return audit.write_page(folder, result, 2, [EVIL] if full else [])


def prior(folder, *, full):
    values = {"prior": PRIOR, "warning": None} if full else {"prior": UNKNOWN_PRIOR, "warning": EVIL}
    html.save(folder / "prior.html", "prior.html", title=EVIL, **values)
    return folder / "prior.html"


def reproduction(folder, *, full):
    png(folder, "pu-seed0.png")
    found = {"objective": "pu", "seed": 0, "judge": EVIL, "train_s": 3, "recipe": {"settings": {"name": EVIL}}}
    if full:
        found |= {"rate": 0.9, "low": 0.8, "high": 0.95, "n": 20, "frechet": 2.0, "distance": EVIL}
    experiment = reproduce.Experiment("mnist", {"name": EVIL})
    reproduce.report(experiment, [found], *reproduce.table([found]), folder)
    return folder / "reproduce.html"


PAGES = {  # what writes each template, and what the page answers, with all its parts and without
    "training.html": (training, "95 % of pictures are normal now; 50 % before.", "Trained for 1000 steps."),
    "evaluation.html": (
        evaluation,
        "100 % of pictures are normal now; 11.1 % before.",
        "No rate: no judge was named.",
    ),
    "comparison.html": (comparison, "Highest non-sensitive rate: 90.0 %", "2 runs with the same settings."),
    "made_data.html": (made_data, "5 unlabeled images, 20.0 % of them sensitive, and 3 sensitive images", ""),
    "audit.html": (audited, "About 20 % of the unlabeled images are sensitive", "3 unlabeled images, ranked"),
    "prior.html": (
        prior,
        "About 20 % of the unlabeled images are sensitive",
        "The images do not tell how many of the unlabeled ones are sensitive: 10 % to 90 %.",
    ),
    "reproduction.html": (reproduction, "Normal pictures: 90.0 % with pu.", "Experiment mnist"),
}


class Page(HTMLParser):
    """Tags with their attributes, and the text by tag."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.open, self.texts, self.order, self.first = [], [], {}, [], None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
            self.order.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "h1" in self.open and data.strip():
            self.first = self.first or self.order[self.order.index("body") :]
        if self.open:
            self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data


def test_every_template_is_a_page_here():
    templates = {path.name for path in html.TEMPLATES.glob("*.html")} - {"base.html", "macros.html"}
    assert templates == PAGES.keys()


@pytest.mark.parametrize("full", [True, False], ids=["full", "sparse"])
@pytest.mark.parametrize("template", PAGES)
def test_page(template, full, tmp_path):
    """Well-formed, answers in its first heading, loads nothing, escapes everything."""
    write, with_all, without = PAGES[template]
    path = write(tmp_path, full=full)
    page = Page(path)
    assert page.open == []
    answer = " ".join(page.texts["h1"].split())
    assert (with_all if full else without) in answer
    assert page.first == ["body", "header", "p", "h1"]  # nothing but the page's name stands before the answer
    tags = {tag for tag, _ in page.tags}
    assert {"h1", "style", "title", "meta"} <= tags
    assert not tags & {"link", "iframe", "object", "a"}
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert all(
        re.match("data:image/(png|jpeg);base64,", attributes["src"]) for tag, attributes in page.tags if tag == "img"
    )
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")
    assert "width=device-width" in str([attributes for tag, attributes in page.tags if tag == "meta"])
    text = path.read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(" in text
    assert "://" not in text
    script = (html.TEMPLATES / "page.js").read_text(encoding="utf-8")
    assert re.findall(r"<script.*?</script>", text, re.DOTALL) == [f"<script>{script}</script>"]  # the only one
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text  # which a browser runs; no other


def test_missing_values_are_errors(tmp_path):
    with pytest.raises(jinja2.UndefinedError):
        html.save(tmp_path / "x.html", "prior.html", title="x", warning=None)


def test_a_page_that_cannot_be_rendered_is_not_written(tmp_path):
    with pytest.raises(jinja2.UndefinedError):
        html.save(tmp_path / "x.html", "prior.html", title="x")
    assert not list(tmp_path.iterdir())


def test_one_stylesheet_for_light_dark_and_narrow():
    style = (html.TEMPLATES / "style.css").read_text(encoding="utf-8")
    assert "prefers-color-scheme: dark" in style
    assert "url(" not in style
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    names = lambda text: set(re.findall(r"(--[\w-]+):", text))  # noqa: E731
    assert names(light) == names(dark.split("* {")[0])  # no colour of the light page stays in the dark one


DOUBTFUL = {  # a judge, and its verdicts before and after -> a doubt
    "none": (None, None),
    "not measured": (None, [True] * 400),
    "chance": (Accuracy(50, 100, 50, 100), None),
    "often wrong": (Accuracy(80, 100, 80, 100), [True] * 400),
    "no difference": (Accuracy(990, 1000, 990, 1000), [False] * 200 + [True] * 200),
    "few": (Accuracy(990, 1000, 990, 1000), [True] * 9),
}


@pytest.mark.parametrize("name", DOUBTFUL)
def test_doubts_are_marked_on_the_page(name, tmp_path):
    """The sentences are those of `findings.describe`."""
    accuracy, after = DOUBTFUL[name]
    judge = None if name == "none" else Judge("a judge", None, accuracy)
    numbers = {key: {} for key in ("paraphrases", "named", "quality", "drift", "relearned", "inverted")}
    numbers |= {"prompt": "x", "strengths": [], "judge": judge and {"name": "a judge", "accuracy": None}}
    if after:
        before = [False] * 200 + [True] * 200 if len(after) == 400 else [False] * len(after)
        numbers |= findings.rates(np.array(before), np.array(after), judge)
    files = [png(tmp_path)]
    found = findings.describe(numbers, judge, None)
    page = evaluation_report.write(Options(out=tmp_path, n=1), PictureSets(before=files, after=files), found).page
    marked = re.findall(r'<p class="warning">(.*?)</p>', page.read_text(encoding="utf-8"))
    assert len(marked) == 1, marked


def test_the_script_reads_no_text_as_html():
    """Names and prompts on a page are text; the script puts them in as text, and asks nobody for anything."""
    script = (html.TEMPLATES / "page.js").read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval|fetch|XMLHttp|import|</", script)


def test_before_and_after_stand_side_by_side_for_each_seed(tmp_path):
    """The tiles of both grids, and large ones as JPEG, the first 16 of them unfolded."""
    images = np.stack([np.full((200, 200, 3), 10 * i, np.uint8) for i in range(18)])
    for name, values in (("before", images), ("after", 255 - images)):
        save_grid(values, tmp_path / f"{name}.png")
    pairs = training_report._pairs(
        Evaluation("x", tmp_path / "before.png", tmp_path / "after.png", None, None, None), 18
    )
    assert [seed for seed, *_ in pairs] == list(range(18))
    for i, (_, before, after) in enumerate(pairs):
        assert np.array_equal(before, images[i])
        assert np.array_equal(after, 255 - images[i])
    macros = html._environment().from_string('{% from "macros.html" import before_after %}{{ before_after(pairs) }}')
    text = macros.render(pairs=pairs)
    assert text.count("data:image/jpeg") == 36
    assert text.index("2 more pairs") < text.index("seed 16, before")
    assert text.index("seed 15, after") < text.index("2 more pairs")
