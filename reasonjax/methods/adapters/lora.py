"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685), with PEFT's knob names."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp

from reasonjax.errors import UserError, listing
from reasonjax.weights import partition
from reasonjax.weights.linear import LowRank, is_weight, merge


def none(params: Any, key: jax.Array) -> Any:
    """Leaves the parameters as they are."""
    return params


def lora(
    params: Any,
    key: jax.Array,
    *,
    r: int = 8,
    lora_alpha: float = 16.0,
    target_modules: tuple[str, ...] = ('layers/attention/*', 'layers/mlp/*'),
    use_rslora: bool = False,
) -> Any:
    """Puts a low-rank pair over every targeted matrix: W + scale A B.

    A is uniform in +-sqrt(1 / in) as PEFT's (Kaiming uniform with a = sqrt(5)), B is zero: the adapted model equals its base, every
    operation bit for bit (compiled as a whole, to rounding, as the compiler fuses the two differently).

    Args:
      params: parameter tree.
      key: PRNG key; each leaf folds in its own name, so that a leaf's draw does not depend on which others are targeted.
      r: rank.
      lora_alpha: scale is lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora` (arXiv:2312.03732).
      target_modules: patterns over names such as 'layers/attention/q'.
      use_rslora: see lora_alpha.

    Raises:
      UserError: a rank below 1, a pattern without a matrix, or one that matches a bank of experts.
    """
    if r < 1:
        raise UserError(f'config.adapter.r: rank must be at least 1, got {r}; adapter.name=none trains without one.')
    leaves, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_weight)
    named = [(partition.path_name(path), leaf) for path, leaf in leaves]
    axes = {name: len(jax.eval_shape(merge, leaf).shape) - name.startswith('layers/') for name, leaf in named}
    matrices = [name for name, number in axes.items() if number == 2]
    banks = [name for name, number in axes.items() if number == 3]
    for pattern in target_modules:
        matched = [name for name in banks if partition.match(name, (pattern,))]
        if matched:
            raise UserError(
                f'config.adapter.target_modules: "{pattern}" matches {listing(matched)}, which are banks of experts and take no adapter; '
                f'name what is to be adapted of {listing(matrices)}.'
            )
        if not any(partition.match(name, (pattern,)) for name in matrices):
            raise UserError(f'config.adapter.target_modules: "{pattern}" matches no matrix. Matrices: {listing(matrices)}.')
    scale = lora_alpha / (r**0.5 if use_rslora else r)
    adapted = [_adapt(leaf, jax.random.fold_in(key, zlib.crc32(name.encode())), r, scale)
               if name in matrices and partition.match(name, target_modules) else leaf
               for name, leaf in named]  # fmt: skip
    return jax.tree_util.tree_unflatten(structure, adapted)


def _adapt(leaf: Any, key: jax.Array, r: int, scale: float) -> LowRank:
    dense = jax.eval_shape(merge, leaf)
    *stack, rows, columns = dense.shape
    bound = rows**-0.5
    a = jax.random.uniform(key, (*stack, rows, r), jnp.float32, -bound, bound).astype(dense.dtype)
    return LowRank(leaf, a, jnp.zeros((*stack, r, columns), dense.dtype), jnp.full(tuple(stack), scale, jnp.float32))
