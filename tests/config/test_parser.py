"""Options made from settings classes: the same for every command, none lost, and all problems in one answer."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel

from trainer.common.errors import UserError
from trainer.config.parser import (
    Directory,
    Flag,
    Group,
    JsonLines,
    Positive,
    Takes,
    Texts,
    command_parser,
    read_argv,
    read_settings,
    taken,
    validated,
)
from trainer.config.train_config import Count, option

ROOT = Path(__file__).parents[2]

OPTIONS = {  # of each command: users' scripts name them
    "": """config resume dry-run events follow-parent sheet lowvram medvram highvram base vae prediction-type
    settings-from sidecars no-sidecars log-with sample-prompts name-prompts unlabeled sensitive data prompt
    sensitive-prompt resolution bucket no-bucket flip no-flip crops caption-dropout clip-skip exclude
    skip-bad-images no-skip-bad-images objective prior beta temperature temperature-mode sensitive-weight
    min-snr-gamma calibration-samples sensitive-prompt-share keep-prompts steps batch-unlabeled
    batch-sensitive lr warmup-steps max-grad-norm weight-decay network rank alpha optimizer precision
    save-precision device seed vram-budget micro-batch checkpointing weights offload attention init-lora
    name output-dir save-state-every keep-states keep-cache no-keep-cache logging-dir save-merged metadata
    images sample-every sample-steps guidance rate-images recursive no-recursive folder-repeats
    no-folder-repeats caption-prefix caption-suffix shuffle-caption no-shuffle-caption keep-tokens
    max-token-length noise-offset save-every lr-scheduler lr-scheduler-cycles lr-scheduler-power""",
    "evaluate": """base vae prediction-type lora strength device resolution steps guidance clip-skip unlearned prompt n
    first-seed precision out labeled encoder judge sensitive-labels clip normal-text sensitive-text normal
    retain-prompts paraphrases name-prompts strengths sensitive relearn relearn-lr invert events follow-parent""",
    "sample": """base vae prediction-type lora strength device resolution steps sampler negative-prompt guidance
    clip-skip max-token-length prompt seeds out""",
    "make-data": """events follow-parent base vae prediction-type out unlabeled-prompt n-unlabeled contaminate-prompt
    n-contaminate sensitive-prompt n-sensitive sensitive-captions no-sensitive-captions negative-prompt
    resolution steps guidance sampler clip-skip seed micro-batch precision device""",
    "audit": "score encoder lora top move-to apply exclude",
    "bench": "settings resolution micro-batch samples rank repeat precision device yardstick small",
    "reproduce": "scale seeds objectives steps datasets out device",
    "compare": "sweep out events follow-parent",
}


@pytest.fixture(scope="module")
def helps():
    """Each command's --help, all from one new process, and the slow packages that were imported for them."""
    code = (
        "import contextlib, io, json, sys\n"
        "from trainer.__main__ import main\n"
        "found = {}\n"
        "for command in sys.argv[1:]:\n"
        "    text = io.StringIO()\n"
        "    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):\n"
        "        main([*command.split(), '--help', *([] if command else ['all'])])\n"
        "    found[command] = text.getvalue()\n"
        "slow = [m for m in ('torch', 'diffusers', 'transformers', 'peft', 'scipy', 'jinja2') if m in sys.modules]\n"
        "print(json.dumps([found, slow]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *OPTIONS], capture_output=True, text=True, cwd=ROOT, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("command", OPTIONS)
def test_no_option_is_lost(command, helps):
    found = {word.strip("[],") for word in helps[0][command].split() if word.strip("[").startswith("--")}
    assert {f"--{name}" for name in OPTIONS[command].split()} <= found


def test_help_waits_for_no_slow_import(helps):
    assert helps[1] == []


class Example(BaseModel):
    """One field of each kind."""

    steps: Positive = option(25, "number of steps", also=("iterations",))
    share: float = option(0.5, "a share of 100 %", gt=0, lt=1)
    count: Count = option("auto", "a number, or auto")
    kind: Literal["a", "b"] = option("a", "a kind")
    place: Path | None = option(None, "a place")
    flip: bool = option(True, "a switch")
    words: Annotated[Texts, Group("more")] = option([], "words, separated by |")
    folder: Directory = option(None, "a folder")
    size: int = option(512, "a size [512; 64 for small ones]")
    once: Flag = option(False, "a flag")
    events: JsonLines = option(False, "events")
    numbers: Annotated[int, Takes("STEPS")] = option(0, "an attack")


def parser():
    return command_parser("example", Example, "An example.")


def read(*words):
    return read_settings(words, parser(), Example, lambda settings: [])


def test_values_are_read_by_their_types():
    found = read("--iterations=3", "--share", "0.25", "--kind", "b", "--place", "x", "--no-flip", "--words", "u| v|u|")
    assert (found.steps, found.share, found.kind, found.place, found.flip) == (3, 0.25, "b", Path("x"), False)
    assert found.words == ["u", "v"]
    assert (found.folder, found.once, found.events, found.count) == (None, False, False, "auto")
    found = read("--once", "--events", "jsonl", "--count", "7", "--folder", "d")
    assert (found.once, found.events, found.count, found.folder) == (True, True, 7, Path("d"))


def test_help_shows_values_defaults_and_groups():
    text = " ".join(parser().format_help().split())
    for shown in (
        "--steps N, --iterations N number of steps [25]",
        "--share X a share of 100 % [0.5]",
        "--count N|auto a number, or auto [auto]",
        "--kind a|b a kind [a]",
        "--place PATH a place --flip, --no-flip a switch [on]",
        "more: --words A|B words, separated by | --folder DIR a folder",
        "--size N a size [512; 64 for small ones]",
        "--once a flag --events jsonl events --numbers STEPS an attack",
    ):
        assert shown in text, text
    assert "--no-once" not in text


def test_all_problems_come_in_one_answer():
    words = ["--steps", "0", "--share", "x", "--kinds", "b", "--events", "xml", "stray", "--kind", "c"]
    with pytest.raises(UserError) as error:
        read_settings(words, parser(), Example, lambda settings: [f"--steps: {settings.steps} contradicts itself"])
    assert str(error.value).splitlines() == [
        "--kinds: no such option, did you mean --kind?",
        "stray: unexpected; every setting is an option, such as --steps 500",
        "--steps: must be a whole number from 1, got '0'",
        "--share: must be a valid number, unable to parse string as a number, got 'x'",
        "--kind: must be 'a' or 'b', got 'c'",
        "--events: must be jsonl, got 'xml'",
        "--steps: 25 contradicts itself",  # the default in place of the faulty value
    ]


def test_what_argparse_refuses_is_a_problem_like_others():
    problems = []
    assert read_argv(["--steps"], parser(), problems) == {}
    assert problems == ["--steps: expected one argument"]


def test_faulty_values_give_way_to_defaults_and_the_rest_stays():
    problems = []
    found = validated(Example, {"steps": "many", "size": "3"}, problems)
    assert (found.steps, found.size, len(problems)) == (25, 3, 1)


def test_options_of_two_classes_are_told_apart():
    class Other(BaseModel):
        name: str = option("x", "a name")

    given, problems = {"steps": "3", "name": "y"}, []
    assert taken(Other, given, problems) == Other(name="y")
    assert (given, problems) == ({"steps": "3"}, [])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["evaluate", "--n", "x", "--lora", "nowhere", "--stepz", "3", "--strengths", "1,much"],
            ["--n: must be a valid integer", "--lora: no file nowhere", "--stepz: no such option", "--strengths: must"],
        ),
        (["sample", "--seeds", "a", "--out", "x.gif"], ["--seeds: must be like", "must end in .png", "--prompt: say"]),
        (["bench", "--settings", "plain,fastest", "--device", "gpu"], ["no 'fastest'; there are plain", "--device:"]),
        (["reproduce", "mnist-even", "--seeds", "a", "--objectives", "pn"], ["must be like 0,1,2", "must be of unsu"]),
        (["reproduce"], ["the following arguments are required: name"]),
        (["audit", "--top", "0", "--apply", "--score", "lora"], ["--top: must be", "--move-to", "--score lora and"]),
        (["compare", "a", "b", "--events", "xml"], ["--events: must be jsonl, got 'xml'"]),
    ],
)
def test_commands_report_all_problems(words, said, trainer):
    done = trainer(*words)
    assert done.returncode == 2
    assert all(sentence in done.stderr for sentence in said), done.stderr


def run(*words):
    done = subprocess.run([sys.executable, "-m", "trainer", *words], capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


def test_help_shows_what_matters_first_and_every_command():
    from trainer.__main__ import MODULES
    from trainer.config.arguments import COMMANDS, FIRST

    code, text, _ = run("--help")
    assert code == 0
    assert len(text.splitlines()) < 45
    first = text.partition("commands")[0].splitlines()
    assert [line.split()[0] for line in first if line.startswith("  --")] == [f"--{name}" for name in FIRST]
    for name, what in COMMANDS.items():
        assert f"{name} {what}" in " ".join(text.split())
    assert MODULES.keys() == COMMANDS.keys() - {"data"}
    _, whole, _ = run("--help", "all")
    titles = [line.partition(":")[0] for line in whole.splitlines() if line.endswith(":") and line[0] != " "]
    assert titles == ["options", "what to learn from", "the objective", "training", "memory", "results"]


def test_a_misspelt_command_is_no_training():
    assert run("evalute", "--help") == (2, "", "error: evalute: no such command, did you mean evaluate?\n")


def test_train_is_a_command_too():
    assert run("train", "--dry-run") == run("--dry-run")


def test_another_programs_option_leads_to_ours():
    code, _, text = run("--learnig-rate", "1e-3", "--lowvram", "--highvram", "--prior", "120%")
    assert code == 2
    assert "--learnig-rate: no such option, did you mean --lr?" in text
    assert "--lowvram and --highvram: give one of them" in text
    assert "--prior: must be less than 1 or must be 'auto', got 1.2" in text
