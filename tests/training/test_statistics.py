"""Estimators against brute force and closed forms."""

import itertools
import math

import numpy as np
import pytest

from reasonjax.errors import UserError
from reasonjax.training.statistics import bootstrap_mean, interval, majority_vote, pass_at_k, wilson


@pytest.mark.parametrize('successes,n', [(1, 10), (5, 10), (9, 10), (480, 1000), (998, 1000)])
def test_wilson_ends_solve_the_score_equation(successes, n):
    # By definition the ends are the two p at which |p_hat - p| is exactly z standard errors of p.
    p_hat = successes / n
    for p in wilson(successes, n):
        assert abs(p_hat - p) == pytest.approx(1.96 * math.sqrt(p * (1 - p) / n), rel=1e-9)
    low, high = wilson(successes, n)
    assert low < p_hat < high


def test_wilson_extremes():
    n, z = 50, 1.96
    assert wilson(0, n) == (0.0, pytest.approx(z * z / (n + z * z)))
    assert wilson(n, n) == (pytest.approx(n / (n + z * z)), 1.0)
    assert wilson(0, 0) == (0.0, 1.0)
    for bad in (-1, 4):
        with pytest.raises(ValueError):
            wilson(bad, 3)


@pytest.mark.parametrize('n', [1, 4, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_success(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        outcomes = [i < c for i in range(n)]
        share = np.mean([any(chosen) for chosen in itertools.combinations(outcomes, k)])
        assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-12)


def test_pass_at_k_large_and_bad():
    exact = 1 - math.comb(9990, 100) / math.comb(10000, 100)
    assert pass_at_k(10000, 10, 100) == pytest.approx(exact, rel=1e-12)
    for k in (0, 4):
        with pytest.raises(UserError, match=f'pass@{k}'):
            pass_at_k(3, 1, k)
    with pytest.raises(ValueError):
        pass_at_k(3, 4, 1)


@pytest.mark.parametrize(
    'answers,expected',
    [
        (['a', 'b', 'b'], 'b'),
        (['b', 'a', 'a', 'b'], 'b'),
        ([None, None, None, 'x'], 'x'),
        ([None, None], None),
        ([], None),
        ([3, 4, 4, 3, 4], 4),
    ],
)
def test_majority_vote(answers, expected):
    assert majority_vote(answers) == expected


def test_bootstrap_is_counted_and_near_the_normal_interval():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    low, high = bootstrap_mean(values, seed=1)
    assert (low, high) == bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_bootstrap_of_constants_and_nothing():
    assert bootstrap_mean([2.0, 2.0, 2.0], seed=0) == (2.0, 2.0)
    with pytest.raises(ValueError):
        bootstrap_mean([], seed=0)


def test_interval_of_shares():
    assert interval([0, 1, 1, 0.0, 1.0]) == wilson(3, 5)
    assert interval([0.0] * 8) == wilson(0, 8)
    assert interval([0.0] * 8)[1] > 0.2
    assert interval([0.5, 0.25, 1.0]) == bootstrap_mean([0.5, 0.25, 1.0], 0)
