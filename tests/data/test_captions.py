"""Caption files as people have them: found, decoded, cleaned, and put together."""

import unicodedata

import pytest

from trainer.common.errors import UserError
from trainer.data import captions
from trainer.data.captions import ORDERS, caption_of, describe_syntax, read_caption, reordered, with_affixes


@pytest.fixture
def read(tmp_path):
    def of(data):
        (tmp_path / "x.txt").write_bytes(data if isinstance(data, bytes) else data.encode())
        return read_caption(tmp_path / "x.txt")

    return of


TEXT = "a cat, naïve “café”"


@pytest.mark.parametrize(
    ("data", "wanted", "cleaned"),
    [
        (TEXT, TEXT, []),
        ("\ufeff" + TEXT, TEXT, []),
        (TEXT.encode("utf-16"), TEXT, ["UTF-16"]),
        (b"\xfe\xff" + TEXT.encode("utf-16-be"), TEXT, ["UTF-16"]),
        (TEXT.encode("utf-16-le"), TEXT, ["UTF-16"]),
        (TEXT.encode("utf-16-be"), TEXT, ["UTF-16"]),
        ("a cat\r\n".encode("utf-16-le"), "a cat", ["UTF-16"]),
        ("чёрная кошка".encode("utf-16-le"), "чёрная кошка", ["UTF-16"]),
        ("чёрная кошка", "чёрная кошка", []),
        ("黒い猫", "黒い猫", []),
        (TEXT.encode("utf-32"), TEXT, ["UTF-32"]),
        ("\ufeff\ufeffa cat", "a cat", ["invisible characters"]),
        ("a\u200b cat\u2060\u00ad", "a cat", ["invisible characters"]),
        ("👩\u200d🔬 می\u200cخواهم", "👩\u200d🔬 می\u200cخواهم", []),  # joiners are part of the spelling
        ("a cat\0\0", "a cat", ["control or broken characters"]),
        ("a\x07 cat\x1b\ufffd", "a cat", ["control or broken characters"]),
        ("a\u00a0cat\u3000\tasleep\r\nin the sun\x0b", "a cat asleep in the sun", []),
        ("a cat, , ,asleep,", "a cat, asleep", ["empty tags"]),
        (", , ,", None, ["empty tags"]),
        ("a cat,asleep,", "a cat,asleep,", []),  # as it stands
        ("", None, []),
        ("\n \n", None, []),
        ("\ufeff", None, []),
        ("\0\0\0\0", None, ["control or broken characters"]),
    ],
)
def test_text(read, data, wanted, cleaned):
    assert read(data) == (wanted, cleaned)


@pytest.mark.parametrize("data", ["häh".encode("latin-1"), "黒い猫".encode("shift-jis"), b"\xff\xfea"])
def test_another_encoding_is_refused_rather_than_guessed(read, data):
    with pytest.raises(UserError, match=r"x\.txt: not UTF-8 text, nor UTF-16\. Save the caption as UTF-8"):
        read(data)


@pytest.mark.parametrize(
    ("image", "file"),
    [
        ("cat.png", "cat.txt"),
        ("cat.png", "cat.TXT"),
        ("CAT.PNG", "cat.txt"),
        ("cat.png", "Cat.Caption"),
        ("cat.tar.png", "cat.tar.txt"),
        (unicodedata.normalize("NFD", "café.png"), "café.txt"),
        ("café.png", unicodedata.normalize("NFD", "café.txt")),
    ],
)
def test_a_caption_file_is_found_whatever_the_case(tmp_path, image, file):
    (tmp_path / image).touch()
    (tmp_path / file).write_text("found")
    (tmp_path / "other.txt").write_text("another's")
    assert caption_of(tmp_path / image) == "found"


def test_the_file_of_the_same_case_comes_first(tmp_path):
    (tmp_path / "probe").touch()
    if (tmp_path / "PROBE").exists():
        pytest.skip("this file system tells no capitals")
    for name in ("cat", "CAT", "Cat"):
        (tmp_path / f"{name}.txt").write_text(name)
        (tmp_path / f"{name}.TXT").write_text("in capitals")
    assert [caption_of(tmp_path / f"{name}.png") for name in ("cat", "CAT", "Cat")] == ["cat", "CAT", "Cat"]


@pytest.mark.parametrize(
    "mark",
    ["(cat:1.2)", "(cat:.5)", "(a b : -1)", "[cat]", "<lora:x:1>", "<lyco:x:0.5>", "{a|b}", "__wild__", "__a/b__"],
)
def test_marks_of_user_interfaces_are_told(mark):
    text = f"1 caption has marks of user interfaces, such as {mark}: they are learned as plain letters here"
    assert describe_syntax([f"a {mark} there"]).startswith(text)


@pytest.mark.parametrize(
    "caption",
    [
        "a cat (asleep)",
        r"miku \(vocaloid\), \[x\]",
        "at 12:30 (noon)",
        "snake_case, dunder__name, _x_",
        "a breakdown, BREAKING",
        "3 < 5 > 2",
        "{ }",
        "",
    ],
)
def test_plain_text_is_left_alone(caption):
    assert describe_syntax([caption]) is None


def test_captions_with_marks_are_counted_once_each():
    found = describe_syntax(["[a] (b:1)", "[a] (b:1)", "x BREAK y", "plain"])
    assert found.startswith("2 captions have marks of user interfaces, such as [a], BREAK: ")


def test_what_was_cleaned_is_counted():
    cleaned = ["UTF-16", "empty tags", "UTF-16", "invisible characters"]
    assert captions.describe_cleaning([]) is None
    assert captions.describe_cleaning(cleaned) == (
        "caption files that were cleaned: 2 read as UTF-16, 1 with empty tags, 1 with invisible characters"
    )


def test_affixes_are_joined_as_kohya_joins_them():
    assert with_affixes("a cat", "sks", "high quality") == "sks a cat high quality"
    assert with_affixes("a cat", None, "") == "a cat"
    assert with_affixes("", "sks", None) == "sks"


def test_orders_of_tags():
    written = "a,b,  c, d, e, f"
    orders = [reordered(written, i, keep=2, seed=0) for i in range(ORDERS)]
    assert orders[0] == written
    assert all(order.startswith("a, b, ") for order in orders[1:])
    assert all(sorted(order.split(", ")) == list("abcdef") for order in orders[1:])
    assert len(set(orders)) > 4
    assert orders == [reordered(written, i, keep=2, seed=0) for i in range(ORDERS)]
    assert orders != [reordered(written, i, keep=2, seed=1) for i in range(ORDERS)]
    assert {reordered("one sentence", i, keep=0, seed=0) for i in range(ORDERS)} == {"one sentence"}
    assert {reordered("a, b, c", i, keep=3, seed=0) for i in range(ORDERS)} == {"a, b, c"}
