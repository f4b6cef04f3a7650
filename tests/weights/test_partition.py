"""Names, patterns, and the split into what trains and what does not."""

import jax
import numpy as np
import pytest
import toys

from reasonjax.methods import adapters, filters
from reasonjax.weights import partition


def test_names_of_plain_and_adapted_leaves():
    params = adapters.lora(
        toys.params(), jax.random.key(0), target_modules=('layers/attention/q', 'embed')
    )
    names = partition.names(params)
    assert len(names) == len(set(names)) == len(jax.tree.leaves(params))
    wanted = {
        f'{module}/{part}'
        for module in ('embed', 'layers/attention/q')
        for part in ('base', 'a', 'b', 'scale')
    }
    assert wanted < set(names) and {
        'head',
        'norm',
        'layers/attention/q_bias',
        'layers/mlp/gate',
    } < set(names)
    assert partition.names([{'x': 0}, 1]) == ['0/x', '1']


@pytest.mark.parametrize(
    'name, patterns, wanted',
    [
        ('layers/attention/q/a', ('layers/*/a',), True),
        ('layers/attention/q', ('q',), False),
        ('layers/attention/q', ('*/k', '*/q'), True),
        ('layers/attention/q', ('*/Q',), False),
        ('layers/attention/q_norm', ('*norm',), True),
        ('embed', (), False),
    ],
)
def test_match(name, patterns, wanted):
    assert partition.match(name, patterns) is wanted


@pytest.mark.parametrize('chosen', ['all', 'lora', 'some', 'random'])
def test_round_trip(chosen):
    params = adapters.lora(toys.params(), jax.random.key(0))
    rng = np.random.default_rng(0)
    trainable = {
        'all': lambda: filters.all(None, params),
        'lora': lambda: filters.lora(None, params),
        'some': lambda: filters.paths(None, params, include=('embed', '*/mlp/*')),
        'random': lambda: jax.tree.map(lambda _: bool(rng.random() < 0.5), params),
    }[chosen]()
    train, freeze = partition.partition(params, trainable)
    toys.assert_trees_equal(partition.combine(train, freeze), params)
    flags = jax.tree.leaves(trainable)
    assert len(jax.tree.leaves(train)) == sum(flags) > 0
    assert len(jax.tree.leaves(freeze)) == len(flags) - sum(flags) > 0
    names = dict(zip(partition.names(params), flags))
    assert set(partition.names(train)) == {name for name, flag in names.items() if flag}
