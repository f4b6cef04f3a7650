"""A model on a mesh: where each of its arrays lives, and which meshes divide it."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from reasonjax.errors import UserError
from reasonjax.model.config import ModelConfig
from reasonjax.model.spec import is_spec
from reasonjax.parallel.layout import AXES, ROWS
from reasonjax.parallel.mesh import placed
from reasonjax.weights.linear import is_weight


def shardings(specs: Any, params: Any, mesh: Mesh) -> Any:
    """Returns the sharding of each array of a parameter tree.

    Args:
      specs: the spec tree.
      params: arrays or shapes; a leaf of `specs` may be a `Weight` node here, whose parts inherit
        the axes they share with the dense weight.
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


def check_divides(
    sizes: Mapping[str, int],
    model: ModelConfig,
    *,
    rows: Mapping[str, int],
    lengths: Mapping[str, int],
    key: str = 'mesh',
) -> None:
    """Raises UserError where a mesh does not divide a model or its batches, with the nearest meshes
    that do.

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
    hint = ' or '.join(
        ', '.join(f'{axis}={size}' for axis, size in shape.items() if size > 1) or 'all 1'
        for shape in near
    )
    advice = (
        f'Nearest that divide {math.prod(sizes.values())} devices: {hint}.'
        if near
        else 'No mesh of these devices divides it.'
    )
    raise UserError(f'config.{key}: ' + '; '.join(wrong) + f'. {advice}')


def _indivisible(
    sizes: Mapping[str, int],
    model: ModelConfig,
    rows: Mapping[str, int],
    lengths: Mapping[str, int],
) -> list[str]:
    ways = math.prod(sizes[axis] for axis in ROWS)
    split = [
        ('model.heads', model.heads, 'tensor', sizes['tensor']),
        ('model.mlp_dim', model.mlp_dim, 'tensor', sizes['tensor']),
    ]
    # Fewer key heads than devices is usual; each is then kept by several.
    if sizes['tensor'] % model.kv_heads:
        split.append(('model.kv_heads', model.kv_heads, 'tensor', sizes['tensor']))
    if model.experts:
        split.append(('model.experts', model.experts, 'expert', sizes['expert']))
    split += [(name, number, ' x '.join(ROWS), ways) for name, number in rows.items()]
    split += [(name, number, 'sequence', sizes['sequence']) for name, number in lengths.items()]
    return [
        f'{name}={number} does not divide over {axes}={size}'
        for name, number, axes, size in split
        if number % size
    ]


def nearest_shapes(
    sizes: Mapping[str, int],
    model: ModelConfig,
    rows: Mapping[str, int],
    lengths: Mapping[str, int],
    number: int = 2,
) -> list[dict[str, int]]:
    """Finds meshes over the same number of devices that divide everything, nearest first: by the
    factors in which their axes differ."""
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
    return sorted(
        fitting, key=lambda shape: sum(abs(math.log(shape[axis] / sizes[axis])) for axis in AXES)
    )[:number]
