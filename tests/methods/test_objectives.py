"""nll against sums written out in float64; what it must not see; and the question that stages ask
of objectives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasonjax import reduce
from reasonjax.methods.objectives import clipped_policy_gradient, nll
from reasonjax.model.logprobs import Scored
from reasonjax.protocols import needed

B, T = 6, 9
KEY = jax.random.key(0)


def make_batch() -> tuple[np.ndarray, dict]:
    """Log-probs, and a batch of rows of different lengths with fractional weights; one row has
    none."""
    rng = np.random.default_rng(0)
    logprob = -rng.exponential(size=(B, T)).astype(np.float32)
    weights = np.where(rng.random((B, T)) < 0.7, rng.choice([0.25, 1.0, 1.5], (B, T)), 0).astype(
        np.float32
    )
    weights[:, 0] = 0
    weights[2] = 0
    weights[4, 5:] = 0
    batch = {
        'weights': weights,
        'row': np.arange(B),
        'entropy': rng.exponential(size=(B, T)).astype(np.float32),
        'correct': rng.random((B, T)) < 0.5,
    }
    return logprob, batch


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def compiled(table: jax.Array, batch: dict) -> tuple:
    return nll(lambda b: Scored(table[b['row']], b['entropy'], b['correct']), batch, KEY)


def run(logprob: np.ndarray, batch: dict, **step) -> tuple:
    return compiled(jnp.asarray(logprob), batch | step)


def test_nll_is_the_weighted_mean_and_so_are_its_gradient_and_metrics():
    logprob, batch = make_batch()
    weights = batch['weights'].astype(np.float64)
    total = weights.sum()
    (loss, metrics), gradient = run(logprob, batch, step_weight=np.float32(total))
    expected = 0.0
    for b in range(B):
        for t in range(T):
            expected -= weights[b, t] * float(logprob[b, t]) / total
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, -weights / total, rtol=1e-6)
    values = reduce.values(metrics)
    np.testing.assert_allclose(
        values['entropy'], (weights * batch['entropy']).sum() / total, rtol=1e-6
    )
    np.testing.assert_allclose(
        values['mean_token_accuracy'], (weights * batch['correct']).sum() / total, rtol=1e-6
    )


@pytest.mark.parametrize('size', [1, 2, 3])
def test_nll_and_metrics_do_not_depend_on_the_micro_batches(size: int):
    logprob, batch = make_batch()
    total = batch['weights'].sum()
    (whole, whole_metrics), whole_gradient = run(logprob, batch, step_weight=total)
    parts = [
        run(logprob, {k: v[i : i + size] for k, v in batch.items()}, step_weight=total)
        for i in range(0, B, size)
    ]
    np.testing.assert_allclose(sum(p[0][0] for p in parts), whole, rtol=1e-6)
    np.testing.assert_allclose(sum(p[1] for p in parts), whole_gradient, rtol=1e-6)
    combined = reduce.over(jax.tree.map(lambda *x: jnp.stack(x), *[p[0][1] for p in parts]))
    for name, value in reduce.values(combined).items():
        np.testing.assert_allclose(
            value, reduce.values(whole_metrics)[name], rtol=1e-6, err_msg=name
        )


def test_nll_does_not_see_tokens_without_weight():
    logprob, batch = make_batch()
    (whole, _), whole_gradient = run(logprob, batch, step_weight=batch['weights'].sum())
    hidden = np.where(batch['weights'] > 0, logprob, -np.inf).astype(np.float32)
    padded = {k: v if k == 'row' else np.pad(v, ((0, 0), (0, 4))) for k, v in batch.items()}
    wide = np.pad(hidden, ((0, 0), (0, 4)), constant_values=-np.inf)
    (loss, _), gradient = run(wide, padded, step_weight=batch['weights'].sum())
    np.testing.assert_allclose(loss, whole, rtol=1e-6)
    np.testing.assert_array_equal(gradient, np.pad(whole_gradient, ((0, 0), (0, 4))))


def test_an_objective_says_what_it_needs_given_its_knobs():
    assert needed(nll) == frozenset()
    assert needed(clipped_policy_gradient) == frozenset()
    assert (
        needed(functools.partial(clipped_policy_gradient, beta=0.0, loss_type='grpo'))
        == frozenset()
    )
    assert needed(functools.partial(clipped_policy_gradient, beta=0.04)) == {'logprob_ref'}
