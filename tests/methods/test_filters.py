"""Filters: which leaves they choose, and what they refuse."""

import jax
import pytest
import toys

from reasonjax.errors import UserError
from reasonjax.methods import adapters, filters
from reasonjax.weights import partition


def chosen(tree):
    return {name for name, flag in zip(partition.names(tree), jax.tree.leaves(tree)) if flag}


def with_lora(targets=('layers/attention/*',)):
    return adapters.lora(toys.params(), jax.random.key(0), target_modules=targets)


def test_all():
    params = toys.params()
    trainable = filters.all(None, params)
    assert jax.tree.structure(trainable) == jax.tree.structure(params) and jax.tree.all(trainable)
    names = partition.names(with_lora())
    assert chosen(filters.all(None, with_lora())) == {
        name for name in names if not name.endswith('/scale')
    }


def test_paths_with_neutral_knobs_is_all():
    for params in (toys.params(), with_lora()):
        assert chosen(filters.paths(None, params)) == chosen(filters.all(None, params))


def test_paths():
    params = toys.params()
    assert chosen(filters.paths(None, params, include=('head', '*/mlp/*'))) == {
        'head',
        'layers/mlp/norm',
        'layers/mlp/up',
        'layers/mlp/gate',
        'layers/mlp/down',
    }
    norms = {
        'norm',
        'layers/mlp/norm',
        'layers/attention/norm',
        'layers/attention/q_norm',
        'layers/attention/k_norm',
    }
    assert (
        chosen(filters.paths(None, params, exclude=('*norm',)))
        == chosen(filters.all(None, params)) - norms
    )


def test_lora():
    assert chosen(filters.lora(None, with_lora())) == {
        f'layers/attention/{m}/{f}' for m in 'qkvo' for f in 'ab'
    }
    assert chosen(filters.lora(None, with_lora(('embed',)))) == {'embed/a', 'embed/b'}


def test_errors_name_the_key_and_the_choices():
    params = toys.params()
    with pytest.raises(
        UserError,
        match=r'config.filter.include: pattern "layers/atention/\*" matches no weight.*layers/attention/q',
    ):
        filters.paths(None, params, include=('head', 'layers/atention/*'))
    with pytest.raises(UserError, match='config.filter.exclude: pattern "bias"'):
        filters.paths(None, params, exclude=('bias',))
    with pytest.raises(UserError, match='config.filter: include and exclude'):
        filters.paths(None, params, include=('embed', 'head'), exclude=('embed', 'h*'))
    with pytest.raises(
        UserError, match='config.filter.name=lora: no low-rank weights.*config.adapter.name=lora'
    ):
        filters.lora(None, params)
