"""The spec tree: shapes, counts, and fresh draws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from reasonjax.model import spec
from reasonjax.weights import partition


@functools.cache
def fresh(config, seed=0):
    # Not compiled as a whole: draws of one shape then share a program between configs.
    return spec.initialise(spec.specs(config), jax.random.key(seed), 'float32')


def by_name(tree):
    return dict(zip(partition.names(tree), jax.tree.leaves(tree)))


def test_quickstart_has_335904_parameters():
    assert spec.count(spec.specs(toys.QUICKSTART)) == 335_904
    assert sum(x.size for x in jax.tree.leaves(fresh(toys.QUICKSTART))) == 335_904


@pytest.mark.parametrize(
    'changes', [{}, {'tied': True}, {'gated': False, 'qk_norm': 'none', 'qkv_bias': False}]
)
def test_abstract_equals_fresh(changes):
    config = toys.changed(**changes)
    tree = spec.specs(config)
    made = jax.eval_shape(lambda key: spec.initialise(tree, key, 'bfloat16'), jax.random.key(0))
    described = spec.abstract(tree, 'bfloat16')
    assert jax.tree.structure(described) == jax.tree.structure(made)
    for a, b, node in zip(
        jax.tree.leaves(described),
        jax.tree.leaves(made),
        jax.tree.leaves(tree, is_leaf=spec.is_spec),
    ):
        assert (
            a.shape == b.shape == node.shape
            and a.dtype == b.dtype == jnp.bfloat16
            and len(node.axes) == len(node.shape)
        )
    names = set(partition.names(made))
    assert ('head' in names) == (not config.tied)
    assert ('layers/mlp/gate' in names) == config.gated
    assert ('layers/attention/q_norm' in names) == (config.qk_norm == 'head')
    assert {f'layers/attention/{n}_bias' for n in 'qkv'} & names == (
        {f'layers/attention/{n}_bias' for n in 'qkv'} if config.qkv_bias else set()
    )


@pytest.mark.parametrize(
    'changes, own',
    [
        ({'tied': True, 'qk_norm': 'none', 'qkv_bias': False}, ()),
        ({'mlp_dim': 32}, ('mlp/up', 'mlp/gate', 'mlp/down')),
    ],
)
def test_a_leafs_draw_does_not_depend_on_others(changes, own):
    a, b = by_name(fresh(toys.TINY)), by_name(fresh(toys.changed(**changes)))
    for name in set(a) & set(b):
        if not name.endswith(tuple(own) or ('nothing',)):
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_draws_differ_by_leaf_layer_and_seed():
    a, b = by_name(fresh(toys.TINY)), by_name(fresh(toys.TINY, seed=1))
    k, v = a['layers/attention/k'], a['layers/attention/v']
    assert k.shape == v.shape and not np.any(k == v)
    assert not np.any(k[0] == k[1]) and not np.any(k == b['layers/attention/k'])


def test_scale_of_fresh_weights():
    config = toys.changed(toys.QUICKSTART, gated=True, qk_norm='head', qkv_bias=True)
    made = by_name(fresh(config))
    matrix, residual = 96**-0.5, (2 * 3) ** -0.5
    wanted = {
        f'layers/{name}': matrix
        for name in ('attention/q', 'attention/k', 'attention/v', 'mlp/up', 'mlp/gate')
    }
    wanted |= {
        'embed': 0.5,
        'head': matrix,
        'layers/attention/o': matrix * residual,
        'layers/mlp/down': 384**-0.5 * residual,
    }
    for name, x in made.items():
        if name.endswith('norm'):
            assert np.all(x == 1)
        elif name.endswith('bias'):
            assert np.all(x == 0)
        else:
            np.testing.assert_allclose(np.std(x), wanted[name], rtol=0.05, err_msg=name)
            assert abs(np.mean(x)) < 5 * wanted[name] / np.sqrt(x.size)
