"""One mesh for every run (a single device is a mesh of one) and one small table from logical axes to mesh axes."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from reasonjax.errors import UserError
from reasonjax.model.spec import is_spec
from reasonjax.weights.linear import LowRank, is_weight

AXES = ('data', 'fsdp', 'tensor', 'expert')

# Logical axis of a parameter -> mesh axis it is split over.
RULES = {
    'embed': 'fsdp', 'heads': 'tensor', 'kv_heads': 'tensor', 'mlp': 'tensor', 'vocab': 'tensor', 'expert': 'expert',
    'layers': None, None: None,
}  # fmt: skip
BATCH = PartitionSpec(('data', 'fsdp'))


def make_mesh(shape: Mapping[str, int], devices: list | None = None) -> Mesh:
    """Builds the mesh of `config.mesh`.

    Args:
      shape: size of each axis of `AXES`; at most one is -1 and takes what is left.
      devices: all of the process's by default.

    Raises:
      UserError: sizes that do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {axis: shape.get(axis, 1) for axis in AXES}
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1:
        raise UserError(f'config.mesh: only one axis may be -1, got {", ".join(free)}.')
    if free and fixed and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        raise UserError(f'config.mesh: {dict(shape)} does not make {len(devices)} devices; data=-1 with the rest 1 always does.')
    return jax.make_mesh(tuple(sizes.values()), AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))


def partition_spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """Mesh axes of a parameter's logical axes."""
    return PartitionSpec(*(RULES[a] for a in axes))


def shardings(specs: Any, params: Any, mesh: Mesh) -> Any:
    """Where each array of a parameter tree lives.

    Args:
      specs: the spec tree.
      params: arrays or shapes; a leaf of `specs` may be a `Weight` node here.
      mesh: of the run.

    Returns:
      NamedShardings with the structure of `params`. The factors of a low-rank pair inherit the axis they share with the dense weight. An
      axis that does not divide stays whole.
    """
    return jax.tree.map(lambda spec, leaf: _place(spec.axes, leaf, mesh), specs, params, is_leaf=is_spec)


def _place(axes: tuple[str | None, ...], leaf: Any, mesh: Mesh) -> Any:
    if isinstance(leaf, LowRank):
        *stack, rows, columns = axes
        return LowRank(
            base=_place(axes, leaf.base, mesh),
            a=_place((*stack, rows, None), leaf.a, mesh),
            b=_place((*stack, None, columns), leaf.b, mesh),
            scale=_place(tuple(stack), leaf.scale, mesh),
        )
    if is_weight(leaf):
        raise TypeError(f'no placement rule for {type(leaf).__name__}')
    return placed(axes, leaf.shape, mesh)


def placed(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Where an array with these logical axes lives; an axis that does not divide stays whole."""
    wanted = partition_spec(axes)
    fits = [axis if axis is None or shape[i] % mesh.shape[axis] == 0 else None for i, axis in enumerate(wanted)]
    return NamedSharding(mesh, PartitionSpec(*fits))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def place_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict:
    """Puts a host batch on the mesh, rows split over the data axes.

    Raises:
      UserError: rows that do not divide over them.
    """
    ways = mesh.shape['data'] * mesh.shape['fsdp']
    rows = {name: len(x) for name, x in batch.items()}
    for name, number in rows.items():
        if number % ways:
            raise UserError(f'{number} rows of "{name}" do not divide over {ways} devices (mesh data x fsdp); use a multiple of {ways}.')
    return jax.device_put(dict(batch), NamedSharding(mesh, BATCH))


