"""Keys are functions of what they are for."""

import itertools

import jax
import numpy as np

from reasonjax import randomness


def bits(*arguments):
    return tuple(np.asarray(jax.random.key_data(randomness.key(*arguments))).tolist())


def test_keys_are_reproducible_and_distinct():
    uses = list(itertools.product((0, 1, 7), (0, 1), (0, 1, 2, 3), randomness.STREAMS))
    keys = {bits(*use) for use in uses}
    assert len(keys) == len(uses)
    assert bits(*uses[5]) == bits(*uses[5])


def test_numbers_of_streams_are_fixed():
    # A change would silently change every run: (stream, number).
    assert randomness.STREAMS == {'init': 0, 'adapter': 1, 'update': 2, 'rollout': 3, 'evaluate': 4}


def test_host_seeds():
    seeds = {randomness.host_seed(seed, stage) for seed in range(40) for stage in range(5)}
    assert len(seeds) == 200 and all(0 <= s < 2**31 for s in seeds)
    assert max(seeds) > 2**30
    assert randomness.host_seed(3, 1) == randomness.host_seed(3, 1)
