"""Parameters that are not finite numbers, by name: looked for wherever parameters arrive, are
scored, and are saved."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reasonjax.errors import UserError
from reasonjax.parallel import processes
from reasonjax.weights.partition import path_name

LISTED = 6


def check(params: Any, where: str, advice: str = '', dtype: Any = None) -> None:
    """Raises UserError where a parameter is not a finite number; names the tensors, and how many of
    their elements.

    It costs a pass over the parameters on their devices. All processes call it together and raise
    together.

    Args:
      params: tree of arrays; integers (the codes of quantised weights) are left out.
      where: what the error begins with.
      advice: what it ends with.
      dtype: that weights are multiplied in: what is not finite in it counts too.
    """
    wrong = unsound(params, dtype)
    if not wrong:
        return
    leaves = _floating(params)
    total, size = sum(wrong.values()), sum(math.prod(leaf.shape) for leaf in leaves.values())
    parts = [
        f'{name} ({number:,} of {math.prod(leaves[name].shape):,})'
        for name, number in wrong.items()
    ]
    narrow = (
        f' (in {np.dtype(dtype).name}, in which they are multiplied)'
        if dtype is not None and not unsound(params)
        else ''
    )
    text = f'{where}: {total:,} of {size:,} parameters are not finite numbers{narrow}: {listed(parts)}.'
    raise UserError(f'{text} {advice}' if advice else text)


def unsound(params: Any, dtype: Any = None) -> dict[str, int]:
    """Counts the non-finite elements of each leaf that has any, by name; see `check`."""
    leaves = _floating(params)
    # Counted only where there are any: the first pass is one number a leaf.
    fine = processes.fetch(_all_finite(list(leaves.values()), dtype)) if leaves else ()
    names = [name for name, holds in zip(leaves, fine, strict=True) if not holds]
    return {
        name: int(np.sum(processes.fetch(_row_counts(leaves[name], dtype)), dtype=np.int64))
        for name in names
    }


def listed(parts: Sequence[str]) -> str:
    """Joins the first of the parts, and says how many more there are."""
    more = [f'and {len(parts) - LISTED} more'] if len(parts) > LISTED else []
    return ', '.join([*parts[:LISTED], *more])


def _floating(params: Any) -> dict[str, jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        path_name(path): leaf for path, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)
    }


def _is_finite(x: jax.Array, dtype: Any) -> jax.Array:
    return jnp.isfinite(x if dtype is None else x.astype(dtype))


@functools.partial(jax.jit, static_argnames='dtype')
def _all_finite(leaves: list[jax.Array], dtype: Any) -> list[jax.Array]:
    return [jnp.all(_is_finite(x, dtype)) for x in leaves]


@functools.partial(jax.jit, static_argnames='dtype')
def _row_counts(leaf: jax.Array, dtype: Any) -> jax.Array:
    # Of a row each: 32 bits do not count the elements of a large leaf.
    if leaf.ndim:
        return jnp.sum(~_is_finite(leaf, dtype), axis=-1, dtype=jnp.int32)
    return (~_is_finite(leaf, dtype)).astype(jnp.int32)
