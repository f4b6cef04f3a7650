"""Moments in the host's memory: the same update, layer by layer, in runs too."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from reasonjax.errors import UserError
from reasonjax.methods import adapters, filters
from reasonjax.parallel import mesh as meshes
from reasonjax.training import offload, optimizers, step
from reasonjax.weights import partition

RATE = optax.linear_schedule(0.1, 0.01, 4)
OPTIMIZERS = {
    'adamw': functools.partial(optimizers.adamw, RATE, weight_decay=0.3),
    'clipped': functools.partial(optimizers.adamw, RATE, weight_decay=0.3, clip_norm=0.5, mu_dtype='bfloat16'),
    'momentum': functools.partial(optimizers.sgd, RATE, momentum=0.9, clip_norm=0.5),
    'sgd': functools.partial(optimizers.sgd, RATE),
}


def trainable(kind):
    if kind == 'all':
        return toys.params()
    params = adapters.lora(toys.params(), jax.random.key(0), r=2)
    return partition.partition(params, filters.lora(None, params))[0]


def gradients(params, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), params)


@pytest.mark.parametrize('kind', ['all', 'lora'])
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_layer_by_layer_equals_all_at_once(name, kind):
    optimizer, params = OPTIMIZERS[name](), trainable(kind)
    assert isinstance(optimizer, optimizers.Separable)
    apply = jax.jit(offload.streamed(optimizer, moving=False))

    @jax.jit
    def wanted(grads, moments, params):
        changes, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, changes), moments

    moments = optimizer.init(params)
    ours = theirs = (params, moments)
    for number in range(3):
        grads = gradients(params, number)
        same = apply(grads, ours[1], ours[0], jnp.asarray(False))
        toys.assert_trees_equal(same, ours)
        ours, theirs = apply(grads, ours[1], ours[0], jnp.asarray(True)), wanted(grads, theirs[1], theirs[0])
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for got, want in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got.astype(jnp.float32), want.astype(jnp.float32), rtol=1e-5, atol=1e-6)
    assert not np.allclose(jax.tree.leaves(ours[0])[0], jax.tree.leaves(params)[0])


def kinds(tree):
    return {x.sharding.memory_kind for x in jax.tree.leaves(tree)}


def test_moments_live_in_the_host_and_steps_keep_them_there():
    mesh, optimizer, params = meshes.make_mesh({}, jax.devices()[:1]), OPTIMIZERS['clipped'](), toys.params()
    whole, batch = meshes.replicated(mesh), toys.random_batch()
    placed, nothing = jax.tree.map(lambda _: whole, params), jax.tree.map(lambda _: None, params)
    found = []
    for offloaded in (False, True):
        now = step.create(params, optimizer, placed, whole, offload=offloaded)
        homes = jax.tree.map(lambda x: x.sharding, now)
        apply = offload.streamed(optimizer, moving=False) if offloaded else None
        update = offload.placing(step.make_update(toys.TINY, toys.nll, optimizer, apply=apply), (homes, whole), donate_argnums=0)
        for number in range(3):
            now, metrics = update(now, nothing, batch, jax.random.key(number))
        moments = now.optimizer[1][0]
        assert kinds((moments.mu, moments.nu)) == {'pinned_host' if offloaded else 'device'}
        assert kinds((now.step, now.trainable, moments.count, metrics)) == {'device'}
        found.append((now, metrics))
    (plain, metrics), (ours, our_metrics) = found
    toys.assert_trees_close(our_metrics, metrics, rtol=1e-5)
    toys.assert_trees_close(ours.trainable, plain.trainable, atol=1e-5)
    # Where nothing is offloaded, nothing but `jax.jit` is in the way.
    assert not hasattr(update, 'lower') and hasattr(offload.placing(lambda x: x, whole), 'lower')


def test_what_cannot_be_offloaded_is_refused():
    offload.check(jax.devices()[0], OPTIMIZERS['sgd'](), 'config.train.offload_optimizer')
    plain = types.SimpleNamespace(device_kind='toaster', addressable_memories=lambda: [types.SimpleNamespace(kind='device')])
    with pytest.raises(UserError, match='config.train.offload_optimizer: toaster devices cannot use the memory of their host; set it to'):
        offload.check(plain, OPTIMIZERS['sgd'](), 'config.train.offload_optimizer')
    with pytest.raises(UserError, match='config.train.offload_optimizer: the optimizer does not say .*Separable'):
        offload.check(jax.devices()[0], optax.adam(0.1), 'config.train.offload_optimizer')
