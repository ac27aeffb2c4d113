"""Which samples make up a step, and their noise: pure functions of seed, step and position."""

from dataclasses import replace

import numpy as np
import pytest

from trainer.data.folders import Folders, Sample
from trainer.data.sampler import Batches, noise_and_t, views


@pytest.fixture
def batches(tmp_path):
    u = [Sample(tmp_path / f"u{i}", f"caption {i}") for i in range(7)]
    s = [Sample(tmp_path / f"s{i}", "own" if i % 2 else None) for i in range(5)]
    return Batches(Folders(u, s, [], []), seed=3, n_unlabeled=8, n_sensitive=4, own_share=0.25)


def test_each_epoch_shows_every_sample_once(batches):
    seen = [d.sample.path.name for step in range(7) for d in batches.unlabeled(step)]
    for epoch in range(8):
        assert sorted(seen[epoch * 7 : epoch * 7 + 7]) == [f"u{i}" for i in range(7)]
    assert seen[:7] != seen[7:14]
    seen = [d.sample.path.name for step in range(5) for d in batches.sensitive(step)[1:]]
    for epoch in range(3):
        assert sorted(seen[epoch * 5 : epoch * 5 + 5]) == [f"s{i}" for i in range(5)]


def test_a_step_is_a_pure_function_of_seed_and_step(batches):
    forward = [(batches.unlabeled(k), batches.sensitive(k)) for k in range(5)]
    backward = [(batches.unlabeled(k), batches.sensitive(k)) for k in reversed(range(5))]
    assert forward == backward[::-1]


def test_both_kinds_carry_the_same_captions(batches):
    """A quarter of each those of sensitive images, the others those of unlabeled ones."""
    for step in range(5):
        unlabeled, sensitive = batches.unlabeled(step), batches.sensitive(step)
        assert [d.caption for d in unlabeled[:2]] == ["own", "own"]
        assert sensitive[0].caption == sensitive[0].sample.caption == "own"
        assert all(d.caption == d.sample.caption != "own" for d in unlabeled[2:])
        assert [d.caption for d in sensitive[1:]] == [d.caption for d in unlabeled[2:5]]
        assert [d.position for d in [*unlabeled, *sensitive]] == list(range(12))


@pytest.mark.parametrize(
    ("share", "own"), [(0.0, (0, 0)), (0.01, (1, 1)), (0.5, (2, 4)), (0.99, (3, 7)), (1.0, (4, 8))]
)
def test_no_caption_is_on_one_side_alone(batches, share, own):
    batches = replace(batches, own_share=share)
    sensitive, unlabeled = ([d.caption for d in side(0)] for side in (batches.sensitive, batches.unlabeled))
    assert (sensitive.count("own"), unlabeled.count("own")) == own
    assert set(sensitive) <= set(unlabeled)


def test_caption_dropout_drops_pairs_together(batches):
    dropping = replace(batches, caption_dropout=0.5)
    empty = 0
    for step in range(20):
        captions = [d.caption for d in dropping.unlabeled(step)]
        assert [d.caption for d in dropping.sensitive(step)[1:]] == captions[2:5]
        empty += captions.count("")
    assert 40 < empty < 80  # of 120


def test_repeats_are_how_often_an_image_is_shown(batches):
    """In one epoch of 2 + 1 + … shows, each as often as its number; only how the numbers compare matters."""
    u = [replace(s, repeats=20 if i == 0 else 10) for i, s in enumerate(batches.folders.unlabeled)]
    s = [replace(s, repeats=3 if i == 1 else 1) for i, s in enumerate(batches.folders.sensitive)]
    often = replace(batches, folders=replace(batches.folders, unlabeled=u, sensitive=s))
    seen = [d.sample.path.name for step in range(8) for d in often.unlabeled(step)]
    assert [sorted(seen[i : i + 8]) for i in range(0, 64, 8)] == [["u0", "u0", *(f"u{i}" for i in range(1, 7))]] * 8
    shown = [d.sample.path.name for step in range(7) for d in often.sensitive(step)[1:]]
    assert [shown.count(f"s{i}") for i in range(5)] == [3, 9, 3, 3, 3]
    own = [often.sensitive(step)[0].sample.path.name for step in range(8)]
    assert (own.count("s1"), own.count("s3")) == (6, 2)
    same = [replace(s, repeats=10) for s in batches.folders.unlabeled]
    evenly = replace(batches, folders=replace(batches.folders, unlabeled=same))
    assert [d.sample.path for d in evenly.unlabeled(3)] == [d.sample.path for d in batches.unlabeled(3)]


@pytest.fixture
def shuffled(batches):
    u = [replace(s, caption="x, a, b, c") for s in batches.folders.unlabeled]
    s = [replace(s, caption=s.caption and "x, d, e, f") for s in batches.folders.sensitive]
    return replace(batches, folders=replace(batches.folders, unlabeled=u, sensitive=s), shuffle=True, keep_tokens=1)


def test_shuffled_captions_are_those_that_are_encoded(shuffled):
    asked = {d.caption for step in range(40) for d in [*shuffled.unlabeled(step), *shuffled.sensitive(step)]}
    assert asked | {""} == shuffled.all_captions()
    assert len(asked) > 6
    assert {caption.split(", ")[0] for caption in asked} == {"x"}
    free = replace(shuffled, keep_tokens=0).all_captions()
    assert {caption.split(", ")[0] for caption in free} > {"x", "a"}
    assert replace(shuffled, shuffle=False).all_captions() == {"", "x, a, b, c", "x, d, e, f"}


def test_both_kinds_share_the_order_of_their_captions(shuffled):
    """R compares images under the same caption, and a step is a pure function of (seed, step)."""
    for step in range(20):
        unlabeled, sensitive = ([d.caption for d in side(step)] for side in (shuffled.unlabeled, shuffled.sensitive))
        assert unlabeled[:2] == [sensitive[0]] * 2
        assert sensitive[1:] == unlabeled[2:5]
        assert unlabeled == [d.caption for d in replace(shuffled).unlabeled(step)]
    by_seed = [[d.caption for d in replace(shuffled, seed=seed).unlabeled(0)] for seed in (3, 4)]
    assert by_seed[0] != by_seed[1]


def test_shuffling_changes_nothing_else(batches):
    plain, other = batches, replace(batches, shuffle=True)  # its captions have one tag each
    assert [plain.unlabeled(k) for k in range(5)] == [other.unlabeled(k) for k in range(5)]
    assert [plain.sensitive(k) for k in range(5)] == [other.sensitive(k) for k in range(5)]


def test_noise_offset_is_the_same_over_a_channel():
    """kohya's noise + offset * randn(channels, 1, 1); what was drawn before stays."""
    shape = (4, 8, 8)
    plain, t = noise_and_t(0, 5, 2, shape, 1000)
    moved, t_moved = noise_and_t(0, 5, 2, shape, 1000, offset=0.1)
    by = moved - plain
    assert t == t_moved
    np.testing.assert_allclose(by, np.broadcast_to(by[:, :1, :1], shape), atol=1e-6)
    twice = noise_and_t(0, 5, 2, shape, 1000, offset=0.2)[0] - plain
    np.testing.assert_allclose(twice, 2 * by, atol=1e-6)
    offsets = [
        noise_and_t(0, k, 0, shape, 1000, offset=1)[0] - noise_and_t(0, k, 0, shape, 1000)[0] for k in range(400)
    ]
    values = np.stack(offsets)[:, :, 0, 0]
    assert abs(values.mean()) < 0.1
    assert abs(values.std() - 1) < 0.06


def test_noise_and_timestep():
    shape = (4, 8, 8)
    noise, t = noise_and_t(0, 5, 2, shape, 1000)
    again, t_again = noise_and_t(0, 5, 2, shape, 1000)
    assert (noise == again).all()
    assert t == t_again
    for other in ((1, 5, 2), (0, 6, 2), (0, 5, 3)):
        assert not np.array_equal(noise, noise_and_t(*other, shape, 1000)[0])
    many = [noise_and_t(0, step, 0, shape, 1000) for step in range(400)]
    assert 0 <= min(m[1] for m in many) < 30
    assert 970 < max(m[1] for m in many) <= 999
    values = np.stack([m[0] for m in many])
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01


def test_views_are_all_that_draws_ask_for(batches):
    varied = replace(batches, flip=True, crops=3)
    asked = {d.view for step in range(30) for d in [*varied.unlabeled(step), *varied.sensitive(step)]}
    assert asked == set(views(flip=True, crops=3))
    assert len(asked) == 6
