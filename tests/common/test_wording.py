"""Words that depend on a number."""

from trainer.common.wording import counted


def test_one_and_many():
    assert [counted(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [counted(n, "picture is", "pictures are") for n in (1, 20)] == ["1 picture is", "20 pictures are"]
