"""The step: invariant to how a batch is split and padded, careful with what is not finite, compiled
once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from reasonjax import reduce
from reasonjax.errors import UserError
from reasonjax.methods import adapters, filters
from reasonjax.training import optimizers
from reasonjax.training import step as state
from reasonjax.weights import partition

KEY = jax.random.key(0)
ONE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
SGD = optax.sgd(0.3)
MODEL = toys.changed(layers=1)


def begin(params, optimizer, trainable=None):
    """A fresh state, and the frozen part."""
    trainable = jax.tree.map(lambda _: True, params) if trainable is None else trainable
    train, frozen = partition.partition(params, trainable)
    return state.create(train, optimizer, jax.tree.map(lambda _: ONE, train), ONE), frozen


@functools.cache
def updater(optimizer=SGD, config=MODEL, objective=toys.nll, **options):
    return jax.jit(state.make_update(config, objective, optimizer, **options), donate_argnums=0)


def step(batch, **options):
    """Parameters and metrics after one step of SGD on the whole model."""
    before, frozen = begin(toys.params(MODEL), SGD)
    after, metrics = updater(**options)(before, frozen, batch, KEY)
    return after.trainable, metrics


def eight_rows():
    return toys.random_batch(rows=8)


@pytest.mark.parametrize('accumulation', [2, 4])
def test_accumulation_changes_nothing(accumulation):
    batch = eight_rows()
    one, metrics = step(batch)
    many, metrics2 = step(batch, accumulation=accumulation)
    toys.assert_trees_close(many, one, atol=1e-6, rtol=1e-5)
    for name in ('loss', 'grad_norm', 'entropy'):
        np.testing.assert_allclose(metrics2[name], metrics[name], rtol=2e-6, err_msg=name)
    moved = jax.tree.map(
        lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), one, toys.params(MODEL)
    )
    assert min(jax.tree.leaves(moved)) > 1e-4


def norm(tree):
    return np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(tree)))


def test_one_step_is_gradient_descent_on_the_weighted_mean():
    batch, params, temperature = eight_rows(), toys.params(MODEL), 0.5
    after, metrics = step(batch, temperature=temperature)

    def loss(params):
        scored = toys.score(params, MODEL, batch, temperature=temperature)
        return -jnp.sum(batch['weights'] * scored.logprob) / batch['weights'].sum()

    value, grads = toys.compiled(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(metrics['loss'], value, rtol=1e-6)
    np.testing.assert_allclose(metrics['grad_norm'], norm(grads), rtol=1e-5)
    toys.assert_trees_close(
        after, jax.tree.map(lambda p, g: np.asarray(p) - 0.3 * g, params, grads), atol=1e-6
    )


def test_padding_rows_and_columns_change_nothing():
    batch = eight_rows()
    padded = {name: np.pad(x, ((0, 4), (0, 3))) for name, x in batch.items()}
    (one, metrics), (other, metrics2) = step(batch), step(padded)
    toys.assert_trees_close(other, one, atol=1e-6)
    np.testing.assert_allclose(metrics2['loss'], metrics['loss'], rtol=1e-6)
    np.testing.assert_allclose(metrics2['entropy'], metrics['entropy'], rtol=1e-5)


def test_what_is_not_finite_is_counted_and_not_applied():
    def faulty(score, batch, key):
        loss, metrics = toys.nll(score, batch, key)
        # The square root of 0 is finite, and its slope is not.
        fault = jnp.sqrt(1 - batch['bad_gradient'][0] + 0 * loss)
        return loss + fault + jnp.where(batch['bad_loss'][0] > 0, jnp.nan, 0.0), metrics

    def faults(loss, gradient):
        return eight_rows() | {
            'bad_loss': np.full(8, loss, np.float32),
            'bad_gradient': np.full(8, gradient, np.float32),
        }

    optimizer = optax.adam(0.1)
    update = jax.jit(state.make_update(MODEL, faulty, optimizer))
    now, frozen = begin(toys.params(MODEL), optimizer)
    now, metrics = update(now, frozen, faults(0, 0), KEY)
    assert (
        metrics['nonfinite'] == 0
        and np.isfinite(metrics['loss'])
        and np.isfinite(metrics['grad_norm'])
    )
    for loss, gradient in ((1, 0), (0, 1)):
        skipped, metrics = update(now, frozen, faults(loss, gradient), KEY)
        assert metrics['nonfinite'] == 1
        assert np.isfinite(metrics['loss']) == (not loss) and np.isfinite(metrics['grad_norm']) == (
            not gradient
        )
        toys.assert_trees_equal(skipped.trainable, now.trainable)
        toys.assert_trees_equal(skipped.optimizer, now.optimizer)
        assert skipped.step == 2
    after, metrics = update(skipped, frozen, faults(0, 0), KEY)
    assert metrics['nonfinite'] == 0 and not np.array_equal(
        after.trainable['embed'], now.trainable['embed']
    )


def test_only_the_trainable_part_moves_and_the_step_compiles_once():
    params = jax.jit(functools.partial(adapters.lora, r=2))(toys.params(MODEL), jax.random.key(1))
    optimizer = optimizers.adamw(optax.constant_schedule(0.01), weight_decay=0.5, clip_norm=1.0)
    now, frozen = begin(params, optimizer, filters.lora(None, params))
    kept = jax.tree.map(np.array, frozen)
    shapes = [(16, 24), (16, 12), (16, 12), (24, 16), (16, 24), (16, 24), (24, 16)]
    factors = sum(2 * (rows + columns) for rows, columns in shapes)
    assert sum(x.size for x in jax.tree.leaves(now.trainable)) == factors
    assert sum(x.size for x in jax.tree.leaves(now.optimizer) if x.ndim) == 2 * factors
    before = jax.tree.map(np.array, now.trainable)
    update, batch, losses = updater(optimizer), eight_rows(), []
    for number in range(4):
        now, metrics = update(now, frozen, batch, jax.random.fold_in(KEY, number))
        losses.append(float(metrics['loss']))
    assert update._cache_size() == 1 and now.step == 4 and losses == sorted(losses, reverse=True)
    toys.assert_trees_equal(frozen, kept)
    # B moves at the first step, A as soon as B is not zero.
    assert all(
        jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.any(a != b)), before, now.trainable))
    )


def test_the_first_state_is_a_copy():
    params = toys.params(MODEL)
    now, frozen = begin(params, SGD)
    updater()(now, frozen, eight_rows(), KEY)
    # The step donates its state, and `params` are still here.
    assert np.isfinite(params['embed']).all() and now.trainable['embed'].is_deleted()


def test_micro_batches_share_rows_totals_and_corruption():
    """What an objective and a corruption are given, read off their metrics."""
    batch = eight_rows()

    def corruption(batch, key, step, context):
        assert context == 'context' and batch['tokens'].shape == (8, 11)
        inputs = jnp.where(jax.random.uniform(key, (8, 11)) < 0.5, 7, batch['tokens'])
        return batch | {'inputs': inputs}, {'corrupted_at': reduce.Sum(step)}

    def objective(score, batch, key):
        loss, metrics = toys.nll(score, batch, key)
        metrics |= {
            name: reduce.Max(batch[name]) for name in ('step_weight', 'step_rows', 'step_micro')
        }
        metrics |= {
            'rows': reduce.Sum(jnp.sum(batch['row'])),
            'last_row': reduce.Max(batch['row'].max()),
        }
        pairing = jnp.abs(batch['weights'].sum(1) - expected[batch['row']]).max()
        return loss, metrics | {'mispaired': reduce.Max(pairing)}

    expected = jnp.asarray(batch['weights'].sum(1))
    runs = [
        step(batch, objective=objective, corruption=corruption, context='context', accumulation=n)
        for n in (1, 4)
    ]
    toys.assert_trees_close(runs[0][0], runs[1][0], atol=1e-6)
    for (_, metrics), micro in zip(runs, (1, 4)):
        np.testing.assert_allclose(metrics['step_weight'], batch['weights'].sum(), rtol=1e-6)
        assert (metrics['step_rows'], metrics['step_micro']) == (8, micro)
        assert (metrics['rows'], metrics['last_row'], metrics['corrupted_at']) == (28, 7, 0)
        assert metrics['mispaired'] < 1e-6


def test_rows_that_do_not_split_are_refused():
    with pytest.raises(UserError, match='8 rows .*accumulation=3'):
        step(eight_rows(), accumulation=3)


@pytest.mark.parametrize('accumulation', [1, 2])
def test_a_metric_that_cannot_be_combined_is_refused(accumulation):
    def plain(score, batch, key):
        loss, _ = toys.nll(score, batch, key)
        return loss, {'plain': loss}

    with pytest.raises(TypeError, match='metric "plain"'):
        step(eight_rows(), objective=plain, accumulation=accumulation)


@pytest.mark.parametrize('micro', [1, 2, 4])
def test_a_reference_is_scored_in_parts_of_the_same_rows(micro):
    batch = eight_rows()
    found = jax.jit(state.make_score(MODEL, micro=micro, temperature=0.7))(
        toys.params(MODEL), batch
    )
    wanted = toys.scorer(MODEL, 0.7)(toys.params(MODEL), batch).logprob
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    # rows differ: their order is tested
    assert np.unique(np.round(np.asarray(wanted)[:, 3], 4)).size == 8
