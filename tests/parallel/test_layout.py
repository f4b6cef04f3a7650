"""Specs from logical axes, and pieces of time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from reasonjax.parallel import layout


def sizes(**given):
    return {axis: given.get(axis, 1) for axis in layout.AXES}


def abstract_mesh(*shape):
    return AbstractMesh(shape, layout.AXES, axis_types=(AxisType.Auto,) * len(shape))


def test_a_spec_names_all_axes_that_divide_in_order():
    wide = sizes(data=2, fsdp=4, sequence=3)
    assert layout.partition_spec(('batch', 'time', None), (16, 12, 7), wide) == P(
        layout.ROWS, 'sequence', None
    )
    assert layout.partition_spec(('batch',), (12,), sizes(data=2, fsdp=2, expert=4)) == P(
        ('data', 'fsdp')
    )
    assert layout.partition_spec(('batch', 'time'), (3, 1), sizes(data=2, sequence=4)) == P(
        None, None
    )


def test_nothing_is_constrained_off_a_mesh():
    x = jnp.ones((4, 6))
    assert layout.size('data', 'tensor') == 1
    assert (
        str(jax.make_jaxpr(lambda x: layout.constrain(x, 'batch', 'time'))(x)).count(
            'sharding_constraint'
        )
        == 0
    )
    with jax.sharding.use_abstract_mesh(abstract_mesh(2, 1, 1, 3, 1)):
        assert layout.size('data', 'sequence') == 6
        assert (
            str(jax.make_jaxpr(lambda x: layout.constrain(x, 'batch', 'time'))(x)).count(
                'sharding_constraint'
            )
            == 1
        )


@pytest.mark.parametrize('ways', [1, 3, 5])
@pytest.mark.parametrize('number', [1, 2, 4, 12])
def test_pieces_of_time_come_together_again(ways, number):
    x = np.random.default_rng(0).normal(size=(2, 12, 3))
    with jax.sharding.use_abstract_mesh(abstract_mesh(1, 1, 1, ways, 1)):
        pieces = np.asarray(layout.split_time(jnp.asarray(x), number))
        back = np.asarray(layout.join_time(jnp.asarray(pieces), 12))
    np.testing.assert_array_equal(back, np.float32(x))
    assert pieces.shape[0] == number and pieces.shape[2] >= 12 // number
    if ways == 3 and number == 2:
        # Each piece has two of the four tokens of each of the three devices.
        np.testing.assert_array_equal(pieces[1], np.float32(x[:, [2, 3, 6, 7, 10, 11]]))
