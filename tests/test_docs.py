"""Links, commands and names in the pages: links lead somewhere, commands are accepted by the real parsers."""

import fnmatch
import importlib
import json
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

from trainer.config.arguments import read_toml, tomllib
from trainer.config.kohya_flags import FLAGS
from trainer.config.train_config import TrainConfig, to_toml
from trainer.reporting.run_dir import RunDir

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("pu_node/web/docs/*.md")])
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
SHELL = ("", "sh", "bash")
PROGRAMS = ("accelerate", "pip", "python", "torchrun")  # what is checked; spans that begin with one are commands, too
UNCHECKED = {".", ".ci/run", "cd", "cp", "git", "mkdir", "mypy", "pre-commit", "pyright", "ruff"}
# options of other programs that the text names
FOREIGN = {"--pu-unlearn-allow-dir", "--num_processes", "--multi_gpu", "--dry-run"}
# where each command begins its work: what comes before has read and checked every option
WORK = (
    "trainer.audit.moving.undo",
    "trainer.__main__.train_command",
    "trainer.data.inputs.run",
    "trainer.evaluation.compare_command.read_run",
    "trainer.evaluation.sweep.run_trainer",
    "trainer.experiments.digits.before",
    "trainer.experiments.digits.table",
    "trainer.experiments.prior_simulation.load",
    "trainer.experiments.prior_simulation.run",
    "trainer.experiments.reproduce.run",
    "trainer.experiments.run_commands.run_all",
    "trainer.memory.devices.choose_device",
    "trainer.models.hub.resolve_model_path",
    "trainer.ui._pack",
)
FOLDERS = ("unlabeled", "sensitive", "data", "labeled", "normal", "allow-dir", "checkpoint-dir")


class Accepted(BaseException):
    """A command has come to its work. No Exception: no command may take it for a failure of its own."""


def fenced(page, languages):
    return [text for language, text in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def spans(page):
    """Code in running text and tables, where a bar is escaped."""
    prose = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [span.replace("\\|", "|") for span in SPAN.findall(prose)]


def commands_in(text):
    """The commands of shell text, each as words."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            found.append(words[:end])
            words = words[end + 1 :]
    return found


def commands():
    for page in (page for page in PAGES if page.name != "CHANGELOG.md"):  # which names commands without their options
        texts = fenced(page, SHELL)
        texts += [span for span in spans(page) if span.split()[0] in PROGRAMS and " " in span and "…" not in span]
        for text in texts:
            for words in commands_in(text):
                yield pytest.param(words, id=f"{page.name}: {shlex.join(words)}")


def anchors(page):
    """GitHub's names of a page's headings."""
    seen = Counter()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        yield f"{name}-{seen[name]}" if seen[name] else name
        seen[name] += 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in list(anchors(target))):
            broken.append(link)
    assert broken == []


def test_pages_and_commands_were_found():
    """What the other tests look at: a pattern that matches nothing would pass them all."""
    named = {page.name for page in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "SECURITY.md", "training.md", "PUUnlearn.md"} <= named
    called = {word for found in commands() for words in found.values for word in words[3:4]}
    named = {"audit", "bench", "compare", "data", "evaluate", "make-data", "plan", "prior", "reproduce", "sample", "ui"}
    assert named <= called


def test_the_index_names_every_page():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    names = [page.name for page in ROOT.glob("docs/*.md") if page.name != "README.md"]
    assert [name for name in names if f"({name})" not in index] == []


@pytest.mark.parametrize(("page", "lines"), [("README.md", 150), ("CONTRIBUTING.md", 120)])
def test_pages_are_short(page, lines):
    assert len((ROOT / page).read_text(encoding="utf-8").splitlines()) <= lines


def test_an_example_of_style_is_code_as_it_stands():
    """Docstrings that a page shows as a model are those of the code."""
    (example,) = fenced(ROOT / "CONTRIBUTING.md", ("python",))
    assert example in (ROOT / "trainer" / "objective" / "pu_loss.py").read_text(encoding="utf-8")


@pytest.fixture
def accepts(trainer, monkeypatch, tmp_path):
    """A function: words of `python -m trainer` -> whether they bring the command to its work, or to a good end."""

    def begin(*_args, **_fields):
        raise Accepted

    for place in WORK:
        monkeypatch.setattr(place, begin)

    def call(words):
        make_stand_ins(words, tmp_path)
        try:
            done = trainer(*words, cwd=tmp_path)
        except Accepted:
            return
        assert done.returncode == 0, done.stderr

    return call


def make_stand_ins(words, folder):
    """Files, folders and an interrupted run such as a command names, so that its parser finds them."""
    given = {}
    for before, word in zip(["", *words], words, strict=False):
        name, _, value = (word if "=" in word else f"{before}={word}").removeprefix("--").partition("=")
        given[name] = value
        if name in FOLDERS:
            for place in ("", "normal", "sensitive", "unlabeled"):
                (folder / value / place).mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8)).save(folder / value / place / "image.png")
        elif Path(value).suffix in (".safetensors", ".ckpt"):
            (folder / value).parent.mkdir(parents=True, exist_ok=True)
            (folder / value).touch()
        elif name == "config":
            (folder / value).parent.mkdir(parents=True, exist_ok=True)
            (folder / value).write_bytes((ROOT / value).read_bytes() if (ROOT / value).exists() else b"")
    if "--resume" in words:
        run = RunDir(folder / given.get("output-dir", "output"), given.get("name", "pu-lora"))
        run.save_config(to_toml(TrainConfig(base="builtin")))
        (run.root / "state").mkdir()
        (run.root / "state" / "step00000010.safetensors").touch()


def check(words, accepts, monkeypatch):
    program, *rest = words
    assert program in (*PROGRAMS, *UNCHECKED), f"add a check for {program}"
    if program == "pip":
        check_pip(rest)
    elif program == "python":
        check_python(rest, accepts, monkeypatch)
    elif program == "accelerate":
        from accelerate.commands.launch import launch_command_parser

        launched = launch_command_parser().parse_args(rest[1:])
        assert (rest[0], launched.module, launched.training_script) == ("launch", True, "trainer")
        accepts(launched.training_script_args)
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        launched = get_args_parser().parse_args(rest)
        assert (launched.module, launched.training_script) == (True, "trainer")
        accepts(launched.training_script_args)


def check_python(rest, accepts, monkeypatch):
    if rest[0] != "-m":
        assert (ROOT / rest[0]).is_file()
        return
    module, *words = rest[1:]
    if module == "trainer":
        accepts(words)
    elif module in ("trainer.experiments.digits", "trainer.experiments.prior_simulation"):
        monkeypatch.setattr("sys.argv", [module, *words])
        with pytest.raises(Accepted):
            importlib.import_module(module).main()
    elif module == "pytest":
        check_pytest(words)
    else:
        assert module in ("pip", "trainer.config", "venv")
        if module == "pip":
            check_pip(words)


def check_pytest(words):
    """Files exist, and so do the tests that are named in them."""
    valued = ("-m", "-k", "-n", "--dist")
    for place in (word for before, word in zip(["", *words], words, strict=False) if before not in valued):
        path, _, test = place.partition("::")
        if place[0] != "-":
            assert (ROOT / path).exists(), place
            assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8") if test else True, place


def check_pip(words):
    """Requirements are well-formed, extras and files exist."""
    assert words[0] == "install"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    rest = iter(words[1:])
    for word in rest:
        if word == "-r":
            assert (ROOT / next(rest)).is_file()
        elif word == "-e":
            place, _, named = next(rest).partition("[")
            assert place == "."
            assert {name for name in named.rstrip("]").split(",") if name} <= set(extras)
        elif word == "--index-url":
            assert next(rest).startswith("https://")
        elif word != "--dry-run":
            Requirement(word)


@pytest.mark.parametrize("words", list(commands()))
def test_commands_are_accepted(words, accepts, monkeypatch):
    check(words, accepts, monkeypatch)


WRONG = ("--stepps 5", "audit --topp 3", "evaluate --n 5 --strenghts 1", "plan --vram-budget x", "sample --out x.png")


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_option_is_refused(words, accepts):
    """The tests above can fail."""
    with pytest.raises(AssertionError):
        accepts(words.split())


def test_options_in_the_text_exist(trainer):
    names = ("audit", "bench", "compare", "evaluate", "make-data", "reproduce", "sample", "ui")
    helps = [trainer("--help", "all").stdout, *(trainer(name, "--help").stdout for name in names)]
    known = {option for text in helps for option in re.findall(r"--[a-z][\w-]*", text)}
    known |= FOREIGN | {f"--{flag}" for flag in FLAGS}
    named = {
        (page.name, word.partition("=")[0])
        for page in PAGES
        for span in spans(page)
        if span.split()[0] not in (*PROGRAMS, *UNCHECKED)
        for word in span.split()
        if re.match(r"--\w", word)
    }
    assert len(named) > 100
    assert sorted(found for found in named if found[1] not in known) == []


def test_files_in_the_text_exist():
    folders = ("docs", "pu_node", "scripts", "tests", "trainer", "workflows")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix != ".pyc"]
    there = [path.relative_to(ROOT).as_posix() for path in (*files, *ROOT.glob("*"))]
    named = {
        (page.name, span.rstrip("/"))
        for page in PAGES
        for span in spans(page)
        if re.fullmatch(r"[\w.*/-]+\.py|(docs|pu_node|tests|trainer)/[\w./-]+", span)
    }
    assert len(named) > 50
    assert [found for found in sorted(named) if not any(fnmatch.fnmatch(f"/{p}", f"*/{found[1]}") for p in there)] == []


def test_examples_of_files_are_valid(tmp_path):
    for i, text in enumerate(text for page in PAGES for text in fenced(page, ("toml",))):
        problems = []
        (tmp_path / f"{i}.toml").write_text(text, encoding="utf-8")
        read_toml(tmp_path / f"{i}.toml", problems)
        assert problems == []
    events = [json.loads(line) for page in PAGES for text in fenced(page, ("jsonl",)) for line in text.splitlines()]
    assert {event["v"] for event in events} == {1}


@pytest.mark.long
def test_the_tour_runs_as_it_stands(trainer, tmp_path):
    """Every command of "A shorter tour", one after the other, for real."""
    text = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
    tour = text.partition("## A shorter tour\n")[2].partition("\n## ")[0]
    found = [words for _, block in FENCE.findall(tour) for words in commands_in(block)]
    assert len(found) >= 6
    for words in found:
        assert words[:3] == ["python", "-m", "trainer"]
        done = trainer(*words[3:], cwd=tmp_path)
        assert done.returncode == 0, (words, done.stderr)
