"""The prior and the scores from features, on data whose truth is known."""

import numpy as np
import pytest

from trainer.objective import class_prior


def piles(share, n_unlabeled=400, n_sensitive=100, distance=4.0, seed=0):
    """Two Gaussians in 20 dimensions. Returns: features, labels, which unlabeled ones are sensitive."""
    rng = np.random.default_rng(seed)
    hidden = np.arange(n_unlabeled) < round(share * n_unlabeled)
    truth = np.concatenate([hidden, np.ones(n_sensitive, bool)])
    features = rng.standard_normal((len(truth), 20))
    features[truth, 0] += distance
    return features, np.arange(len(truth)) >= n_unlabeled, hidden


@pytest.mark.parametrize("share", [0.05, 0.1, 0.2, 0.4])
def test_prior_of_two_gaussians(share):
    found = []
    for seed in range(5):
        features, labels, _ = piles(share, seed=seed)
        found.append(class_prior.estimate(class_prior.cross_fit(features, labels, seed=0), labels, seed=0, draws=200))
    assert np.median([p.value for p in found]) == pytest.approx(share, abs=0.04)
    assert sum(p.low <= share <= p.high for p in found) >= 4
    assert all(0 <= p.low <= p.value <= p.high <= 1 for p in found)


def test_scores_rank_what_is_hidden_first_and_never_saw_it():
    features, labels, hidden = piles(0.2, distance=6.0)
    scores = class_prior.cross_fit(features, labels, seed=0)[:400]
    assert hidden[np.argsort(-scores)[:80]].mean() > 0.9
    # noise alone, with as many features as images: a classifier that had seen its images would find all of them
    noise = np.random.default_rng(1).standard_normal((500, 500))
    scores = class_prior.cross_fit(noise, labels, seed=0)
    assert abs(np.median(scores[labels]) - np.median(scores[~labels])) < 0.05


def test_best_bin_by_hand():
    """Every threshold down to 0.5 keeps all sensitive and a quarter of the unlabeled."""
    unlabeled, sensitive = np.repeat([0.9, 0.1], [100, 300]), np.full(200, 0.9)
    assert class_prior.best_bin(unlabeled, sensitive) == 0.25
    assert class_prior.best_bin(np.full(50, 0.9), sensitive) == 1.0


def test_elkan_noto_of_calibrated_scores():
    """Sensitive images all look the same, as do 30 of 100 unlabeled ones: p is 100 / 130 there."""
    p = 100 / 130
    assert class_prior.elkan_noto(np.repeat([p, 0.0], [30, 70]), np.full(100, p)) == pytest.approx(0.3)


def test_the_papers_sizes_are_too_small_to_tell():
    few = class_prior.Prior(0.2, 0.1, 0.3, 0.3, class_prior._deviation(80) + class_prior._deviation(20), 80, 20)
    assert few.bound == pytest.approx(0.46, abs=0.005)
    assert not few.is_telling
    enough = class_prior.Prior(0.2, 0.1, 0.3, 0.3, class_prior._deviation(400) + class_prior._deviation(100), 400, 100)
    assert enough.is_telling


def test_too_few_images():
    with pytest.raises(ValueError, match="at least 2"):
        class_prior.cross_fit(np.zeros((5, 3)), np.array([True] + [False] * 4), seed=0)
