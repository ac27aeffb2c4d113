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
