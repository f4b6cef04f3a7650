"""An adapter's pairs put over the parameters that they belong to."""

import collections
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reasonjax.errors import UserError, one_line
from reasonjax.interop.huggingface.families import FAMILIES
from reasonjax.interop.peft.read import COPY, WEIGHTS, Adapter, Pair, shortened
from reasonjax.weights.linear import LowRank, is_weight, merge
from reasonjax.weights.partition import path_name

# An embedding is grown by at most PAD and the mask.
GROWN = 2


def put_adapter(params: Any, adapter: Adapter) -> Any:
    """Puts an adapter's pairs over the leaves they belong to; every other leaf stays what it is.

    Names of all families are understood (they agree), so that the parameters need not say which
    they are of. A module that is fused in its family (Phi-3's `qkv_proj`) becomes pairs over its
    parts, which share A.

    Args:
      params: parameter tree of arrays or shapes; a leaf may be a low-rank node already.
      adapter: see `read_adapter`.

    Returns:
      The tree with `LowRank` leaves, their factors in float32.

    Raises:
      UserError: the adapter is of another base; lists the modules that are not there and those of
        another shape.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_weight)
    named = {path_name(path): leaf for path, leaf in leaves}
    dense = {name: jax.eval_shape(merge, leaf) for name, leaf in named.items()}
    layers, problems = collections.defaultdict(dict), []
    for module, pair in adapter.pairs.items():
        parts, index, problem = _place(module, dense)
        if not problem:
            shape = sum(dense[p].shape[-1] for p in parts), dense[parts[0]].shape[-2]
            size = pair.b.shape[0], pair.a.shape[1]
            problem = (
                ''
                if _fits(parts[0], size, shape)
                else f'expected {list(shape)}, found {list(size)}'
            )
        if problem:
            problems.append(f'{one_line(module, 120)}: {problem}')
            continue
        for part, b in zip(parts, _split(pair.b, [dense[p].shape[-1] for p in parts]), strict=True):
            layers[part][index] = pair._replace(b=b)
    if problems:
        made_for = f' It was made for "{adapter.base}".' if adapter.base else ''
        raise UserError(
            f'{adapter.path}: the adapter does not fit this model.{made_for}\n  '
            + '\n  '.join(shortened(problems))
        )
    _check_copies(adapter, named)
    adapted = [
        _stacked(leaf, dense[name], layers[name]) if name in layers else leaf
        for name, leaf in named.items()
    ]
    return jax.tree_util.tree_unflatten(structure, adapted)


def _table() -> dict[str, tuple[str, ...]]:
    """Maps a module, with a {} for each stacked axis, to the leaves that lie side by side in it."""
    fused = {name: parts for family in FAMILIES for name, parts in family.fused.items()}
    single = {name: (leaf,) for family in FAMILIES for leaf, name in family.names.items()}
    return {
        name.removesuffix('.weight'): parts
        for name, parts in (single | fused).items()
        if name.endswith('.weight')
    }


def _place(module: str, dense: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[int, ...], str]:
    """Finds a module's leaves, its place in their stacked axes, and what speaks against it."""
    if any(len(number) > 9 for number in re.findall(r'\d+', module)):
        return (), (), 'no such module'
    # Spelt in one way only, so that no two modules are one place.
    number = r'(?<=\.)(?:0|[1-9][0-9]*)(?=\.)'
    template, index = re.sub(number, '{}', module), tuple(map(int, re.findall(number, module)))
    parts = _table().get(template, ())
    if parts in (('embed',), ('head',)) and 'head' not in dense:
        return (
            parts,
            index,
            'the head of this model is its embedding, and PEFT adapts one without the other',
        )
    if not parts or any(part not in dense for part in parts):
        return parts, index, 'no such module'
    if len(index) > 1:
        return parts, index, 'adapters over experts are not supported'
    if len(dense[parts[0]].shape) != 2 + len(index):
        return parts, index, 'not a matrix'
    if any(i >= size for i, size in zip(index, dense[parts[0]].shape)):
        return parts, index, f'there are {dense[parts[0]].shape[0]} layers'
    return parts, index, ''


def _fits(leaf: str, actual: tuple[int, int], shape: tuple[int, int]) -> bool:
    tokens = {'embed': 1, 'head': 0}.get(leaf)
    return all(
        size - (GROWN if axis == tokens else 0) <= f <= size
        for axis, (f, size) in enumerate(zip(actual, shape, strict=True))
    )


def _split(b: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    return np.split(b, np.cumsum(sizes)[:-1])


def _check_copies(adapter: Adapter, named: Mapping[str, Any]) -> None:
    """Compares weights that a file repeats from the base with the base. Embeddings that were
    trained or resized would be lost."""
    for module, copy in adapter.copies.items():
        leaf = next((part for part in _table().get(module, ()) if part in named), None)
        base = None if leaf is None else named[leaf]
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(base)):
            continue
        known = None if base is None else merge(base) if leaf == 'embed' else merge(base).T
        if known is None or not jnp.array_equal(known[: len(copy)], jnp.asarray(copy, known.dtype)):
            raise UserError(
                f'{adapter.path / WEIGHTS}: {module}{COPY} is not the weight of this model: the '
                'adapter is of another base, or of one '
                'whose embeddings were trained or resized.'
            )


def _stacked(
    leaf: Any, dense: jax.ShapeDtypeStruct, pairs: Mapping[tuple[int, ...], Pair]
) -> LowRank:
    *stack, rows, columns = dense.shape
    rank = max(len(pair.a) for pair in pairs.values())
    a, b = np.zeros((*stack, rows, rank), np.float32), np.zeros((*stack, rank, columns), np.float32)
    scale = np.zeros(stack, np.float32)
    for index, pair in pairs.items():
        # What the embedding was grown by stays zero.
        a[index][: pair.a.shape[1], : len(pair.a)] = pair.a.T
        b[index][: len(pair.a), : len(pair.b)] = pair.b.T
        scale[index] = pair.scale
    return LowRank(leaf, jnp.asarray(a), jnp.asarray(b), jnp.asarray(scale))
