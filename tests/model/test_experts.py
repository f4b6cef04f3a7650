"""Mixtures of experts against a loop over tokens in float64, and losses of the router that no way
of splitting a step can change."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from reasonjax.model import experts
from reasonjax.model.experts import Routing, mixture, penalty
from reasonjax.training import step

MOE = toys.changed(experts=5, experts_per_token=2, mlp_dim=8, pad_id=-1)
LOSSES = toys.changed(MOE, router_balance_weight=0.3, router_z_weight=0.02)
B, T, D = 3, 7, 16


def layer(config, seed=0):
    """Weights of one layer's mixture, and an input."""
    rng = np.random.default_rng(seed)
    E, F = config.experts, config.mlp_dim
    shapes = {'router': (D, E), 'up': (E, D, F), 'gate': (E, D, F), 'down': (E, F, D)}
    weights = {
        name: jnp.asarray(rng.standard_normal(shape) / np.sqrt(shape[-2]), jnp.float32)
        for name, shape in shapes.items()
    }
    return weights, jnp.asarray(rng.standard_normal((B, T, D)), jnp.float32)


def by_token(w, config, x):
    """The mixture from its definition: output, chosen experts, probabilities and log-normaliser of
    every token."""
    w, x = (
        {k: np.asarray(v, np.float64) for k, v in w.items()},
        np.asarray(x, np.float64).reshape(-1, D),
    )
    out, picked, every, norm = np.zeros_like(x), [], [], []
    for n, token in enumerate(x):
        z = token @ w['router']
        p = np.exp(z - z.max())
        p /= p.sum()
        best = np.argsort(-p)[: config.experts_per_token]
        share = p[best] / p[best].sum() if config.normalise_router else p[best]
        for e, weight in zip(best, share):
            gate = token @ w['gate'][e]
            out[n] += weight * ((gate / (1 + np.exp(-gate))) * (token @ w['up'][e])) @ w['down'][e]
        picked.append(best)
        every.append(p)
        norm.append(np.log(np.sum(np.exp(z))))
    return out.reshape(B, T, D), np.array(picked), np.array(every), np.array(norm)


@functools.cache
def compiled(config):
    return jax.jit(lambda w, x, counted: mixture(w, config, x, jax.nn.silu, counted))


@pytest.mark.parametrize('normalise', [True, False])
@pytest.mark.parametrize('k', [1, 2, 5])
def test_equals_a_loop_over_tokens(k, normalise):
    config = toys.changed(MOE, experts_per_token=k, normalise_router=normalise)
    w, x = layer(config)
    got, routing = compiled(config)(w, x, None)
    wanted, picked, every, _ = by_token(w, config, x)
    assert routing is None and got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, atol=3e-6)
    # Where all experts are picked, normalised or not is the same; otherwise it is not.
    other = by_token(w, toys.changed(config, normalise_router=not normalise), x)[0]
    assert np.allclose(other, wanted, atol=1e-9) == (k == 5)
    assert len({tuple(row) for row in np.sort(picked)}) > 1 or k == 5


def test_experts_that_nobody_picks():
    w, x = layer(MOE)
    w['router'] = w['router'].at[:, 2:].set(0).at[0].set(jnp.array([9.0, 8.0, -9, -9, -9]))
    x = x.at[..., 0].set(3.0)
    got, routing = compiled(MOE)(w, x, jnp.ones((B, T), bool))
    np.testing.assert_allclose(got, by_token(w, MOE, x)[0], atol=3e-6)
    assert np.array_equal(routing.picks, [[T, T, 0, 0, 0]] * B)


@pytest.mark.parametrize('normalise', [True, False])
def test_gradients_equal_those_of_all_experts_run_on_all_tokens(normalise):
    config = toys.changed(MOE, normalise_router=normalise)
    w, x = layer(config)
    direction = np.random.default_rng(1).standard_normal((B, T, D)).astype(np.float32)

    def everywhere(w, x):
        probability = jax.nn.softmax(x @ w['router'])
        best = jax.lax.top_k(probability, config.experts_per_token)[1]
        chosen = jax.nn.one_hot(best, config.experts).sum(-2) * probability
        chosen = chosen / chosen.sum(-1, keepdims=True) if normalise else chosen
        hidden = jax.nn.silu(jnp.einsum('btd,edf->btef', x, w['gate'])) * jnp.einsum(
            'btd,edf->btef', x, w['up']
        )
        return jnp.einsum('btef,efd,bte->btd', hidden, w['down'], chosen)

    got, wanted = (
        jax.jit(jax.grad(lambda w, x, run=run: jnp.sum(direction * run(w, x)), (0, 1)))(w, x)
        for run in (lambda w, x: mixture(w, config, x, jax.nn.silu, None)[0], everywhere)
    )
    toys.assert_trees_close(got, wanted, atol=2e-5)
    assert all(np.abs(leaf).max() > 1e-2 for leaf in jax.tree.leaves(wanted))


@pytest.mark.parametrize('normalise', [True, False])
def test_one_expert_is_a_plain_mlp(normalise):
    config = toys.changed(MOE, experts=1, experts_per_token=1, normalise_router=normalise, layers=1)
    plain = toys.changed(config, experts=0, normalise_router=True)
    params, batch = toys.params(config), toys.random_batch()
    layers = params['layers']
    mlp = {
        name: w[:, 0] if name in ('up', 'gate', 'down') else w
        for name, w in layers['mlp'].items()
        if name != 'router'
    }
    dense = params | {'layers': layers | {'mlp': mlp}}
    (value, grads), (wanted, wanted_grads) = (
        toys.weighted_score_and_grad(c)(p, batch) for c, p in ((config, params), (plain, dense))
    )
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    got = {
        name: g[:, 0] if name in ('up', 'gate', 'down') else g
        for name, g in grads['layers']['mlp'].items()
        if name != 'router'
    }
    toys.assert_trees_close(got, wanted_grads['layers']['mlp'], atol=1e-5)
    np.testing.assert_allclose(grads['layers']['mlp']['router'], 0, atol=1e-6)


def test_the_router_is_float32_where_the_rest_is_not():
    config = toys.changed(MOE, compute_dtype='bfloat16')
    w, x = layer(config)
    half = x.astype(jnp.bfloat16)
    out, routing = compiled(config)(w, half, jnp.ones((B, T), bool))
    assert out.dtype == jnp.bfloat16 and all(leaf.dtype == jnp.float32 for leaf in routing)
    # The products are of bfloat16 numbers, their sums are not rounded to it.
    rounded = {'router': w['router'].astype(jnp.bfloat16).astype(jnp.float32)}
    _, _, every, norm = by_token(w | rounded, config, half.astype(jnp.float32))
    np.testing.assert_allclose(routing.shares, every.reshape(B, T, -1).sum(1), atol=1e-5)
    np.testing.assert_allclose(routing.z, (norm**2).reshape(B, T).sum(1), rtol=1e-5)


def test_routing_counts_what_counts():
    w, x = layer(MOE)
    counted = np.random.default_rng(2).random((B, T)) < 0.6
    _, routing = compiled(MOE)(w, x, jnp.asarray(counted))
    _, picked, every, norm = by_token(w, MOE, x)
    picks = np.zeros((B, 5))
    for b, t in zip(*np.nonzero(counted)):
        picks[b, picked.reshape(B, T, 2)[b, t]] += 1
    np.testing.assert_array_equal(routing.picks, picks)
    np.testing.assert_allclose(
        routing.shares, (every.reshape(B, T, 5) * counted[..., None]).sum(1), atol=1e-5
    )
    np.testing.assert_allclose(routing.z, ((norm**2).reshape(B, T) * counted).sum(1), rtol=1e-5)


def test_balance_loss_of_one_row_and_layer_is_transformers():
    transformers = pytest.importorskip('transformers')
    torch = pytest.importorskip('torch')
    loss_of = transformers.models.mixtral.modeling_mixtral.load_balancing_loss_func
    w, x = layer(MOE)
    row = x[:1]
    _, routing = compiled(MOE)(w, row, jnp.ones((1, T), bool))
    theirs = loss_of((torch.from_numpy(np.array(row[0] @ w['router'])),), num_experts=5, top_k=2)
    config = toys.changed(MOE, router_balance_weight=0.7)
    loss, metrics = penalty(
        config, jax.tree.map(lambda leaf: leaf[None], routing), jnp.array([7.0]), jnp.float32(7)
    )
    np.testing.assert_allclose(metrics['router/balance_loss'].value(), float(theirs), rtol=1e-5)
    np.testing.assert_allclose(loss, 0.7 * float(theirs), rtol=1e-5)


def test_losses_by_hand():
    """Two layers, two rows of three and one tokens, two experts, one pick each."""
    config = toys.changed(
        MOE, experts=2, experts_per_token=1, router_balance_weight=0.5, router_z_weight=0.1
    )
    routing = Routing(
        picks=jnp.array([[[3.0, 0], [0, 1]], [[1, 2], [1, 0]]]),
        shares=jnp.array([[[2.4, 0.6], [0.5, 0.5]], [[1.5, 1.5], [0.75, 0.25]]]),
        z=jnp.array([[3.0, 2], [6, 1]]),
    )
    loss, metrics = penalty(config, routing, jnp.array([3.0, 1]), jnp.float32(10))
    # E sum(picks / n * shares / n), times n for the weight of the row: rows 1 and 2 of layer 1,
    # then of layer 2.
    balance = (
        np.array([[2 * 3 * 2.4 / 3, 2 * 1 * 0.5], [2 * (1 * 1.5 + 2 * 1.5) / 3, 2 * 1 * 0.75]])
        .mean(0)
        .sum()
    )
    z = np.array([[3, 2], [6, 1]]).mean(0).sum()
    np.testing.assert_allclose(loss, (0.5 * balance + 0.1 * z) / 10, rtol=1e-6)
    np.testing.assert_allclose(metrics['router/balance_loss'].value(), balance / 4, rtol=1e-6)
    np.testing.assert_allclose(metrics['router/z_loss'].value(), z / 4, rtol=1e-6)
    # The busiest of layer 1 has 3 of 4 picks, of layer 2 two of 4: over an equal share of 2.
    assert metrics['router/max_load'].value() == 1.5


@pytest.mark.parametrize('even', [True, False])
def test_balance_loss_is_between_k_and_experts_times_k(even):
    config = toys.changed(MOE, experts=4, experts_per_token=2)
    spread = jnp.full((1, 1, 4), 3.0) if even else jnp.array([[[6.0, 6, 0, 0]]])
    routing = Routing(spread, spread / 2, jnp.zeros((1, 1)))
    value = penalty(config, routing, jnp.array([6.0]), jnp.float32(6))[1][
        'router/balance_loss'
    ].value()
    np.testing.assert_allclose(value, 2 if even else 4, rtol=1e-6)


@functools.cache
def updated(config, accumulation=1, scan=False, objective=toys.nll):
    config = toys.changed(config, scan=scan)
    optimizer = optax.sgd(0.1)
    update = jax.jit(step.make_update(config, objective, optimizer, accumulation=accumulation))

    def run(params, batch):
        now = step.State(jnp.zeros((), jnp.int32), params, optimizer.init(params))
        return update(now, jax.tree.map(lambda _: None, params), batch, jax.random.key(0))

    return run


@pytest.mark.parametrize('accumulation, scan', [(2, False), (4, True)])
def test_splitting_a_step_changes_nothing(accumulation, scan):
    params, batch = toys.params(LOSSES), toys.random_batch(rows=4)
    (whole, metrics), (split, split_metrics) = (
        updated(LOSSES, n, scan=s)(params, batch) for n, s in ((1, False), (accumulation, scan))
    )
    toys.assert_trees_close(whole.trainable, split.trainable, atol=1e-6)
    for name in metrics:
        if name != 'router/max_load':  # the busiest of a micro-batch
            np.testing.assert_allclose(split_metrics[name], metrics[name], rtol=2e-5, err_msg=name)
    assert {'router/balance_loss', 'router/z_loss', 'router/max_load'} < set(metrics)


def test_an_objective_may_score_several_batches():
    """Halves scored one after the other are the whole, in the loss and in what the router
    reports."""

    def in_halves(score, batch, key):
        rows = {name: x for name, x in batch.items() if jnp.ndim(x)}
        totals = {name: x for name, x in batch.items() if not jnp.ndim(x)}
        losses = [
            toys.nll(score, {name: x[half] for name, x in rows.items()} | totals, key)[0]
            for half in (slice(0, 1), slice(1, None))
        ]
        return sum(losses), {}

    params, batch = toys.params(LOSSES), toys.random_batch(rows=4)
    (whole, metrics), (halves, of_halves) = (
        updated(LOSSES, objective=o)(params, batch) for o in (toys.nll, in_halves)
    )
    toys.assert_trees_close(whole.trainable, halves.trainable, atol=1e-6)
    for name in ('loss', 'router/balance_loss', 'router/z_loss'):
        np.testing.assert_allclose(of_halves[name], metrics[name], rtol=2e-5, err_msg=name)


def test_weights_reach_the_router():
    params, batch = toys.params(LOSSES), toys.random_batch(rows=4)
    (with_losses, metrics), (without, plain) = (updated(c)(params, batch) for c in (LOSSES, MOE))
    np.testing.assert_allclose(
        metrics['loss'],
        plain['loss'] + 0.3 * plain['router/balance_loss'] + 0.02 * plain['router/z_loss'],
        rtol=1e-5,
    )
    router = (s.trainable['layers']['mlp']['router'] for s in (with_losses, without))
    assert np.abs(np.subtract(*router)).max() > 1e-4


def test_weights_of_zero_are_the_parent_bit_for_bit(monkeypatch):
    params, batch = toys.params(MOE), toys.random_batch(rows=4)
    found, metrics = updated(MOE)(params, batch)
    monkeypatch.setattr(experts, 'penalty', lambda *_: (0.0, {}))
    parent, plain = updated.__wrapped__(MOE)(params, batch)
    assert not any(name.startswith('router') for name in plain)
    toys.assert_trees_equal(found, parent)
    assert metrics['loss'] == plain['loss']


def test_padding_does_not_count():
    params = toys.params(LOSSES)
    documents = [[[3, 7, 2, 9]], [[5, 1, 8], [4, 4]], [[6, 2]], [[1, 2, 3, 4, 5, 6, 7]]]
    short, long = toys.batch(*documents), toys.batch(*documents, rows=6, length=15)
    # What stands under the padding is nobody's business.
    long['tokens'] = np.where(long['segments'] > 0, long['tokens'], 9).astype(np.int32)
    (a, metrics), (b, more) = (updated(LOSSES)(params, batch) for batch in (short, long))
    toys.assert_trees_close(a.trainable, b.trainable, atol=1e-6)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], more[name], rtol=2e-5, err_msg=name)
