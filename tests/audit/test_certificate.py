"""--keep-at-most: what is kept holds no more of the hidden sensitive images than was promised."""

import numpy as np
import pytest

from trainer.audit.certificate import count_to_leave_out, p_values
from trainer.common.errors import UserError
from trainer.objective import class_prior


def test_p_values_count_the_examples_that_score_no_higher():
    assert p_values(np.array([0.0, 0.2, 0.25, 1.0]), np.array([0.4, 0.1, 0.2])).tolist() == [1 / 4, 3 / 4, 3 / 4, 1]


@pytest.mark.parametrize("at_most", [0.05, 0.1, 0.3])
def test_the_promise_holds_over_a_thousand_folders(at_most):
    """Scores that overlap: the mean share of hidden sensitive images kept is at most the promise, and near it."""
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(1000):
        examples, hidden, normal = rng.normal(1, 1, 39), rng.normal(1, 1, 20), rng.normal(0, 1, 80)
        scores = np.concatenate([hidden, normal])
        count = count_to_leave_out(scores, examples, at_most)
        left_out = np.argsort(-scores, kind="stable")[:count]
        kept.append(1 - np.isin(np.arange(20), left_out).mean())
    error = np.std(kept) / np.sqrt(len(kept))
    assert at_most - 0.02 < np.mean(kept) <= at_most + 2 * error


def test_the_promise_holds_with_cross_fitted_scores():
    """As `audit` uses it: scores of a classifier that learned the hidden ones as unlabeled, in other folds."""
    rng = np.random.default_rng(1)
    kept = []
    for seed in range(40):
        features = rng.normal(0, 1, (40 + 160 + 40, 6))
        features[:40, 0] += 2  # hidden
        features[200:, 0] += 2  # examples
        is_sensitive = np.arange(240) >= 200
        scores = class_prior.cross_fit(features, is_sensitive, seed=seed)
        count = count_to_leave_out(scores[:200], scores[200:], 0.1)
        left_out = np.argsort(-scores[:200], kind="stable")[:count]
        kept.append(1 - np.isin(np.arange(40), left_out).mean())
    error = np.std(kept) / np.sqrt(len(kept))
    assert 0.03 < np.mean(kept) <= 0.1 + 2 * error


def test_too_few_examples_promise_nothing():
    with pytest.raises(UserError, match=r"20 sensitive examples cannot promise less than 0\.048.*99 for this share"):
        count_to_leave_out(np.zeros(5), np.zeros(20), 0.01)
    assert count_to_leave_out(np.array([0.1, 0.9]), np.linspace(0.5, 1, 20), 1 / 21) == 1
