"""The prior and the scores from features, on data whose truth is known."""

import numpy as np
import pytest

from trainer.experiments import prior_simulation
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
        found.append(class_prior.estimate(class_prior.cross_fit(features, labels, seed=0), labels, seed=0))
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


@pytest.mark.parametrize(
    ("auc", "share", "size"), [(0.8, 0.05, (2000, 300)), (0.9, 0.05, (400, 80)), (0.97, 0.5, (80, 20))]
)
def test_the_interval_covers_where_classes_overlap(auc, share, size):
    """Over eight shapes of scores; a bootstrap of best-bin estimation held the truth in 0 and 10 % of the first two."""
    found = []
    for shape in prior_simulation.SHAPES:
        for seed in range(5):
            draw = prior_simulation.simulated(shape, auc, share, size, seed)
            found.append(class_prior.estimate(*draw, seed=seed))
    assert np.mean([p.low <= share <= p.high for p in found]) >= 0.9
    assert np.mean([p.high - p.low for p in found]) < 0.7


def test_nothing_hidden_is_a_small_prior_and_all_hidden_a_large_one():
    rng = np.random.default_rng(0)
    labels = np.arange(500) >= 400
    none = class_prior.estimate(rng.random(500) / 2 + labels / 2, labels, seed=0)
    assert none.value < 0.01
    everything = class_prior.estimate(rng.random(500), labels, seed=0)
    assert everything.high > 0.9
    assert not everything.is_telling


def test_only_the_order_of_scores_counts():
    scores, labels = prior_simulation.simulated("normal", 0.9, 0.1, (400, 80), 0)
    found, cubed = (class_prior.estimate(s, labels, seed=0) for s in (scores, scores**3))
    assert (found.value, found.low, found.high, found.auc) == (cubed.value, cubed.low, cubed.high, cubed.auc)


def test_equal_scores_are_no_error():
    found = class_prior.estimate(np.full(50, 0.5), np.arange(50) >= 40, seed=0)
    assert found.auc == pytest.approx(0.5)
    assert not found.is_telling


@pytest.mark.parametrize("auc", [0.75, 0.9, 0.97])
def test_separation_is_the_auc_between_sensitive_and_normal(auc):
    scores, labels = prior_simulation.simulated("heavy tails", auc, 0.3, (5000, 500), 0)
    assert class_prior.separation(scores[~labels], scores[labels], 0.3) == pytest.approx(auc, abs=0.02)


def test_separation_by_hand():
    """Half of the unlabeled score as the labeled do, the others lower: the classes are told apart without a mistake."""
    assert class_prior.separation(np.array([0.1, 0.9]), np.array([0.9, 0.9]), 0.5) == 1.0
    assert class_prior.separation(np.array([0.1, 0.9]), np.array([0.9, 0.9]), 0.0) == 0.75


def test_too_few_images():
    with pytest.raises(ValueError, match="at least 2"):
        class_prior.cross_fit(np.zeros((5, 3)), np.array([True] + [False] * 4), seed=0)
