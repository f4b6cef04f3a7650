"""Parameters moved from one mesh to another over the same devices, inside a program: from where
they train to where they sample."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from reasonjax.model.placement import shardings
from reasonjax.model.spec import is_spec
from reasonjax.parallel import layout
from reasonjax.weights.linear import LowRank


def moved(specs: Any, params: Any, mesh: Mesh, dtype: Any) -> Any:
    """Returns the parameters where `placement.shardings` puts them on `mesh`; to be called under
    jit.

    Matrices travel in the dtype they are multiplied in, and in two steps: first each device gets
    its columns (or rows) of its share, then shares are gathered. Asked for the end at once, the
    partitioner gathers whole matrices on every device and throws most of them away.

    Args:
      specs: the spec tree.
      params: arrays on another mesh of the same devices in the same order.
      mesh: to be on.
      dtype: of the computation; vectors, and weights of other kinds than arrays and low-rank pairs,
        keep theirs.
    """
    homes = shardings(specs, params, mesh)

    def lighter(axes: tuple, leaf: Any) -> Any:
        if isinstance(leaf, LowRank):
            return LowRank(
                lighter(axes, leaf.base), leaf.a.astype(dtype), leaf.b.astype(dtype), leaf.scale
            )
        matrix = isinstance(leaf, jax.Array) and len(axes) - axes.count('layers') >= 2
        return leaf.astype(dtype) if matrix and leaf.dtype == jnp.float32 else leaf

    cast = jax.tree.map(lambda spec, leaf: lighter(spec.axes, leaf), specs, params, is_leaf=is_spec)
    halfway = jax.tree.map(
        lambda x, home: jax.lax.with_sharding_constraint(x, _shared(x.shape, home, mesh)),
        cast,
        homes,
    )
    return jax.lax.with_sharding_constraint(halfway, homes)


def _shared(shape: tuple[int, ...], home: NamedSharding, mesh: Mesh) -> NamedSharding:
    """Returns the final sharding with the largest unsplit dimension split over all unused axes."""
    spec = [
        _split_over(entry, mesh) for entry in (*home.spec, *(None,) * (len(shape) - len(home.spec)))
    ]
    free = tuple(
        axis
        for axis in layout.AXES
        if mesh.shape[axis] > 1 and not any(axis in entry for entry in spec)
    )
    ways = math.prod(mesh.shape[axis] for axis in free)
    free_axes = [i for i, entry in enumerate(spec) if not entry and shape[i] % ways == 0]
    if not free_axes:
        return home
    spec[max(free_axes, key=lambda i: shape[i])] = free
    return NamedSharding(mesh, PartitionSpec(*(entry or None for entry in spec)))


def _split_over(entry: Any, mesh: Mesh) -> tuple[str, ...]:
    """Returns the mesh axes of a dimension that are more than one device long."""
    axes = entry if isinstance(entry, tuple) else (entry,)
    return tuple(axis for axis in axes if axis is not None and mesh.shape[axis] > 1)
