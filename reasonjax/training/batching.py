"""Rollouts -> the batches that a step trains on."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reasonjax.errors import UserError
from reasonjax.parallel.layout import ROWS
from reasonjax.sampling.sampler import Rollout
from reasonjax.training.batch import TEXT, Batch, cast, fields_of_rollout, shape_fields

# Ratio of neighbouring numbers of bins, and the shortest bin: every shape that comes up is a
# program to compile.
RATIO = 1.25
SHORTEST = 16


@dataclasses.dataclass(frozen=True)
class BatchLayout:
    """How the sequences of a rollout are laid out.

    Attributes:
      share_prompts: rows are completions and prompts stand beside them; otherwise each row holds
        its prompt.
      copies: of each prompt, every one with an equal part of its completions, so that they divide
        over devices and micro-batches.
      packing: completions are packed into bins.
      shards: parts of a step's batch that are packed apart: row shards x micro-batches x
        minibatches.
    """

    share_prompts: bool = True
    copies: int = 1
    packing: bool = False
    shards: int = 1


def layout_of(settings: Mapping[str, Any], mesh: jax.sharding.Mesh, name: str) -> BatchLayout:
    """Returns how the batches of an online stage are laid out.

    Args:
      settings: config of the stage.
      mesh: of training.
      name: of the stage, for error messages.

    Raises:
      UserError: packing without shared prompts, prompts shared where tokens of a row are split over
        devices, or completions that do not divide over devices and micro-batches.
    """
    if settings.packing and not settings.share_prompts:
        raise UserError(
            f'config.{name}.packing=True: completions are packed beside the prompt that they '
            'share; set share_prompts=True.'
        )
    if not settings.share_prompts:
        return BatchLayout(share_prompts=False)
    if mesh.shape['sequence'] > 1:
        raise UserError(
            f'config.{name}.share_prompts=True: mesh.sequence={mesh.shape["sequence"]} splits the '
            'tokens of a row, which then has to hold '
            f'its prompt. Set {name}.share_prompts=False, or mesh.sequence=1.'
        )
    ways = math.prod(mesh.shape[axis] for axis in ROWS) * settings.accumulation
    prompts, number = settings.num_prompts // settings.minibatches, settings.num_generations
    copies = next(
        (c for c in range(1, number + 1) if number % c == 0 and prompts * c % ways == 0), None
    )
    if copies is None:
        raise UserError(
            f'config.{name}: {prompts} prompts x {number} completions of an update do not divide '
            f'over {ways} row shards x micro-batches.'
        )
    return BatchLayout(copies=copies, packing=settings.packing, shards=ways * settings.minibatches)


def assemble(
    prompts: dict,
    rollout: Rollout,
    advantage_PxG: Any,
    layout: BatchLayout = BatchLayout(),
    *,
    mask_truncated: bool = False,
) -> Batch:
    """Lays a rollout out as a batch, weight 1 on tokens that were drawn; on the host of host
    arrays, else as part of a program.

    Args:
      prompts: `tokens`, `segments`, `positions` [P, Tp], padded on the left.
      rollout: of G completions each, up to C tokens.
      advantage_PxG: float32.
      layout: see `BatchLayout`; packing is a step of its own, see `Packer`.
      mask_truncated: completions cut at the limit get weight 0 (they still count as rows).

    Returns:
      `tokens`, `segments`, `positions` int32, `weights`, `logprob_sampled` float32 [B, C], B = P *
      G, and `advantage` [B] float32. Beside them `prompt_tokens`, `prompt_segments`,
      `prompt_positions` [P * copies, Tp] int32; or, where prompts are not shared, rows [left-padded
      prompt | completion] of Tp + C.
    """
    xp: Any = np if isinstance(rollout.tokens, np.ndarray) else jnp
    (P, G, C), Tp = rollout.tokens.shape, prompts['tokens'].shape[1]
    alive_BxC = xp.arange(C) < rollout.length.reshape(P * G, 1)
    weights_BxC = alive_BxC & (rollout.terminated.reshape(P * G, 1) | (not mask_truncated))
    if rollout.forced is not None:
        weights_BxC = weights_BxC & ~rollout.forced.reshape(P * G, C)
    after_BxC = xp.repeat(prompts['positions'][:, -1], G)[:, None] + 1 + xp.arange(C)
    completions = cast(
        {
            'tokens': rollout.tokens.reshape(P * G, C),
            'segments': alive_BxC,
            'positions': after_BxC * alive_BxC,
            'weights': weights_BxC,
            'logprob_sampled': rollout.logprob.reshape(P * G, C),
        }
    )
    texts = cast({name: prompts[name] for name in TEXT})
    advantage = cast({'advantage': advantage_PxG.reshape(P * G)})
    if layout.share_prompts:
        shared = {
            f'prompt_{name}': xp.repeat(x, layout.copies, axis=0) for name, x in texts.items()
        }
        return completions | advantage | shared
    in_rows = {name: xp.repeat(x, G, axis=0) for name, x in texts.items()}
    empty = xp.zeros((P * G, Tp), xp.float32)
    rows = {
        name: xp.concatenate([in_rows.get(name, empty), x], axis=1)
        for name, x in completions.items()
    }
    return rows | advantage


def shapes(
    settings: Mapping[str, Any],
    number: int,
    layout: BatchLayout,
    mesh: jax.sharding.Mesh,
    *,
    old: bool,
    reference: bool,
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes, placed, of a batch that `minibatches` makes of a rollout.

    Args:
      settings: config of an online stage.
      number: of prompts in the batch.
      layout: of the batch. What is packed has no shape before it is sampled: at worst every
        completion is long, and that is this one.
      mesh: of training.
      old, reference: which log-probs it holds besides those of the sampler.
    """
    prompt, completion = settings.data.max_prompt_length, settings.max_completion_length
    sizes = {
        'B': number * settings.num_generations,
        'T': completion if layout.share_prompts else prompt + completion,
        'P': number * layout.copies,
        'Q': prompt,
    }
    names = fields_of_rollout(
        share_prompts=layout.share_prompts, packing=False, stale=False, old=old, reference=reference
    )
    return shape_fields(names, sizes, mesh)


def minibatches(batch: Batch, settings: Mapping[str, Any]) -> list[Batch]:
    """Returns the batch of each update. A batch is split into `minibatches` parts of whole groups,
    and all parts are used `num_iterations` times."""
    number, limit = settings.minibatches, jnp.asarray(settings.max_completion_length, jnp.float32)
    parts = [batch]
    if number > 1:
        parts = [
            {
                name: x[i * (len(x) // number) : (i + 1) * (len(x) // number)]
                for name, x in batch.items()
            }
            for i in range(number)
        ]
    return [part | {'max_completion_length': limit} for part in parts] * settings.num_iterations


class Packer:
    """Packs the completions of batches into bins, so that a step costs the tokens there are and not
    the longest completion times rows.

    Bins are as long as the longest completion, and as many in each shard as the fullest needs; both
    are rounded up to few values. A bin holds completions of one prompt, the longest placed first,
    each into the fullest bin that has room.
    """

    def __init__(self, layout: BatchLayout):
        self._form = layout
        self._shapes: set[tuple[int, ...]] = set()

    def __call__(self, batch: dict) -> tuple[dict, dict[str, float]]:
        """Adds to a host batch of `assemble` where its tokens go, nothing where the layout has no
        packing.

        Returns:
          The batch with `packed_from` [S, n, L] and `packed_at` [B, C] int32, see
          `model.groups.shards_of`; and metrics: `packing/fill`, the share of places in bins that
          hold a token, `packing/bins`, `packing/length`, and `packing/shapes`, how many shapes came
          up so far.
        """
        if not self._form.packing:
            return batch, {}
        length_B = batch['segments'].sum(axis=1)
        source, places = packed(
            length_B, batch['tokens'].shape[1], self._form.shards, len(batch['prompt_tokens'])
        )
        self._shapes.add(source.shape)
        S, n, L = source.shape
        metrics = {
            'fill': length_B.sum() / source.size,
            'bins': S * n,
            'length': L,
            'shapes': len(self._shapes),
        }
        measured = {f'packing/{name}': float(value) for name, value in metrics.items()}
        return batch | {'packed_from': source, 'packed_at': places}, measured


def packed(
    length_B: np.ndarray, C: int, shards: int, prompts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Packs rows into bins; returns the token that each place holds and the place of each token.

    Args:
      length_B: tokens of each row.
      C: width of a row.
      shards: S, packed apart.
      prompts: each with B / prompts adjacent rows.

    Returns:
      `packed_from` [S, n, L] and `packed_at` [B, C] int32.
    """
    R, group = len(length_B) // shards, len(length_B) // prompts
    L = bin_length(int(length_B.max()), C)
    bins_of = [
        [
            [first + row for row in one]
            for first in range(s * R, (s + 1) * R, group)
            for one in best_fit(length_B[first : first + group], L)
        ]
        for s in range(shards)
    ]
    n = min(R, rounded_up(max(map(len, bins_of))))
    source = np.full((shards, n, L), -1, np.int32)
    places = np.full((len(length_B), C), -1, np.int32)
    for s, bins in enumerate(bins_of):
        for i, rows in enumerate(bins):
            at = 0
            for row in rows:
                size = length_B[row]
                source[s, i, at : at + size] = (row - s * R) * C + np.arange(size)
                places[row, :size] = i * L + at + np.arange(size)
                at += size
    return source, places


def best_fit(lengths: np.ndarray, room: int) -> list[list[int]]:
    """Packs items into bins, the longest first, each into the fullest bin with room for it; returns
    the items of each bin."""
    bins: list[list[int]] = []
    left: list[int] = []
    for item in np.argsort(-lengths, kind='stable').tolist():
        size = int(lengths[item])
        fitting = [i for i, free in enumerate(left) if free >= size]
        if not size:
            continue
        if fitting:
            at = min(fitting, key=left.__getitem__)
        else:
            at = len(bins)
            bins.append([])
            left.append(room)
        bins[at].append(item)
        left[at] -= size
    return bins


def bin_length(longest: int, C: int) -> int:
    """Returns the least of C, C / 2, C / 4, ..., rounded up, that holds the longest completion."""
    length = C
    while (half := -(-length // 2)) >= max(longest, SHORTEST):
        length = half
    return length


def rounded_up(number: int) -> int:
    """Rounds up to one of few numbers: 1, 2, ..., 8, 10, 12, 15, 18, 22, ... From 4 on, each is at
    most a quarter above the one before."""
    step = 1
    while step < number:
        step = max(step + 1, int(step * RATIO))
    return step
