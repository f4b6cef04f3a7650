"""Kernels on a mesh: a compiler cannot split what it cannot look into, so that each device is given
its own rows and heads."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from reasonjax.parallel import layout

# Logical axes of queries and of keys and values; the tokens of a row are on one device.
QUERIES = ('batch', None, 'heads', None)
KEYS = ('batch', None, 'kv_heads', None)


def on_each_device(
    function: Callable, arrays: tuple, axes: tuple, constants: tuple = (), specs: tuple = ()
) -> jax.Array:
    """Calls `function(*arrays, *constants)` on each device with its part of the arrays; on one
    device calls it as it is.

    Args:
      function: local; its result has the axes of the first array.
      arrays: global.
      axes: of each array, a logical axis for each dimension.
      constants: more arguments, trees of arrays.
      specs: of each constant, a tree of `PartitionSpec`.
    """
    if layout.size(*layout.AXES) == 1:
        return function(*arrays, *constants)
    sizes = jax.sharding.get_abstract_mesh().shape
    of_arrays = tuple(
        layout.partition_spec(a, x.shape, sizes) for a, x in zip(axes, arrays, strict=True)
    )
    # What the kernels of Pallas give is not annotated with the axes it varies over.
    split = jax.shard_map(
        function, in_specs=(*of_arrays, *specs), out_specs=of_arrays[0], check_vma=False
    )
    return split(*arrays, *constants)


def repeated(x_BxTxKxd: jax.Array, heads: int) -> jax.Array:
    """Repeats key heads, where they are too few to be split like query heads, until a device has
    those of its queries."""
    K, ways = x_BxTxKxd.shape[2], layout.size('tensor')
    return x_BxTxKxd if heads % ways else jnp.repeat(x_BxTxKxd, math.lcm(K, ways) // K, axis=2)


def heads_of_device(heads: int) -> int:
    """How many of the query heads a device has."""
    ways = layout.size('tensor')
    return heads if heads % ways else heads // ways


def filled(x: jax.Array, axis: int, length: int) -> jax.Array:
    """Zeros behind the end of an axis, up to a length."""
    widths: list[Any] = [(0, 0)] * x.ndim
    widths[axis] = (0, length - x.shape[axis])
    return jnp.pad(x, widths)
