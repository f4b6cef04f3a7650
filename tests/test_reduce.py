"""Metrics over micro-batches equal those over the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasonjax import reduce

X = np.random.default_rng(0).standard_normal(12).astype(np.float32)
WEIGHTS = np.array([0, 0, 0, 0, 5, 0, 0.5, 1, 2, 2, 0, 9], np.float32)


def summaries(x, weights):
    return {
        'mean': reduce.mean(x),
        'weighted': reduce.mean(x, weights),
        'sum': reduce.Sum(x.sum()),
        'max': reduce.Max(x.max()),
        'min': reduce.Min(x.min()),
    }


@pytest.mark.parametrize('parts', [1, 3, 12])
def test_parts_equal_the_whole(parts):
    # The first parts have no weight at all: a mean of means would be biased, or nan.
    split = jax.vmap(summaries)(X.reshape(parts, -1), WEIGHTS.reshape(parts, -1))
    got = jax.jit(lambda m: reduce.values(reduce.over(m)))(split)
    exact = X.astype(np.float64)
    wanted = {
        'mean': exact.mean(),
        'weighted': np.average(exact, weights=WEIGHTS),
        'sum': exact.sum(),
        'max': X.max(),
        'min': X.min(),
    }
    assert set(got) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)


def test_what_has_no_weight_does_not_count():
    x = jnp.asarray([1.0, np.nan, np.inf, 3.0])
    assert reduce.mean(x, jnp.asarray([1.0, 0.0, 0.0, 3.0])).value() == 2.5
    assert np.isnan(reduce.mean(x, jnp.zeros(4)).value())


def test_a_mean_of_hits():
    assert reduce.mean(jnp.asarray([True, False, True, True])).value() == 0.75
    assert reduce.mean(jnp.asarray([True, False]), jnp.asarray([1.0, 3.0])).value() == 0.25


def test_a_metric_that_cannot_be_combined_is_refused():
    reduce.check({'b': reduce.Sum(jnp.asarray(2.0))})
    with pytest.raises(TypeError, match='metric "a" is a float; return a reduce.Mean'):
        reduce.check({'a': 1.5, 'b': reduce.Sum(jnp.asarray(2.0))})
