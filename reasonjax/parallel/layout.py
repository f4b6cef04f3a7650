"""Logical axes and mesh axes: two small tables, and the constraint that reads them.

The model names the axes of an activation and never a mesh. A program is compiled for a mesh by
tracing it under that mesh (`on`); traced without one, nothing is constrained.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

# Outermost first: devices that are neighbours in memory share the axes that talk most.
AXES = ('data', 'fsdp', 'expert', 'sequence', 'tensor')

# Mesh axes over which the rows of a batch are split.
ROWS = ('data', 'fsdp', 'expert')

# Logical axis -> mesh axes it is split over.
RULES: dict[str | None, tuple[str, ...]] = {
    None: (),
    # of parameters; `sequence` gathers them like `fsdp` does, because its devices hold different
    # tokens
    'layers': (),
    'embed': ('fsdp', 'sequence'),
    'heads': ('tensor',),
    'kv_heads': ('tensor',),
    'mlp': ('tensor',),
    'vocab': ('tensor',),
    'expert': ('expert',),
    # of activations
    'batch': ROWS,
    'time': ('sequence',),
}


def partition_spec(
    axes: tuple[str | None, ...], shape: tuple[int, ...], sizes: Mapping[str, int]
) -> PartitionSpec:
    """Returns the mesh axes of an array with these logical axes.

    Args:
      axes: a key of `RULES` for each dimension.
      shape: of the array. Where a dimension does not divide over all its mesh axes, the last of
        them are left out; a mesh that splits what matters too little is refused before a run starts
        (`model.placement.check_divides`).
      sizes: of the mesh axes.
    """
    return PartitionSpec(
        *(_fitting(RULES[axis], length, sizes) for axis, length in zip(axes, shape, strict=True))
    )


def _fitting(mesh_axes: tuple[str, ...], length: int, sizes: Mapping[str, int]) -> Any:
    # Axes of size 1 are kept: specs then read the same on every mesh.
    while mesh_axes and length % math.prod(sizes[axis] for axis in mesh_axes):
        mesh_axes = mesh_axes[:-1]
    return mesh_axes if len(mesh_axes) > 1 else (mesh_axes[0] if mesh_axes else None)


def on(mesh: Any, function: Callable) -> Callable:
    """Returns `function` to be traced under a mesh, which `constrain` and `size` then see; hand it
    to `jax.jit`."""

    @functools.wraps(function)
    def traced(*arguments: Any, **named: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*arguments, **named)

    return traced


def size(*mesh_axes: str) -> int:
    """Counts the devices along axes of the mesh that is being traced under; 1 without a mesh."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes.get(axis, 1) for axis in mesh_axes)


def platform() -> str:
    """Returns the platform that the traced program is for: 'cpu', 'gpu' or 'tpu'."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Pins where an activation lives: a logical axis for each dimension; None keeps it whole. No-op
    on one device."""
    if size(*AXES) == 1:
        return x
    return jax.lax.with_sharding_constraint(
        x, partition_spec(axes, x.shape, jax.sharding.get_abstract_mesh().shape)
    )


def split_time(x_BxT: jax.Array, number: int) -> jax.Array:
    """Splits time into pieces: [B, T, ...] -> [number, B, S, ...], S >= T / number. Zeros fill up,
    and each device of `sequence` has an equal part of each piece."""
    B, T, *rest = x_BxT.shape
    ways = size('sequence') if T % size('sequence') == 0 else 1
    each = -(-T // ways // number)
    local = jnp.pad(
        x_BxT.reshape(B, ways, T // ways, *rest),
        [(0, 0), (0, 0), (0, number * each - T // ways), *((0, 0) for _ in rest)],
    )
    return jnp.moveaxis(local.reshape(B, ways, number, each, *rest), 2, 0).reshape(
        number, B, ways * each, *rest
    )


def join_time(pieces_NxBxS: jax.Array, T: int) -> jax.Array:
    """Undoes `split_time` of T tokens: [number, B, S, ...] -> [B, T, ...]."""
    number, B, S, *rest = pieces_NxBxS.shape
    ways = size('sequence') if T % size('sequence') == 0 else 1
    local = jnp.moveaxis(pieces_NxBxS.reshape(number, B, ways, S // ways, *rest), 0, 2).reshape(
        B, ways, -1, *rest
    )
    return local[:, :, : T // ways].reshape(B, T, *rest)
