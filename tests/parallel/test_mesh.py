"""Meshes from config, placement of parameters, and what is refused."""

import itertools
import math

import jax
import pytest
import toys
from jax.sharding import PartitionSpec as P

from reasonjax.errors import UserError
from reasonjax.methods import adapters
from reasonjax.model import spec
from reasonjax.model.placement import check_divides, nearest_shapes, shardings
from reasonjax.parallel import mesh as meshes


def test_a_single_device_is_a_mesh_of_one():
    one = jax.devices()[:1]
    for shape in ({}, {'data': -1}, {'data': 1, 'fsdp': -1, 'tensor': 1}):
        assert dict(meshes.make_mesh(shape, one).shape) == dict.fromkeys(
            ('data', 'fsdp', 'expert', 'sequence', 'tensor'), 1
        )


@pytest.mark.parametrize(
    'shape, words',
    [
        ({'data': 2}, "{'data': 2} does not make 1 devices"),
        ({'data': 0}, 'does not make 1 devices'),
        ({'data': -1, 'tensor': 3}, 'does not make 1 devices'),
        ({'data': -1, 'fsdp': -1}, 'only one axis may be -1, got data, fsdp'),
    ],
)
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
    placements = shardings(tree, params, mesh)
    assert jax.tree.structure(placements) == jax.tree.structure(params)
    # Raises where an axis does not divide or is named twice.
    jax.tree.map(lambda s, x: s.shard_shape(x.shape), placements, params)
    return jax.tree.map(lambda s: s.spec, placements)


def test_matrices_are_split_over_two_axes():
    specs = placed(abstract_mesh(fsdp=4, tensor=2), toys.changed(vocab_size=14))
    attention, mlp = specs['layers']['attention'], specs['layers']['mlp']
    rows = ('fsdp', 'sequence')
    assert attention['q'] == attention['k'] == mlp['up'] == P(None, rows, 'tensor')
    assert attention['o'] == mlp['down'] == P(None, 'tensor', rows)
    assert specs['embed'] == P('tensor', rows) and specs['head'] == P(rows, 'tensor')
    assert attention['q_bias'] == P(None, 'tensor')
    assert attention['norm'] == P(None, None) and specs['norm'] == P(None)


def test_an_axis_that_does_not_divide_is_left_out():
    specs = placed(abstract_mesh(fsdp=4, tensor=8))
    # 13 rows of vocabulary; 12 columns of keys; 24 of queries and of the MLP.
    assert specs['embed'] == P(None, ('fsdp', 'sequence')) and specs['layers']['attention'][
        'k'
    ] == P(None, ('fsdp', 'sequence'), None)
    assert specs['layers']['attention']['q'] == P(None, ('fsdp', 'sequence'), 'tensor')
    # 16 rows of the residual stream: over fsdp x sequence = 32 not, over fsdp alone they do.
    assert placed(abstract_mesh(fsdp=4, sequence=8))['layers']['attention']['q'] == P(
        None, 'fsdp', 'tensor'
    )


def test_banks_of_experts_have_an_axis_of_their_own():
    specs = placed(abstract_mesh(expert=4, fsdp=2), toys.changed(experts=4, qkv_bias=False))[
        'layers'
    ]['mlp']
    assert specs['up'] == P(None, 'expert', ('fsdp', 'sequence'), 'tensor') and specs[
        'router'
    ] == P(None, ('fsdp', 'sequence'), None)


def test_the_factors_of_a_pair_inherit_the_axis_they_share():
    specs = placed(abstract_mesh(fsdp=4, tensor=2), r=2, target_modules=('layers/mlp/down', 'head'))
    down = specs['layers']['mlp']['down']
    rows = ('fsdp', 'sequence')
    assert (
        down.base == P(None, 'tensor', rows)
        and down.a == P(None, 'tensor', None)
        and down.b == P(None, None, rows)
    )
    assert down.scale == P(None) and specs['head'].scale == P()


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(
        UserError, match='12 rows of "tokens" do not divide over 8 devices.*multiple of 8'
    ):
        meshes.place_batch({'tokens': range(12)}, abstract_mesh(data=2, fsdp=4))


SHAPE = toys.changed(heads=12, kv_heads=4, mlp_dim=48)


def refused(sizes, config=SHAPE, rows=None, lengths=None):
    sizes = {axis: sizes.get(axis, 1) for axis in meshes.AXES}
    with pytest.raises(UserError) as error:
        check_divides(sizes, config, rows=rows or {}, lengths=lengths or {})
    return str(error.value)


def test_a_mesh_that_does_not_divide_is_refused_with_the_nearest_that_does():
    text = refused({'tensor': 8}, rows={'sft.batch_size': 4})
    assert 'model.heads=12 does not divide over tensor=8' in text and 'mlp_dim' not in text
    assert 'Nearest that divide 8 devices: data=2, tensor=4 or sequence=2, tensor=4' in text
    text = refused({'data': 8}, rows={'sft.batch_size': 12})
    assert (
        'sft.batch_size=12 does not divide over data x fsdp x expert=8' in text
        and 'data=4, ' in text
    )
    text = refused({'sequence': 4}, lengths={'sft.data.max_length': 30})
    assert 'sft.data.max_length=30 does not divide over sequence=4' in text
    assert 'No mesh of these devices divides it' in refused(
        {'data': 7}, rows={'batch_size': 4}, lengths={'max_length': 30}
    )
    text = refused({'expert': 8}, toys.changed(SHAPE, experts=4))
    assert 'model.experts=4 does not divide over expert=8' in text and 'expert=4' in text


def test_key_heads_may_be_fewer_than_the_devices_that_share_them():
    sizes = {axis: 12 if axis == 'tensor' else 1 for axis in meshes.AXES}
    check_divides(sizes, SHAPE, rows={}, lengths={})
    assert 'kv_heads=3' in refused({'tensor': 4}, toys.changed(SHAPE, kv_heads=3))


def test_of_all_nearest_shapes_each_divides_and_none_nearer_is_left_out():
    sizes = dict(zip(meshes.AXES, (2, 2, 1, 1, 4)))
    rows, lengths = {'rows': 6}, {'length': 24}
    shapes = nearest_shapes(sizes, SHAPE, rows, lengths, number=100)
    for shape in shapes:
        check_divides(shape, SHAPE, rows=rows, lengths=lengths)
        assert math.prod(shape.values()) == 16
    by_hand = {
        (data, fsdp, 1, sequence, tensor)
        for data, fsdp, sequence, tensor in itertools.product((1, 2, 4, 8, 16), repeat=4)
        if data * fsdp * sequence * tensor == 16
        and 6 % (data * fsdp) == 0
        and 24 % sequence == 0
        and tensor in (1, 2, 4)
    }
    assert {tuple(shape.values()) for shape in shapes} == by_hand


def test_a_mesh_of_other_sizes_has_the_same_devices_in_the_same_order():
    mesh = meshes.make_mesh({}, jax.devices()[:1])
    assert meshes.reshaped(mesh, dict.fromkeys(meshes.AXES, 0), 'rollout.mesh') is mesh
    with pytest.raises(UserError, match=r'config.rollout.mesh.*does not make 1 devices'):
        meshes.reshaped(mesh, {'tensor': 2}, 'rollout.mesh')
