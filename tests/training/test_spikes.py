"""Spikes against the plain rule in float64 NumPy: a list of applied norms, the last W of it, mean
and deviation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasonjax.training import spikes


@pytest.mark.parametrize('zscore', [1.5, 3.0])
def test_the_rule(zscore):
    rng = np.random.default_rng(1)
    norms = np.exp(rng.normal(size=300)).astype(np.float32)
    norms[[40, 77, 200]] = np.nan, np.inf, -np.inf
    size, applied, verdicts = 16, [], []

    @jax.jit
    def step(window, norm):
        spike = spikes.is_spike(window, norm, zscore)
        return spikes.put(window, norm, jnp.isfinite(norm) & ~spike), spike

    window, found = spikes.empty(size), []
    for norm in norms:
        window, spike = step(window, norm)
        found.append(bool(spike))
        late = np.asarray(applied[-size:], np.float64)
        verdicts.append(len(late) == size and norm > late.mean() + zscore * late.std())
        if np.isfinite(norm) and not verdicts[-1]:
            applied.append(float(norm))
    assert found == verdicts and 5 < sum(found) < 200 and not any(found[:size])
    assert int(window.seen) == len(applied)
    assert sorted(np.asarray(window.norms_W).tolist()) == sorted(applied[-size:])


def test_equal_norms_are_no_spikes():
    window = spikes.empty(3)
    for _ in range(5):
        assert not spikes.is_spike(window, jnp.float32(0.7), 2.0)
        window = spikes.put(window, jnp.float32(0.7), jnp.bool_(True))
