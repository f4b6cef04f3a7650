"""Importance weights of stale samples against their definition in float64, and what must come out
exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasonjax import reduce
from reasonjax.errors import UserError
from reasonjax.methods.objectives import clipped_policy_gradient
from reasonjax.methods.objectives.correction import MODES, importance_weights
from reasonjax.model.logprobs import Scored
from reasonjax.protocols import needed

B, T = 6, 9
NAME = 'sampling/importance_sampling_ratio'
DEFAULTS = dict(which='stale', mode='token_truncate', clip_max=3.0, clip_min=None)
BOUNDS = [(3.0, None), (1.2, 0.8), (None, 0.9), (None, None)]


def make_batch() -> tuple[np.ndarray, dict]:
    """Log-probs, and a batch that was sampled from others: rows of staleness 0 to 2, gaps, one row
    that is masked out."""
    rng = np.random.default_rng(5)
    logprob = -rng.exponential(size=(B, T)).astype(np.float32)
    weights = (rng.random((B, T)) < 0.8).astype(np.float32)
    weights[:, :2], weights[3] = 0, 0
    sampled = logprob + 0.8 * rng.normal(size=(B, T)).astype(np.float32)
    # What stands where nothing counts must not matter.
    sampled = np.where(weights > 0, sampled, -np.inf).astype(np.float32)
    return logprob, {
        'weights': weights,
        'logprob_sampled': sampled,
        'staleness': np.array([1, 0, 2, 1, 1, 0], np.float32),
        'advantage': np.array([1.2, -0.7, 0.4, 0.3, -1.5, 0.6], np.float32),
        'step_weight': weights.sum(),
        'step_rows': np.float32(B),
        'step_micro': np.float32(1),
    }


def oracle(
    old: np.ndarray, batch: dict, mode: str, high: float | None, low: float | None, every: bool
) -> tuple[np.ndarray, dict]:
    """Token by token, row by row, in Python floats."""
    weight, ratios, kept = np.ones((B, T)), [], []
    for b in range(B):
        counted = [t for t in range(T) if batch['weights'][b, t] > 0]
        stale = every or batch['staleness'][b] > 0
        d = {
            t: float(old[b, t]) - float(batch['logprob_sampled'][b, t]) if stale else 0.0
            for t in counted
        }
        units = [counted] if mode.startswith('sequence') and counted else [[t] for t in counted]
        for unit in units:
            r = np.exp(sum(d[t] for t in unit))
            out = (high is not None and r > high) or (low is not None and r < low)
            w = r
            if out:
                w = 0.0 if mode.endswith('mask') else high if high is not None and r > high else low
            ratios.append(out)
            kept.append(w)
            for t in unit:
                weight[b, t] = w
    return weight, {
        'min': min(kept),
        'mean': np.mean(kept),
        'max': max(kept),
        'clip_ratio': np.mean(ratios),
    }


@pytest.mark.parametrize('which', ['stale', 'always'])
@pytest.mark.parametrize(('high', 'low'), BOUNDS)
@pytest.mark.parametrize('mode', MODES)
def test_weights_equal_the_definition(mode, high, low, which):
    logprob, batch = make_batch()
    found, metrics = importance_weights(
        batch, jnp.asarray(logprob), which=which, mode=mode, clip_max=high, clip_min=low
    )
    expected, measured = oracle(logprob, batch, mode, high, low, which == 'always')
    counted = batch['weights'] > 0
    np.testing.assert_allclose(np.where(counted, found, 1), expected, rtol=2e-6)
    fresh = (batch['staleness'] == 0)[:, None] & counted
    assert which == 'always' or (np.asarray(found)[fresh] == 1).all(), (
        'exactly 1 where nothing is stale'
    )
    assert measured['clip_ratio'] > 0 or (high is None and low is None)
    values = reduce.values(metrics)
    assert set(values) == {f'{NAME}/{name}' for name in measured}
    for name, value in measured.items():
        np.testing.assert_allclose(values[f'{NAME}/{name}'], value, rtol=2e-6, err_msg=name)


@functools.cache
def compiled(**knobs):
    def loss(table: jax.Array, batch: dict) -> tuple:
        return clipped_policy_gradient(
            lambda _: Scored(table, jnp.ones((B, T)), jnp.zeros((B, T), bool)), batch, None, **knobs
        )

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize('old', [False, True])
@pytest.mark.parametrize('mode', MODES)
def test_at_staleness_zero_it_is_exactly_on_policy(mode, old):
    """Loss and gradient bit for bit those of a batch that knows of no staleness, and of the
    correction switched off."""
    logprob, batch = make_batch()
    batch['staleness'] = np.zeros(B, np.float32)
    if old:
        batch['logprob_old'] = np.where(batch['weights'] > 0, batch['logprob_sampled'], 0)
    plain = {name: x for name, x in batch.items() if name != 'staleness'}
    (loss, metrics), gradient = compiled(importance_sampling_mode=mode)(logprob, batch)
    for other, knobs in ((plain, {}), (batch, {'importance_sampling_correction': 'none'})):
        (same, measured), slope = compiled(**knobs)(logprob, other)
        assert loss == same and not any(name.startswith(NAME) for name in measured)
        np.testing.assert_array_equal(gradient, slope)
    assert loss != 0 and np.abs(gradient).max() > 0
    values = reduce.values(metrics)
    assert [values[f'{NAME}/{name}'] for name in ('min', 'mean', 'max', 'clip_ratio')] == [
        1,
        1,
        1,
        0,
    ]


@pytest.mark.parametrize('old', [False, True])
@pytest.mark.parametrize('mode', MODES)
def test_what_it_does_to_the_gradient(mode, old):
    """Each token's policy term is multiplied by its weight, the KL penalty is not, and no gradient
    runs through the weight."""
    logprob, batch = make_batch()
    batch['logprob_ref'] = logprob + 0.1
    start = logprob
    if old:
        start = batch['logprob_old'] = (logprob + 0.05).astype(np.float32)
    weight = oracle(start, batch, mode, 3.0, None, False)[0]
    parts = {}
    for beta in (0.0, 0.3):
        knobs = dict(importance_sampling_mode=mode, beta=beta)
        (loss, _), gradient = compiled(**knobs)(logprob, batch)
        (plain, _), slope = compiled(importance_sampling_correction='none', beta=beta)(
            logprob, batch
        )
        parts[beta] = (loss, gradient, plain, slope)
    np.testing.assert_allclose(parts[0.0][1], parts[0.0][3] * weight, rtol=1e-5, atol=1e-8)
    assert not np.allclose(parts[0.0][1], parts[0.0][3], rtol=1e-3)
    for i in (0, 1):  # what the penalty adds is the same with and without
        np.testing.assert_allclose(
            parts[0.3][i] - parts[0.0][i],
            parts[0.3][i + 2] - parts[0.0][i + 2],
            rtol=1e-4,
            atol=2e-7,
        )


def test_micro_batches_add_up():
    logprob, batch = make_batch()
    whole, gradient = compiled()(logprob, batch)
    rows = {name: x for name, x in batch.items() if np.ndim(x)}
    scalars = {name: x for name, x in batch.items() if not np.ndim(x)} | {
        'step_micro': np.float32(3)
    }

    def part(i: int) -> tuple:
        def loss(table: jax.Array) -> tuple:
            score = lambda _: Scored(table[i : i + 2], jnp.ones((2, T)), jnp.zeros((2, T), bool))  # noqa: E731
            return clipped_policy_gradient(
                score, {name: x[i : i + 2] for name, x in rows.items()} | scalars, None
            )

        return jax.value_and_grad(loss, has_aux=True)(jnp.asarray(logprob))

    parts = [part(i) for i in (0, 2, 4)]
    np.testing.assert_allclose(sum(p[0][0] for p in parts), whole[0], rtol=2e-6)
    np.testing.assert_allclose(sum(p[1] for p in parts), gradient, rtol=2e-6, atol=1e-8)
    combined = reduce.values(
        reduce.over(jax.tree.map(lambda *x: jnp.stack(x), *[p[0][1] for p in parts]))
    )
    for name in ('min', 'mean', 'max', 'clip_ratio'):
        np.testing.assert_allclose(
            combined[f'{NAME}/{name}'], reduce.values(whole[1])[f'{NAME}/{name}'], rtol=2e-6
        )


def test_what_cannot_work_is_refused():
    logprob, batch = make_batch()

    def weigh(given: dict = batch, **knobs):
        return importance_weights(given, jnp.asarray(logprob), **(DEFAULTS | knobs))

    for knobs, words in (
        (dict(mode='token_trunc'), 'importance_sampling_mode "token_trunc".*mean "token_truncate"'),
        (dict(which='allways'), 'importance_sampling_correction "allways".*mean "always"'),
        (dict(clip_max=0.5), 'importance_sampling_clip_max=0.5: must be at least 1'),
        (dict(clip_min=2.0), 'importance_sampling_clip_min=2.0: must be from 0 to 1'),
    ):
        with pytest.raises(UserError, match=words):
            weigh(**knobs)
    missing = {name: x for name, x in batch.items() if name != 'logprob_sampled'}
    with pytest.raises(UserError, match='needs logprob_sampled'):
        weigh(missing)
    assert weigh({name: x for name, x in missing.items() if name != 'staleness'}) == (None, {})
    assert weigh(missing, which='none') == (None, {})


def test_who_needs_a_second_pass():
    assert needed(
        functools.partial(clipped_policy_gradient, importance_sampling_correction='always')
    ) == {'logprob_old'}
    assert needed(clipped_policy_gradient) == frozenset()
