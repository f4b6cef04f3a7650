"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), with PEFT's knob names."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp

from reasonjax.bounds import AtLeast, OneOf, Positive
from reasonjax.errors import UserError
from reasonjax.methods.adapters.quantise import BLOCK, CHOICES
from reasonjax.methods.adapters.quantise import quantise as quantised
from reasonjax.methods.adapters.targets import LAYERS, chosen, replaced
from reasonjax.weights.linear import LowRank, merge


def none(params: Any, key: jax.Array) -> Any:
    """Leaves the parameters as they are."""
    return params


def lora(
    params: Any,
    key: jax.Array,
    *,
    r: AtLeast(1) = 8,
    lora_alpha: Positive = 16.0,
    target_modules: tuple[str, ...] = LAYERS,
    use_rslora: bool = False,
    quantise: OneOf(*CHOICES) = 'none',
    quantise_block: AtLeast(1) = BLOCK,
    quantise_modules: tuple[str, ...] = LAYERS,
) -> Any:
    """Puts a low-rank pair over every targeted matrix: W + scale A B.

    A is uniform in +-sqrt(1 / in) as PEFT's (Kaiming uniform with a = sqrt(5)), B is zero: the
    adapted model equals its base, every operation bit for bit (compiled as a whole, to rounding, as
    the compiler fuses the two differently). Both are float32 whatever the base is, as PEFT's are,
    and so are their moments: in bfloat16 most updates would be rounded away. With `quantise` the
    base is what is left of it in this many bits.

    Args:
      params: parameter tree.
      key: PRNG key; each leaf folds in its own name, so that a leaf's draw does not depend on which
        others are targeted.
      r: rank.
      lora_alpha: scale is lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora`
        (arXiv:2312.03732).
      target_modules: patterns over names such as 'layers/attention/q'.
      use_rslora: see lora_alpha.
      quantise: none | int8 | nf4, how the base is kept; nf4 is QLoRA (arXiv:2305.14314).
      quantise_block: see `adapters.quantise`.
      quantise_modules: see `adapters.quantise`.

    Raises:
      UserError: a rank below 1, a pattern without a matrix, one that matches a bank of experts, or
        what `adapters.quantise` refuses.
    """
    if r < 1:
        raise UserError(
            f'config.adapter.r: rank must be at least 1, got {r}; adapter.name=none trains without '
            'one.'
        )
    params = quantised(
        params,
        key,
        quantise=quantise,
        quantise_block=quantise_block,
        quantise_modules=quantise_modules,
    )
    leaves = chosen(
        params,
        target_modules,
        knob='config.adapter.target_modules',
        adapted='adapted',
        refusal='take no adapter',
    )
    scale = lora_alpha / (r**0.5 if use_rslora else r)
    adapted = {
        name: _adapt(leaf, jax.random.fold_in(key, zlib.crc32(name.encode())), r, scale)
        for name, leaf in leaves.items()
    }
    return replaced(params, adapted)


def _adapt(leaf: Any, key: jax.Array, r: int, scale: float) -> LowRank:
    dense = jax.eval_shape(merge, leaf)
    *stack, rows, columns = dense.shape
    bound = rows**-0.5
    a = jax.random.uniform(key, (*stack, rows, r), jnp.float32, -bound, bound)
    return LowRank(
        leaf,
        a,
        jnp.zeros((*stack, r, columns), jnp.float32),
        jnp.full(tuple(stack), scale, jnp.float32),
    )
