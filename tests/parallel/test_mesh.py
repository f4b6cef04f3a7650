"""Meshes from config, placement of parameters, and what is refused."""

import jax
import pytest
import toys
from jax.sharding import PartitionSpec as P

from reasonjax.errors import UserError
from reasonjax.methods import adapters
from reasonjax.model import spec
from reasonjax.parallel import mesh as meshes


def test_a_single_device_is_a_mesh_of_one():
    one = jax.devices()[:1]
    for shape in ({}, {'data': -1}, {'data': 1, 'fsdp': -1, 'tensor': 1}):
        assert dict(meshes.make_mesh(shape, one).shape) == {'data': 1, 'fsdp': 1, 'tensor': 1, 'expert': 1}


@pytest.mark.parametrize('shape, words', [
    ({'data': 2}, "{'data': 2} does not make 1 devices"),
    ({'data': 0}, 'does not make 1 devices'),
    ({'data': -1, 'tensor': 3}, 'does not make 1 devices'),
    ({'data': -1, 'fsdp': -1}, 'only one axis may be -1, got data, fsdp'),
])  # fmt: skip
def test_impossible_meshes_are_refused(shape, words):
    with pytest.raises(UserError) as error:
        meshes.make_mesh(shape, jax.devices()[:1])
    assert 'config.mesh' in str(error.value) and words in str(error.value)


def abstract_mesh(**shape):
    return jax.sharding.AbstractMesh(tuple(shape.get(a, 1) for a in meshes.AXES), meshes.AXES)


def placed(mesh, config=toys.TINY, **targets):
    tree = spec.specs(config)
    params = spec.abstract(tree, 'float32')
    if targets:
        params = jax.eval_shape(lambda p: adapters.lora(p, jax.random.key(0), **targets), params)
    shardings = meshes.shardings(tree, params, mesh)
    assert jax.tree.structure(shardings) == jax.tree.structure(params)
    # Raises where an axis does not divide or is named twice.
    jax.tree.map(lambda s, x: s.shard_shape(x.shape), shardings, params)
    return jax.tree.map(lambda s: s.spec, shardings)


def test_matrices_are_split_over_two_axes():
    specs = placed(abstract_mesh(fsdp=4, tensor=2), toys.changed(vocab_size=14))
    attention, mlp = specs['layers']['attention'], specs['layers']['mlp']
    assert attention['q'] == attention['k'] == mlp['up'] == P(None, 'fsdp', 'tensor')
    assert attention['o'] == mlp['down'] == P(None, 'tensor', 'fsdp')
    assert specs['embed'] == P('tensor', 'fsdp') and specs['head'] == P('fsdp', 'tensor')
    assert attention['q_bias'] == P(None, 'tensor')
    assert attention['norm'] == P(None, None) and specs['norm'] == P(None)


def test_an_axis_that_does_not_divide_stays_whole():
    specs = placed(abstract_mesh(fsdp=4, tensor=8))
    # 13 rows of vocabulary; 12 columns of keys; 24 of queries and of the MLP.
    assert specs['embed'] == P(None, 'fsdp') and specs['layers']['attention']['k'] == P(None, 'fsdp', None)
    assert specs['layers']['attention']['q'] == P(None, 'fsdp', 'tensor')


def test_the_factors_of_a_pair_inherit_the_axis_they_share():
    specs = placed(abstract_mesh(fsdp=4, tensor=2), r=2, target_modules=('layers/mlp/down', 'head'))
    down = specs['layers']['mlp']['down']
    assert down.base == P(None, 'tensor', 'fsdp') and down.a == P(None, 'tensor', None) and down.b == P(None, None, 'fsdp')
    assert down.scale == P(None) and specs['head'].scale == P()


def test_rows_that_do_not_divide_are_refused():
    class Wide:
        shape = {'data': 2, 'fsdp': 4, 'tensor': 1}

    with pytest.raises(UserError, match='12 rows of "tokens" do not divide over 8 devices.*multiple of 8'):
        meshes.place_batch({'tokens': range(12)}, Wide)
