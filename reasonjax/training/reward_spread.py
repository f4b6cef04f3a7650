"""Which groups of a rollout have rewards that differ, and which of all groups a step trains on."""

from typing import NamedTuple

import numpy as np


class BatchChoice(NamedTuple):
    """What becomes of each group, in the order in which they were sampled; every group is in
    exactly one of the three lists.

    Attributes:
      trained: numbers of the groups to train on.
      carried: of groups with a spread that are left for the next step.
      dropped: of groups without one.
      filled: how many of those trained on have no spread.
    """

    trained: np.ndarray
    carried: np.ndarray
    dropped: np.ndarray
    filled: int


def has_reward_spread(total_PxG: np.ndarray) -> np.ndarray:
    """Returns [P] bool: at least two samples of a group have a reward, and not all rewards are the
    same.

    They are compared as the float32 numbers that advantages are computed from, and exactly: a
    deviation that is small is not none.

    Args:
      total_PxG: total rewards; nan where a sample has none.
    """
    total_PxG = np.asarray(total_PxG, np.float32)
    valid_PxG = ~np.isnan(total_PxG)
    largest = np.max(total_PxG, axis=1, where=valid_PxG, initial=-np.inf)
    smallest = np.min(total_PxG, axis=1, where=valid_PxG, initial=np.inf)
    return (valid_PxG.sum(axis=1) >= 2) & (largest > smallest)


def fill_batch(spread_P: np.ndarray, number: int) -> BatchChoice:
    """Takes the `number` groups with a spread that were sampled first; where there are fewer, the
    newest without one fill the batch.

    Args:
      spread_P: `has_reward_spread` of all groups, oldest first; at least `number` of them.
      number: of groups that a step trains on.
    """
    good, bad = np.flatnonzero(spread_P), np.flatnonzero(~np.asarray(spread_P))
    missing = max(0, number - len(good))
    kept = len(bad) - missing
    return BatchChoice(
        np.sort(np.concatenate([good[:number], bad[kept:]])), good[number:], bad[:kept], missing
    )
