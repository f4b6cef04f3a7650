"""Weights in 8 or 4 bits: for a model that is only run, or frozen under low-rank pairs (QLoRA,
Dettmers et al. 2023, arXiv:2305.14314)."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax

from reasonjax.bounds import AtLeast, OneOf
from reasonjax.errors import UserError, check_choice
from reasonjax.methods.adapters.targets import LAYERS, chosen, replaced
from reasonjax.weights import quantised
from reasonjax.weights.linear import LowRank, is_weight

BLOCK = 64
CHOICES = ('none', *quantised.FORMATS)


def quantise(
    params: Any,
    key: jax.Array,
    *,
    quantise: OneOf(*CHOICES) = 'nf4',
    quantise_block: AtLeast(1) = BLOCK,
    quantise_modules: tuple[str, ...] = LAYERS,
) -> Any:
    """Keeps the matrices of the layers in few bits; norms, biases, embedding and head stay as they
    are. What is quantised never trains.

    Bytes per weight: 1 (int8) or 1/2 (nf4), and w / block for the scales, w being the bytes of the
    parameters' dtype; QLoRA's second quantisation, of the scales, is not done. Products run in the
    compute dtype over weights that are dequantised for each.

    Args:
      params: parameter tree.
      key: not used.
      quantise: nf4 | int8 | none.
      quantise_block: inputs of a matrix that share a scale; divides the inputs of every matrix
        chosen.
      quantise_modules: patterns over names such as 'layers/attention/q'.

    Raises:
      UserError: an unknown format, a block that does not divide, a pattern without a matrix, one
        that matches a bank of experts, or a matrix that is quantised or adapted already.
    """
    del key
    if quantise == 'none':
        return params
    check_choice(f'config.adapter.quantise="{quantise}": unknown', quantise, CHOICES)
    leaves = chosen(
        params,
        quantise_modules,
        knob='config.adapter.quantise_modules',
        adapted='quantised',
        refusal='stay dense',
    )
    for name, leaf in leaves.items():
        if is_weight(leaf):
            how = (
                'has a low-rank pair over it, and only what lies under one is quantised'
                if isinstance(leaf, LowRank)
                else 'is quantised'
            )
            raise UserError(
                f'config.adapter.quantise={quantise}: {name} {how} already; set quantise=none in '
                'this stage.'
            )
    if leaves:
        _check_block(
            {name: leaf.shape[-2] for name, leaf in leaves.items()},
            quantise_block,
            quantised.FORMATS[quantise],
        )
    return replaced(
        params, {name: _of_stack(leaf, quantise, quantise_block) for name, leaf in leaves.items()}
    )


def _check_block(rows: Mapping[str, int], block: int, step: int) -> None:
    """Raises UserError unless the block, a multiple of `step`, divides the rows of all matrices."""
    fitting = [
        b
        for b in range(step, min(rows.values()) + 1, step)
        if all(number % b == 0 for number in rows.values())
    ]
    if block in fitting:
        return
    nearest_block = min(fitting, key=lambda b: abs(math.log(b / max(block, 1))), default=None)
    hint = (
        f'nearest: {nearest_block}'
        if fitting
        else 'there is none; leave some out of quantise_modules'
    )
    sizes = ', '.join(f'{name} has {number}' for name, number in rows.items())
    raise UserError(
        f'config.adapter.quantise_block={block}: must be {"an even" if step == 2 else "a"} number '
        'that divides the inputs of every matrix '
        f'({sizes}); {hint}.'
    )


@functools.partial(jax.jit, static_argnames=('format', 'block'))
def _of_stack(w: jax.Array, format: str, block: int) -> quantised.Quantised:
    """Quantises a stack layer by layer, so that intermediate results take the memory of one."""
    if w.ndim == 2:
        return quantised.quantise(w, format, block)
    return jax.lax.map(lambda layer: quantised.quantise(layer, format, block), w)
