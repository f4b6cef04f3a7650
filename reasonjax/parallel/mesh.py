"""One mesh for every run (a single device is a mesh of one), and where arrays live on it."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from reasonjax.errors import UserError
from reasonjax.model.config import ModelConfig
from reasonjax.model.spec import is_spec
from reasonjax.parallel.layout import AXES, ROWS, on, partition_spec
from reasonjax.weights.linear import is_weight

__all__ = [
    'AXES', 'check', 'filled', 'make_mesh', 'nearest_shapes', 'of_batch', 'on', 'place_batch', 'placed', 'replicated', 'reshaped',
    'shardings',
]  # fmt: skip


def make_mesh(shape: Mapping[str, int], devices: Sequence | None = None, key: str = 'mesh') -> Mesh:
    """Builds the mesh of `config.mesh`.

    Args:
      shape: size of each axis of `AXES`; at most one is -1 and takes what is left.
      devices: all there are by default. Several slices of a TPU (which only a network joins) are split over `data`, the outermost axis.
      key: config key, for the error message.

    Raises:
      UserError: sizes that do not multiply to the number of devices, or slices that `data` does not cover.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = tuple(_sizes(shape, len(devices), key).values())
    slices = len({getattr(device, 'slice_index', 0) for device in devices})
    if devices[0].platform != 'tpu':
        grid = np.asarray(devices).reshape(sizes)
    elif slices == 1:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    elif sizes[0] % slices:
        raise UserError(
            f'config.{key}.data={sizes[0]}: there are {slices} slices, which only a network joins; data must be a multiple of {slices}.'
        )
    else:
        within = (sizes[0] // slices, *sizes[1:])
        across = (slices, *(1 for _ in sizes[1:]))
        grid = mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def reshaped(mesh: Mesh, shape: Mapping[str, int], key: str) -> Mesh:
    """A mesh of other sizes over the same devices in the same order, so that one program may use both; the same where all sizes are 0."""
    if not any(shape.values()):
        return mesh
    sizes = _sizes({axis: size or 1 for axis, size in shape.items()}, mesh.size, key)
    return Mesh(mesh.devices.reshape(tuple(sizes.values())), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _sizes(shape: Mapping[str, int], number: int, key: str) -> dict[str, int]:
    sizes = {axis: shape.get(axis, 1) for axis in AXES}
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1:
        raise UserError(f'config.{key}: only one axis may be -1, got {", ".join(free)}.')
    if free and fixed > 0 and number % fixed == 0:
        sizes[free[0]] = number // fixed
    if math.prod(sizes.values()) != number or min(sizes.values()) < 1:
        raise UserError(f'config.{key}: {dict(shape)} does not make {number} devices; data=-1 with the rest 1 always does.')
    return sizes


def check(sizes: Mapping[str, int], model: ModelConfig, *, rows: Mapping[str, int], lengths: Mapping[str, int], key: str = 'mesh') -> None:
    """Raises UserError where a mesh does not divide a model or its batches, with the nearest meshes that do.

    Args:
      sizes: of the mesh axes.
      model: its heads, MLP width and experts are split.
      rows: config key -> rows per micro-batch, split over data x fsdp x expert.
      lengths: config key -> tokens per row, split over sequence.
      key: config key of the mesh, for the error message.
    """
    wrong = _indivisible(sizes, model, rows, lengths)
    if not wrong:
        return
    near = nearest_shapes(sizes, model, rows, lengths)
    hint = ' or '.join(', '.join(f'{axis}={size}' for axis, size in shape.items() if size > 1) or 'all 1' for shape in near)
    advice = f'Nearest that divide {math.prod(sizes.values())} devices: {hint}.' if near else 'No mesh of these devices divides it.'
    raise UserError(f'config.{key}: ' + '; '.join(wrong) + f'. {advice}')


def _indivisible(sizes: Mapping[str, int], model: ModelConfig, rows: Mapping[str, int], lengths: Mapping[str, int]) -> list[str]:
    ways = math.prod(sizes[axis] for axis in ROWS)
    split = [('model.heads', model.heads, 'tensor', sizes['tensor']), ('model.mlp_dim', model.mlp_dim, 'tensor', sizes['tensor'])]
    # Fewer key heads than devices is usual; each is then kept by several.
    if sizes['tensor'] % model.kv_heads:
        split.append(('model.kv_heads', model.kv_heads, 'tensor', sizes['tensor']))
    if model.experts:
        split.append(('model.experts', model.experts, 'expert', sizes['expert']))
    split += [(name, number, ' x '.join(ROWS), ways) for name, number in rows.items()]
    split += [(name, number, 'sequence', sizes['sequence']) for name, number in lengths.items()]
    return [f'{name}={number} does not divide over {axes}={size}' for name, number, axes, size in split if number % size]


def nearest_shapes(
    sizes: Mapping[str, int], model: ModelConfig, rows: Mapping[str, int], lengths: Mapping[str, int], number: int = 2
) -> list[dict[str, int]]:
    """The meshes of as many devices that divide everything, nearest first: by the factors in which their axes differ."""
    devices = math.prod(sizes.values())
    divisors = [d for d in range(1, devices + 1) if devices % d == 0]
    # Experts are an axis only of a model that has some.
    choices = [divisors if axis != 'expert' or model.experts else [1] for axis in AXES[1:]]
    fitting = []
    for rest in itertools.product(*choices):
        if devices % math.prod(rest) == 0:
            shape = dict(zip(AXES, (devices // math.prod(rest), *rest)))
            if not _indivisible(shape, model, rows, lengths):
                fitting.append(shape)
    return sorted(fitting, key=lambda shape: sum(abs(math.log(shape[axis] / sizes[axis])) for axis in AXES))[:number]


def shardings(specs: Any, params: Any, mesh: Mesh) -> Any:
    """Where each array of a parameter tree lives.

    Args:
      specs: the spec tree.
      params: arrays or shapes; a leaf of `specs` may be a `Weight` node here, whose parts inherit the axes they share with the dense
        weight.
      mesh: of the run.

    Returns:
      NamedShardings with the structure of `params`.
    """

    def of_leaf(spec: Any, leaf: Any) -> Any:
        if not is_weight(leaf):
            return placed(spec.axes, leaf.shape, mesh)
        axes = leaf.axes(spec.axes)
        return jax.tree.map(lambda part, its: placed(its, part.shape, mesh), leaf, axes)

    return jax.tree.map(of_leaf, specs, params, is_leaf=is_spec)


def placed(axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Where an array with these logical axes lives; see `layout.partition_spec`."""
    return NamedSharding(mesh, partition_spec(axes, shape, mesh.shape))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def filled(number: int, mesh: Mesh) -> int:
    """The least number of rows, not less than `number`, that divides over the devices."""
    ways = math.prod(mesh.shape[axis] for axis in ROWS)
    return -(-number // ways) * ways


def place_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict:
    """Puts a host batch on the mesh, rows split over `ROWS`, time over `sequence`.

    Args:
      batch: arrays [B, ...] or [B, T, ...], the whole of them in every process; each process places what its devices hold.

    Raises:
      UserError: rows that do not divide over the devices.
    """
    ways = math.prod(mesh.shape[axis] for axis in ROWS)
    arrays = {name: np.asarray(x) for name, x in batch.items()}
    for name, x in arrays.items():
        if len(x) % ways:
            axes = ' x '.join(ROWS)
            raise UserError(f'{len(x)} rows of "{name}" do not divide over {ways} devices (mesh {axes}); use a multiple of {ways}.')
    return {name: _put(x, mesh) for name, x in arrays.items()}


def of_batch(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Where an array of a batch lives."""
    return placed(('batch', 'time', *(None,) * len(shape))[: len(shape)], shape, mesh)


def _put(x: np.ndarray, mesh: Mesh) -> jax.Array:
    sharding = of_batch(x.shape, mesh)
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
