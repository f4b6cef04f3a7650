"""Low-rank adapters in the model: neutral at the start, equal to their merged weights, and separate
from their base."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from reasonjax import config as configs
from reasonjax.errors import UserError
from reasonjax.interop.huggingface.families import LLAMA
from reasonjax.interop.peft.adapter import peft
from reasonjax.interop.peft.write import pairs_of, save_adapter
from reasonjax.methods import adapters, filters
from reasonjax.model.score import score
from reasonjax.training import optimizers
from reasonjax.weights import partition
from reasonjax.weights.linear import LowRank, merge_tree

TIED = toys.changed(tied=True, layers=1)
DEEP = toys.changed(tied=True)
ATTENTION = ('layers/attention/q', 'layers/attention/v')
EVERYTHING = ('embed', 'layers/*')


@functools.cache
def adapted(config=TIED, targets=EVERYTHING, nested=False, noise=0.0):
    params = toys.params(config)
    for seed in range(1 + nested):
        params = adapters.lora(
            params, jax.random.key(seed), r=2, lora_alpha=3.0, target_modules=targets
        )
        params = shake(params, noise)
    return params


def shake(params, noise):
    """Adds noise to every B."""
    rng = np.random.default_rng(7)

    def move(path, x):
        return (
            x + noise * rng.standard_normal(x.shape).astype(x.dtype)
            if partition.path_name(path).endswith('/b')
            else x
        )

    return jax.tree_util.tree_map_with_path(move, params) if noise else params


def test_none_returns_its_input():
    params = toys.params()
    assert adapters.none(params, jax.random.key(0)) is params


@pytest.mark.parametrize(
    'config, targets, nested',
    [
        (TIED, EVERYTHING, False),
        (TIED, EVERYTHING, True),
        (toys.changed(layers=1), ('head',), False),
    ],
)
def test_a_fresh_adapter_equals_its_base_bit_for_bit(config, targets, nested):
    batch, plain, params = (
        toys.random_batch(),
        toys.params(config),
        adapted(config, targets, nested),
    )
    # Operation by operation; compiled as a whole, XLA fuses (and rounds) the two programs
    # differently.
    toys.assert_trees_equal(score(params, config, batch), score(plain, config, batch))
    toys.assert_trees_close(
        toys.scorer(config)(params, batch), toys.scorer(config)(plain, batch), atol=1e-5
    )
    toys.assert_trees_equal(merge_tree(params), plain)


def test_layers_are_scanned_with_their_adapters():
    scanned, params, batch = (
        toys.changed(DEEP, scan=True),
        adapted(DEEP, noise=0.3),
        toys.random_batch(),
    )
    toys.assert_trees_close(
        toys.scorer(scanned)(params, batch), toys.scorer(DEEP)(params, batch), atol=1e-5
    )


def test_adapted_equals_merged():
    batch = toys.random_batch()
    for nested in (False, True):
        params = adapted(noise=0.3, nested=nested)
        got, wanted = (toys.scorer(TIED)(p, batch) for p in (params, merge_tree(params)))
        np.testing.assert_allclose(got.logprob, wanted.logprob, atol=2e-5)
        assert (
            np.abs(got.logprob - toys.scorer(TIED)(toys.params(TIED), batch).logprob).max() > 0.05
        )


def test_what_a_fresh_pair_looks_like():
    params = adapters.lora(
        toys.params(),
        jax.random.key(0),
        r=8,
        lora_alpha=4.0,
        target_modules=('layers/mlp/down', 'head'),
    )
    down, head = params['layers']['mlp']['down'], params['head']
    assert (
        isinstance(down, LowRank)
        and down.a.shape == (2, 24, 8)
        and down.b.shape == (2, 8, 16)
        and down.scale.shape == (2,)
    )
    assert head.a.shape == (16, 8) and head.b.shape == (8, 13) and head.scale.shape == ()
    for node, rows in ((down, 24), (head, 16)):
        assert np.all(node.b == 0) and np.all(node.scale == 0.5)
        bound = 1 / math.sqrt(rows)
        # Uniform in +-bound: reaches near the ends, and has their standard deviation.
        assert 0.9 * bound < np.abs(node.a).max() <= bound
        np.testing.assert_allclose(np.std(node.a), bound / math.sqrt(3), rtol=0.15)
    assert not np.any(down.a[0] == down.a[1])
    assert isinstance(params['layers']['mlp']['up'], jax.Array)
    stabilised = adapters.lora(
        toys.params(),
        jax.random.key(0),
        r=4,
        lora_alpha=4.0,
        target_modules=('head',),
        use_rslora=True,
    )
    assert stabilised['head'].scale == 2.0


def test_a_leafs_draw_does_not_depend_on_which_others_are_adapted():
    few, many = adapted(targets=ATTENTION), adapted(targets=EVERYTHING)
    for name in ('q', 'v'):
        np.testing.assert_array_equal(
            few['layers']['attention'][name].a, many['layers']['attention'][name].a
        )
    assert not np.any(
        few['layers']['attention']['q'].a
        == adapters.lora(toys.params(TIED), jax.random.key(5), r=2, target_modules=ATTENTION)[
            'layers'
        ]['attention']['q'].a
    )


def test_gradient_reaches_the_factors_only():
    params, batch = adapted(noise=0.3), toys.random_batch()
    train, freeze = partition.partition(params, filters.lora(None, params))

    def value(train):
        return toys.weighted_score(partition.combine(train, freeze), TIED, batch)

    grads = jax.jit(jax.grad(value))(train)
    assert jax.tree.structure(grads) == jax.tree.structure(train)
    names = partition.names(grads)
    assert names and all(name.endswith(('/a', '/b')) for name in names)
    assert all(np.abs(g).max() > 1e-6 for g in jax.tree.leaves(grads))
    # Chain rule through the dense weight: dB = scale A' dW.
    dense = toys.weighted_score_and_grad(TIED)(merge_tree(params), batch)[1]
    for node, grad, outer in (
        (params['embed'], grads['embed'], dense['embed']),
        (
            params['layers']['mlp']['down'],
            grads['layers']['mlp']['down'],
            dense['layers']['mlp']['down'],
        ),
    ):
        wanted = 1.5 * jnp.swapaxes(node.a, -1, -2) @ outer
        np.testing.assert_allclose(grad.b, wanted, atol=1e-4 * np.abs(wanted).max() + 1e-5)


def test_bad_knobs_are_named():
    with pytest.raises(UserError, match=r'config.adapter.r: .*at least 1, got 0'):
        adapters.lora(toys.params(), jax.random.key(0), r=0)
    with pytest.raises(
        UserError,
        match=r'config.adapter.target_modules: "layers/atention/\*" matches no matrix.*layers/attention/q',
    ):
        adapters.lora(
            toys.params(), jax.random.key(0), target_modules=('head', 'layers/atention/*')
        )
    with pytest.raises(UserError, match='"norm" matches no matrix'):
        adapters.lora(toys.params(), jax.random.key(0), target_modules=('norm',))


def test_banks_of_experts_take_no_adapter():
    params = toys.params(toys.changed(experts=3))
    with pytest.raises(
        UserError,
        match=r'"layers/mlp/\*" matches layers/mlp/down, layers/mlp/gate, layers/mlp/up, which are banks of',
    ):
        adapters.lora(params, jax.random.key(0))
    assert isinstance(
        adapters.lora(params, jax.random.key(0), target_modules=ATTENTION)['layers']['attention'][
            'q'
        ],
        LowRank,
    )


def test_training_goes_on_from_a_peft_folder(tmp_path):
    config = toys.changed(qkv_bias=False, qk_norm='none', head_dim=4)
    trained = shake(
        adapters.lora(toys.params(config), jax.random.key(0), r=2, target_modules=ATTENTION), 0.3
    )
    save_adapter(tmp_path, pairs_of(trained, LLAMA, config), base='', layers=config.layers)
    other = toys.params(config, seed=1)
    adapter = configs.resolve(dict(name='peft', path=str(tmp_path)), 'adapter')
    params = adapter(other, jax.random.key(5))
    toys.assert_trees_equal(
        params['layers']['attention']['v'],
        dataclasses.replace(
            trained['layers']['attention']['v'], base=other['layers']['attention']['v']
        ),
    )
    assert params['layers']['mlp']['up'] is other['layers']['mlp']['up']
    # A run asks for shapes alone before it reads a checkpoint.
    shapes = jax.eval_shape(lambda p: adapter(p, jax.random.key(5)), other)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), params
    )
    # Fresh pairs may go over read ones.
    assert isinstance(
        adapters.lora(params, jax.random.key(0), r=1)['layers']['attention']['q'].base, LowRank
    )
    with pytest.raises(UserError, match='config.adapter.path: .*no PEFT adapter there'):
        peft(other, jax.random.key(0), path=str(tmp_path / 'none'))
    with pytest.raises(
        UserError,
        match=r'config.adapter.path: .*does not fit this model(.|\n)*expected \[24, 16\], found \[16, 16\]',
    ):
        peft(toys.params(), jax.random.key(0), path=str(tmp_path))


BASES = {
    'float32': {},
    'bfloat16': {},
    'float16': {},
    'int8 under bfloat16': dict(quantise='int8', quantise_block=4),
}


def over(dtype: str, **knobs):
    """A fresh adapter over a base of this dtype."""
    base = jax.tree.map(lambda x: x.astype(dtype.split()[-1]), toys.params(TIED))
    return adapters.lora(base, jax.random.key(3), r=2, **BASES[dtype] | knobs)


@pytest.mark.parametrize('dtype', BASES)
def test_factors_and_moments_are_float32_whatever_the_base_is(dtype):
    wanted, params = over('float32'), over(dtype)
    nested = adapters.lora(params, jax.random.key(4), r=2)
    for tree in (params, nested, jax.eval_shape(lambda: over(dtype))):
        factors = {
            name: x
            for name, x in zip(partition.names(tree), jax.tree.leaves(tree))
            if name.endswith(('/a', '/b'))
        }
        assert factors and {str(x.dtype) for x in factors.values()} == {'float32'}
    assert params['embed'].dtype == dtype.split()[-1]
    # No draw depends on the dtype of the base.
    node, float_node = (tree['layers']['attention']['q'] for tree in (params, wanted))
    np.testing.assert_array_equal(node.a, float_node.a)
    trainable, _ = partition.partition(params, filters.lora(None, params))
    moments = optimizers.adamw(lambda step: 1e-3).init(trainable)
    assert {str(x.dtype) for x in jax.tree.leaves(moments) if x.ndim} == {'float32'}


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_products_are_computed_in_the_dtype_of_the_activations(dtype):
    params = jax.tree.map(lambda x: x + 0.1, over(dtype)['layers']['attention']['q'])
    x = jnp.ones((3, 16), dtype)
    for apply, y in ((params.apply, x), (params.apply_transposed, jnp.ones((3, 24), dtype))):
        layer = jax.tree.map(lambda w: w[0], params)
        assert getattr(layer, apply.__name__)(y).dtype == dtype
        jaxpr = str(jax.make_jaxpr(getattr(layer, apply.__name__))(y))
        products = [line for line in jaxpr.splitlines() if 'dot_general' in line]
        assert len(products) == 3 and all(
            {'bfloat16': 'bf16', 'float16': 'f16'}[dtype] in line for line in products
        ), products


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
def test_twenty_small_updates_move_every_element_of_a(dtype):
    config = toys.changed(TIED, param_dtype=dtype.split()[-1], compute_dtype=dtype.split()[-1])
    params, batch = over(dtype), toys.random_batch(config=config)
    trainable, frozen = partition.partition(params, filters.lora(None, params))
    optimizer = optimizers.adamw(lambda step: 2.5e-5)
    gradient = jax.grad(lambda t: -toys.weighted_score(partition.combine(t, frozen), config, batch))

    def step(carry, _):
        t, moments = carry
        changes, moments = optimizer.update(gradient(t), moments, t)
        return (optax.apply_updates(t, changes), moments), None

    after = jax.jit(lambda t: jax.lax.scan(step, (t, optimizer.init(t)), None, 20)[0][0])(trainable)
    before, after = (
        dict(zip(partition.names(tree), jax.tree.leaves(tree))) for tree in (trainable, after)
    )
    moved = np.concatenate(
        [np.ravel(before[name] != after[name]) for name in before if name.endswith('/a')]
    )
    assert len(moved) > 200 and moved.mean() > 0.98
