"""--sample-prompts: kohya's file, or a sentence about the line that cannot be used."""

import pytest

from trainer.config.sample_prompts import SamplePrompt, read_sample_prompts

FILE = """# prompts

a cat, sitting --n dog, low quality --d 7 --s 12 --l 5.5
  a plain one"""


def test_kohyas_switches(tmp_path):
    (tmp_path / "x.txt").write_text("\ufeff" + FILE, encoding="utf-8")
    found, problems = read_sample_prompts(tmp_path / "x.txt")
    assert problems == []
    assert found == [
        SamplePrompt(prompt="a cat, sitting", negative="dog, low quality", seed=7, steps=12, guidance=5.5),
        SamplePrompt(prompt="a plain one"),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a cat --w 512", "line 2: --w: pictures are as large as --resolution; leave it out"),
        ("a cat --ss euler_a", "line 2: --ss: no such switch; --n, --d, --s, --l are known"),
        ("a cat --s many", "line 2: --s: must be a valid integer, unable to parse string as an integer, got 'many'"),
        ("a cat --d -1", "line 2: --d: must be greater than or equal to 0, got '-1'"),
        ("a cat --l nan", "line 2: --l: must be a finite number, got 'nan'"),
    ],
)
def test_what_cannot_be_used_is_named(line, said, tmp_path):
    (tmp_path / "x.txt").write_text(f"fine\n{line}\n", encoding="utf-8")
    _, problems = read_sample_prompts(tmp_path / "x.txt")
    assert [problem.partition(", ")[2] for problem in problems] == [said]


@pytest.mark.parametrize("data", [b"", b"# only a remark", b"\xff\xfe\xff"])
def test_a_file_without_prompts_is_refused(data, tmp_path):
    (tmp_path / "x.txt").write_bytes(data)
    for path in (tmp_path / "x.txt", tmp_path / "none", tmp_path):
        found, problems = read_sample_prompts(path)
        assert found == []
        assert len(problems) == 1


def test_the_file_is_read_at_the_start(trainer, tmp_path):
    (tmp_path / "x.txt").write_text("a cat --w 64")
    found = trainer("--steps", 1, "--sample-prompts", tmp_path / "x.txt")
    assert found.returncode == 2
    assert "--w: pictures are as large as --resolution" in found.stderr
    assert "--sample-every 100 makes some" in found.stderr
