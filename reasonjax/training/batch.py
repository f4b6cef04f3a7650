"""The fields of a batch, a line each: axes, dtype and who fills it.

What makes batches casts to this (`batching.assemble`), what compiles before there is a batch takes
its shapes from this (`shape_fields`, for the loop and for plans), and a rollout that waits in a
checkpoint is checked against it. Axes:

    B  rows          T  tokens of a row         S, n, L  shards of packed rows, bins of each, tokens
    P  prompts       Q  tokens of a prompt      G, C     completions of a prompt, tokens of each
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, NamedTuple, TypedDict, get_type_hints

import jax
import numpy as np

from reasonjax.parallel import mesh as meshes


class Field(NamedTuple):
    """What a batch holds under one name.

    Attributes:
      axes: letters of the axes; '' is a number.
      dtype: of the array.
      filled_by: where the values come from.
    """

    axes: str
    dtype: type
    filled_by: str


class Batch(TypedDict, total=False):
    """What a step trains on. Which fields there are depends on the stage, see `fields_of_rows` and
    `fields_of_rollout`."""

    tokens: Annotated[jax.Array, Field('BT', np.int32, 'data, sampler')]
    segments: Annotated[jax.Array, Field('BT', np.int32, 'data, sampler')]
    positions: Annotated[jax.Array, Field('BT', np.int32, 'data, sampler')]
    weights: Annotated[jax.Array, Field('BT', np.float32, 'data, sampler')]
    # Rows of a form, see `data.forms`.
    chosen: Annotated[jax.Array, Field('B', np.bool_, 'data: preference')]
    label: Annotated[jax.Array, Field('B', np.bool_, 'data: unpaired')]
    step_label: Annotated[jax.Array, Field('BT', np.float32, 'data: stepwise')]
    # Rollouts.
    prompt_tokens: Annotated[jax.Array, Field('PQ', np.int32, 'prompts, where rows share them')]
    prompt_segments: Annotated[jax.Array, Field('PQ', np.int32, 'prompts, where rows share them')]
    prompt_positions: Annotated[jax.Array, Field('PQ', np.int32, 'prompts, where rows share them')]
    packed_from: Annotated[jax.Array, Field('SnL', np.int32, 'packing')]
    packed_at: Annotated[jax.Array, Field('BT', np.int32, 'packing')]
    advantage: Annotated[jax.Array, Field('B', np.float32, 'advantage')]
    logprob_sampled: Annotated[jax.Array, Field('BT', np.float32, 'sampler')]
    logprob_old: Annotated[jax.Array, Field('BT', np.float32, 'policy at the start of the step')]
    logprob_ref: Annotated[jax.Array, Field('BT', np.float32, 'reference model')]
    staleness: Annotated[jax.Array, Field('B', np.float32, 'buffer of rollouts')]
    max_completion_length: Annotated[jax.Array, Field('', np.float32, 'config')]
    # Within the step.
    row: Annotated[jax.Array, Field('B', np.int32, 'step')]
    inputs: Annotated[jax.Array, Field('BT', np.int32, 'corruption')]
    attend: Annotated[jax.Array, Field('BT', np.bool_, 'corruption')]
    step_weight: Annotated[jax.Array, Field('', np.float32, 'step')]
    step_tokens: Annotated[jax.Array, Field('', np.float32, 'step')]
    step_rows: Annotated[jax.Array, Field('', np.float32, 'step')]
    step_micro: Annotated[jax.Array, Field('', np.float32, 'step')]


class Prompts(TypedDict, total=False):
    """What the sampler reads of a batch of prompts, padded on the left; `index` counts draws."""

    tokens: Annotated[jax.Array, Field('PQ', np.int32, 'data')]
    segments: Annotated[jax.Array, Field('PQ', np.int32, 'data')]
    positions: Annotated[jax.Array, Field('PQ', np.int32, 'data')]
    index: Annotated[jax.Array, Field('P', np.int32, 'data')]


class Sampled(TypedDict, total=False):
    """What `sampling.slots.Rollout` holds, by attribute; `forced` may be absent."""

    tokens: Annotated[jax.Array, Field('PGC', np.int32, 'sampler')]
    logprob: Annotated[jax.Array, Field('PGC', np.float32, 'sampler')]
    entropy: Annotated[jax.Array, Field('PGC', np.float32, 'sampler')]
    length: Annotated[jax.Array, Field('PG', np.int32, 'sampler')]
    terminated: Annotated[jax.Array, Field('PG', np.bool_, 'sampler')]
    forced: Annotated[jax.Array, Field('PGC', np.bool_, 'forcing')]


def fields_of(kind: type) -> dict[str, Field]:
    """Returns the fields that a `TypedDict` of this module describes, by name."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


BATCH, PROMPTS, ROLLOUT = fields_of(Batch), fields_of(Prompts), fields_of(Sampled)
# What every row has, and every prompt.
TEXT = ('tokens', 'segments', 'positions')


def fields_of_rows(form: str) -> tuple[str, ...]:
    """Returns the names of what a supervised batch holds.

    Args:
      form: of the rows, see `data.forms`.
    """
    marks = (name for name, field in BATCH.items() if field.filled_by == f'data: {form}')
    return (*TEXT, 'weights', *marks)


def fields_of_rollout(
    *, share_prompts: bool, packing: bool, stale: bool, old: bool, reference: bool
) -> tuple[str, ...]:
    """Returns the names of what a batch of an online stage holds.

    Args:
      share_prompts: prompts stand beside the rows.
      packing: completions are packed into bins.
      stale: groups may be of earlier steps.
      old, reference: log-probs of which models are there besides the sampler's.
    """
    fillers = ('sampler', 'data, sampler', 'advantage', 'config')
    fillers += ('prompts, where rows share them',) * share_prompts + ('packing',) * packing
    fillers += ('buffer of rollouts',) * stale + ('reference model',) * reference
    fillers += ('policy at the start of the step',) * old
    return tuple(name for name, field in BATCH.items() if field.filled_by in fillers)


def cast(arrays: Mapping[str, Any], fields: Mapping[str, Field] = BATCH) -> dict:
    """Returns arrays, of the host or traced, with the dtypes of their fields."""
    return {name: x.astype(fields[name].dtype) for name, x in arrays.items()}


def shape_fields(
    names: Iterable[str],
    sizes: Mapping[str, int],
    mesh: jax.sharding.Mesh,
    fields: Mapping[str, Field] = BATCH,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of fields, placed on a mesh as batches are.

    Args:
      names: of the fields.
      sizes: of the axes that they have, by letter.
      mesh: where they live.
      fields: description of all there are.
    """

    def shape(field: Field) -> jax.ShapeDtypeStruct:
        sized = tuple(sizes[axis] for axis in field.axes)
        return jax.ShapeDtypeStruct(
            sized, field.dtype, sharding=meshes.batch_sharding(sized, mesh) if sized else None
        )

    return {name: shape(fields[name]) for name in names}


def misfit(arrays: Mapping[str, Any], fields: Mapping[str, Field]) -> str:
    """Returns in which way arrays are not what their fields say, or ''; axes of one letter have one
    size."""
    sizes: dict[str, int] = {}
    for name, x in arrays.items():
        if name not in fields:
            return f'"{name}" is none of {", ".join(fields)}'
        axes, dtype, _ = fields[name]
        if np.dtype(x.dtype) != dtype or x.ndim != len(axes):
            return f'"{name}" is {x.dtype}{list(x.shape)}, not {np.dtype(dtype)}[{", ".join(axes)}]'
        for axis, size in zip(axes, x.shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                return f'"{name}" has {size} along {axis} where others have {sizes[axis]}'
    return ''
