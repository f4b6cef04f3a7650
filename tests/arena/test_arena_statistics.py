"""Statistics of a comparison against scipy, plain re-derivations and simulation."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from reasonjax.arena import statistics as cs
from reasonjax.errors import UserError

SIMULATIONS = 2000
# Three and a half standard errors of a share near 95 %: one false alarm in four thousand, and the
# draws are fixed anyway.
SLACK = 3.5 * math.sqrt(0.95 * 0.05 / SIMULATIONS)


def tables(S, N, seed_sd, problem_sd, rest_sd, seed=0):
    """[SIMULATIONS, S, N] tables of mean 0."""
    rng = np.random.default_rng(seed)
    shape = (SIMULATIONS, S, N)
    seeds = rng.normal(size=shape[:2])[:, :, None]
    problems = rng.normal(size=(SIMULATIONS, 1, N))
    return seed_sd * seeds + problem_sd * problems + rest_sd * rng.normal(size=shape)


def covered(values):
    centre, half = cs._crossed(values, 0.95)
    return np.mean(np.abs(centre) <= half)


@pytest.mark.parametrize('df', [1, 2, 4.5, 9, 199, 100_000])
def test_student_t(df):
    for level in (0.5, 0.05, 1e-4):
        assert cs.t_quantile(level, df) == pytest.approx(scipy.stats.t.isf(level / 2, df), rel=1e-8)


def test_interval_is_the_t_interval_of_what_varies():
    S, N = 4, 30
    row_S, column_N = (
        np.random.default_rng(1).normal(size=S),
        np.random.default_rng(2).normal(size=N),
    )
    for values, sample in (
        (np.tile(row_S[:, None], N), row_S),  # all problems alike: the t interval over seeds
        (np.tile(column_N, (S, 1)), column_N),  # all seeds alike: the t interval over problems
    ):
        exact = scipy.stats.t.interval(0.9, len(sample) - 1, sample.mean(), scipy.stats.sem(sample))
        assert cs.crossed_interval(values, 0.9) == pytest.approx(exact, rel=1e-9)


def test_interval_from_covariances():
    # The part of the problems that is common to seeds is, by definition, the mean covariance of two
    # different seeds.
    values_SxN = tables(5, 30, 0.3, 1.0, 0.5)[0]
    covariance = np.cov(values_SxN)
    common = np.mean([covariance[i, j] for i, j in itertools.permutations(range(5), 2)])
    half = math.hypot(
        scipy.stats.t.ppf(0.975, 4) * scipy.stats.sem(values_SxN.mean(1)),
        scipy.stats.t.ppf(0.975, 29) * math.sqrt(common / 30),
    )
    assert cs.crossed_interval(values_SxN) == pytest.approx(
        (values_SxN.mean() - half, values_SxN.mean() + half)
    )


@pytest.mark.parametrize('S', [2, 3, 5, 10])
@pytest.mark.parametrize(
    'sds',
    [(1.0, 0.1, 0.1), (0.02, 1.0, 0.1), (0.01, 0.1, 1.0), (0.15, 1.0, 1.0)],
    ids='seed problem rest mixed'.split(),
)
def test_interval_keeps_its_coverage(S, sds):
    assert 0.95 - SLACK <= covered(tables(S, 40, *sds)) <= 0.99


def test_an_interval_over_seeds_alone_would_not():
    means = tables(5, 40, 0.02, 1.0, 0.1).mean(-1)
    half = scipy.stats.t.ppf(0.975, 4) * scipy.stats.sem(means, axis=-1)
    assert np.mean(np.abs(means.mean(-1)) <= half) < 0.5


@pytest.mark.parametrize('S', [3, 5])
def test_interval_of_right_and_wrong_keeps_its_coverage(S):
    # Two recipes of equal skill: the chance of a right answer depends on the problem, the seed and
    # the recipe on that problem.
    rng, N = np.random.default_rng(3), 100
    difficulty = rng.normal(size=(SIMULATIONS, 1, N)) * 1.5 + 0.5
    arms = []
    for _ in range(2):
        logit = (
            difficulty
            + rng.normal(size=(SIMULATIONS, S, 1)) * 0.3
            + rng.normal(size=(SIMULATIONS, 1, N)) * 0.7
        )
        arms.append(rng.random((SIMULATIONS, S, N)) < 1 / (1 + np.exp(-logit)))
    assert 0.95 - SLACK <= covered(np.subtract(*np.asarray(arms, np.float64))) <= 0.99


def test_paired_t():
    values, baseline = tables(6, 20, 0.5, 1.0, 1.0, seed=4)[:2]
    found = cs.paired(values + 0.3, baseline)
    difference_S = (values + 0.3 - baseline).mean(1)
    assert found.p == pytest.approx(
        scipy.stats.ttest_rel((values + 0.3).mean(1), baseline.mean(1)).pvalue, rel=1e-9
    )
    assert (found.mean, found.sd, found.seeds) == (
        pytest.approx(difference_S.mean()),
        pytest.approx(difference_S.std(ddof=1)),
        6,
    )
    assert (found.low, found.high) == cs.crossed_interval(values + 0.3 - baseline)


def test_differences_that_do_not_vary():
    ones, zeros = np.ones((3, 4)), np.zeros((3, 4))
    assert cs.paired(ones, ones) == (0, 0, 0, 1, 0, 3)
    assert cs.paired(ones, zeros) == (1, 1, 1, 0, 0, 3)
    tenths = np.tile([0.1, 0.3, 0.2], (3, 1)) * [[1], [1], [1]]
    assert cs.paired(tenths, zeros[:, :3]).sd == 0


def test_bad_comparisons():
    ones = np.ones((2, 3))
    for call in (cs.crossed_interval, lambda v: cs.paired(v, v)):
        with pytest.raises(UserError, match='at least two seeds, got 1'):
            call(ones[:1])
        with pytest.raises(UserError, match='at least two problems, got 1'):
            call(ones[:, :1])
    with pytest.raises(ValueError, match='shapes differ'):
        cs.paired(ones, ones[:, :2])
    with pytest.raises(ValueError, match='finite'):
        cs.crossed_interval(ones * np.nan)


def adjusted(pvalues):
    """Holm by its definition: the least level at which the step-down procedure rejects each
    hypothesis."""

    def rejects(level):
        left, rejected = dict(enumerate(pvalues)), set()
        while left and min(left.values()) <= level / len(left):
            worst = min(left, key=left.get)
            rejected.add(worst)
            del left[worst]
        return rejected

    # A rejection can only begin at a p-value times a whole number, or at 1.
    levels = sorted({min(1.0, p * (n + 1)) for p in pvalues for n in range(len(pvalues))} | {1.0})
    return [
        next((level for level in levels if i in rejects(level * (1 + 1e-12))), 1.0)
        for i in range(len(pvalues))
    ]


def test_holm():
    assert cs.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    rng = np.random.default_rng(7)
    for m in (1, 2, 5, 9):
        for pvalues in rng.random((20, m)) ** 3:
            assert cs.holm(pvalues) == pytest.approx(adjusted(pvalues.tolist()))
    assert cs.holm([0.02, 0.02, 0.0]) == pytest.approx([0.04, 0.04, 0.0])
    assert cs.holm([]) == []
    for bad in ([math.nan], [-0.1], [1.1]):
        with pytest.raises(ValueError):
            cs.holm(bad)


@pytest.mark.parametrize('seeds', [2, 3, 5, 10, 200])
def test_power_is_the_noncentral_t(seeds):
    for effect, level in itertools.product((0.0, 0.3, 1.0, 4.0), (0.05, 0.001)):
        shift, critical = effect / 0.7 * math.sqrt(seeds), scipy.stats.t.isf(level / 2, seeds - 1)
        # scipy gives nan for the far side of a large shift, where it is below 1e-15.
        far = scipy.stats.nct.cdf(-critical, seeds - 1, shift) if shift < 5 else 0.0
        exact = scipy.stats.nct.sf(critical, seeds - 1, shift) + far
        assert cs.power(effect, 0.7, seeds, level) == pytest.approx(exact, abs=1e-10)
        assert cs.power(-effect, 0.7, seeds, level) == cs.power(effect, 0.7, seeds, level)


@pytest.mark.parametrize('seeds', [3, 8])
def test_the_smallest_effect_is_found_as_often_as_promised(seeds):
    effect = cs.smallest_effect(0.4, seeds, chance=0.8)
    differences = np.random.default_rng(8).normal(effect, 0.4, (20_000, seeds))
    found = np.mean(scipy.stats.ttest_1samp(differences, 0, axis=1).pvalue < 0.05)
    assert found == pytest.approx(0.8, abs=3.5 * math.sqrt(0.16 / 20_000))
    assert cs.power(effect, 0.4, seeds) == pytest.approx(0.8, abs=1e-12)
    assert cs.smallest_effect(0.8, seeds) == pytest.approx(2 * effect)


def test_seeds_needed():
    assert cs.seeds_needed(0.5, 1.0) == 34, 'the textbook figure for a medium paired effect'
    for effect, chance in itertools.product((0.05, -0.4, 1.5, 30.0), (0.5, 0.9)):
        seeds = cs.seeds_needed(effect, 1.0, chance)
        assert cs.power(effect, 1.0, seeds) >= chance
        assert seeds == 2 or cs.power(effect, 1.0, seeds - 1) < chance
    assert cs.seeds_needed(0.1, 0.0) == 2
    with pytest.raises(UserError, match='other than 0'):
        cs.seeds_needed(0.0, 1.0)
    with pytest.raises(UserError, match='more than 1,000,000 seeds'):
        cs.seeds_needed(1e-4, 1.0)
    for call in (cs.power, lambda effect, sd, seeds: cs.smallest_effect(sd, seeds)):
        with pytest.raises(UserError, match='at least two seeds, got 1'):
            call(0.1, 1.0, 1)
