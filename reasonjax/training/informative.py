"""Which groups of a rollout teach something, and what becomes of those that do not (dynamic sampling, DAPO, arXiv:2503.14476)."""

from typing import NamedTuple

import numpy as np


class Choice(NamedTuple):
    """What becomes of the groups there are: every one is in exactly one of these, in the order in which they were drawn.

    Attributes:
      trained: numbers of the groups to train on.
      carried: informative ones that are left for the next step.
      dropped: uninformative ones.
      filled: how many of those trained on are uninformative.
    """

    trained: np.ndarray
    carried: np.ndarray
    dropped: np.ndarray
    filled: int


def informative(total_PxG: np.ndarray) -> np.ndarray:
    """[P] bool: at least two samples have a reward, and not all rewards are the same.

    They are compared as the float32 numbers that advantages are computed from, and exactly: a deviation that is small is not none.

    Args:
      total_PxG: total rewards; nan where a sample has none.
    """
    total_PxG = np.asarray(total_PxG, np.float32)
    valid_PxG = ~np.isnan(total_PxG)
    largest = np.max(total_PxG, axis=1, where=valid_PxG, initial=-np.inf)
    smallest = np.min(total_PxG, axis=1, where=valid_PxG, initial=np.inf)
    return (valid_PxG.sum(axis=1) >= 2) & (largest > smallest)


def choose(informative_P: np.ndarray, number: int) -> Choice:
    """Takes the `number` informative groups that were drawn first; where there are fewer, the newest uninformative ones fill the batch.

    Args:
      informative_P: of the groups there are, oldest first; at least `number` of them.
      number: of groups that a step trains on.
    """
    good, bad = np.flatnonzero(informative_P), np.flatnonzero(~np.asarray(informative_P))
    missing = max(0, number - len(good))
    kept = len(bad) - missing
    return Choice(np.sort(np.concatenate([good[:number], bad[kept:]])), good[number:], bad[:kept], missing)
