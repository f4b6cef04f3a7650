"""One mesh for every run (a single device is a mesh of one), and where arrays live on it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from reasonjax.errors import UserError
from reasonjax.parallel.layout import AXES, ROWS, on, partition_spec

__all__ = [
    'AXES',
    'batch_sharding',
    'filled',
    'make_mesh',
    'on',
    'place_batch',
    'placed',
    'replicated',
    'reshaped',
]


def make_mesh(shape: Mapping[str, int], devices: Sequence | None = None) -> Mesh:
    """Builds the mesh of `config.mesh`.

    Args:
      shape: size of each axis of `AXES`; at most one is -1 and takes what is left.
      devices: all there are by default. Several slices of a TPU (which only a network joins) are
        split over `data`, the outermost axis.

    Raises:
      UserError: sizes that do not multiply to the number of devices, or slices that `data` does not
        cover.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = tuple(_sizes(shape, len(devices), 'mesh').values())
    slices = len({getattr(device, 'slice_index', 0) for device in devices})
    if devices[0].platform != 'tpu':
        grid = np.asarray(devices).reshape(sizes)
    elif slices == 1:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    elif sizes[0] % slices:
        raise UserError(
            f'config.mesh.data={sizes[0]}: there are {slices} slices, which only a network joins; '
            f'data must be a multiple of {slices}.'
        )
    else:
        within = (sizes[0] // slices, *sizes[1:])
        across = (slices, *(1 for _ in sizes[1:]))
        grid = mesh_utils.create_hybrid_device_mesh(
            within, across, devices, allow_split_physical_axes=True
        )
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def reshaped(mesh: Mesh, shape: Mapping[str, int], key: str) -> Mesh:
    """Builds a mesh of other sizes over the same devices in the same order. Hence one
    program may use both. Where all sizes are 0, returns `mesh` itself."""
    if not any(shape.values()):
        return mesh
    sizes = _sizes({axis: size or 1 for axis, size in shape.items()}, mesh.size, key)
    return Mesh(
        mesh.devices.reshape(tuple(sizes.values())), AXES, axis_types=(AxisType.Auto,) * len(AXES)
    )


def _sizes(shape: Mapping[str, int], number: int, key: str) -> dict[str, int]:
    sizes = {axis: shape.get(axis, 1) for axis in AXES}
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1:
        raise UserError(f'config.{key}: only one axis may be -1, got {", ".join(free)}.')
    if free and fixed > 0 and number % fixed == 0:
        sizes[free[0]] = number // fixed
    if math.prod(sizes.values()) != number or min(sizes.values()) < 1:
        raise UserError(
            f'config.{key}: {dict(shape)} does not make {number} devices; data=-1 with the rest 1 '
            'always does.'
        )
    return sizes


def placed(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array with these logical axes; see `layout.partition_spec`."""
    return NamedSharding(mesh, partition_spec(axes, shape, mesh.shape))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that keeps a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def filled(number: int, mesh: Mesh) -> int:
    """Rounds a number of rows up to a multiple of the devices that rows are split over."""
    ways = math.prod(mesh.shape[axis] for axis in ROWS)
    return -(-number // ways) * ways


def host_device() -> jax.Device | None:
    """Returns the device that is this host's own processor, for numbers that must not wait for what
    an accelerator is doing; None where jax was told to start the accelerator's backend only."""
    try:
        return jax.local_devices(backend='cpu')[0]
    except RuntimeError:
        return None


def place_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict:
    """Puts a host batch on the mesh, rows split over `ROWS`, time over `sequence`.

    Args:
      batch: arrays [B, ...] or [B, T, ...], the whole of them in every process; each process places
        what its devices hold.

    Raises:
      UserError: rows that do not divide over the devices.
    """
    ways = math.prod(mesh.shape[axis] for axis in ROWS)
    arrays = {name: np.asarray(x) for name, x in batch.items()}
    for name, x in arrays.items():
        if len(x) % ways:
            axes = ' x '.join(ROWS)
            raise UserError(
                f'{len(x)} rows of "{name}" do not divide over {ways} devices (mesh {axes}); use a '
                f'multiple of {ways}.'
            )
    return {name: _put(x, mesh) for name, x in arrays.items()}


def batch_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array of a batch."""
    return placed(('batch', 'time', *(None,) * len(shape))[: len(shape)], shape, mesh)


def _put(x: np.ndarray, mesh: Mesh) -> jax.Array:
    sharding = batch_sharding(x.shape, mesh)
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
