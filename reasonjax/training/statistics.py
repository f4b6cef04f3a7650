"""Intervals and estimators for evaluation, in float64 NumPy."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from reasonjax.errors import UserError


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Computes Wilson's 95 % score interval for a proportion (Wilson 1927); `(0, 1)` for no trials.

    Args:
      successes: how many of the n trials succeeded.
      n: number of trials.
    """
    if not 0 <= successes <= n:
        raise ValueError(f'wilson: successes must lie in 0..{n}, got {successes}')
    if n == 0:
        return 0.0, 1.0
    p, z = successes / n, 1.96  # standard errors
    scale = 1 / (1 + z * z / n)
    centre = (p + z * z / (2 * n)) * scale
    half = z * scale * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # The exact ends are 0 and 1 at the extremes; rounding must not leave the unit interval.
    return 0.0 if successes == 0 else max(0.0, centre - half), 1.0 if successes == n else min(
        1.0, centre + half
    )


def pass_at_k(n: int, c: int, k: int) -> float:
    """Estimates pass@k without bias: 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374,
    equation 1).

    Args:
      n: samples drawn for the problem.
      c: how many of them are right.
      k: samples allowed; at most n.

    Raises:
      UserError: k exceeds n, and the estimate does not exist.
    """
    if not 1 <= k <= n:
        raise UserError(f'pass@{k}: k must lie in 1..{n}, the number of samples of a problem.')
    if not 0 <= c <= n:
        raise ValueError(f'pass_at_k: c must lie in 0..{n}, got {c}')
    return 1.0 - math.prod((n - c - j) / (n - j) for j in range(k)) if n - c >= k else 1.0


def majority_vote(answers: Sequence[Hashable | None]) -> Hashable | None:
    """Returns the most frequent answer, among equals the first to occur. None (no answer) wins only
    where there is nothing else."""
    counts = Counter(answer for answer in answers if answer is not None)
    return counts.most_common(1)[0][0] if counts else None


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Computes a 95 % interval of a mean of shares in [0, 1]. It is Wilson's where every value is 0
    or 1, else a bootstrap."""
    if all(value in (0, 1) for value in values):
        return wilson(round(sum(values)), len(values))
    return bootstrap_mean(values, 0)


def bootstrap_mean(values: Sequence[float], seed: int) -> tuple[float, float]:
    """Computes a percentile bootstrap interval of a mean, 95 % of 2,000 resamples (Efron 1979).

    Args:
      values: at least one number.
      seed: the draws depend on it and on nothing else.
    """
    data = np.asarray(values, np.float64)
    if data.ndim != 1 or not data.size:
        raise ValueError(f'bootstrap_mean: expected a list of numbers, got shape {data.shape}')
    rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
    means = [data[rng.integers(data.size, size=data.size)].mean() for _ in range(2000)]
    low, high = np.quantile(means, [(1 - 0.95) / 2, (1 + 0.95) / 2])
    return float(low), float(high)
