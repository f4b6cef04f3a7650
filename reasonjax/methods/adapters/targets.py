"""Which leaves an adapter goes over: matrices, by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from reasonjax.errors import UserError, listing
from reasonjax.weights import partition
from reasonjax.weights.linear import is_weight, merge

# The matrices of every layer of a model without experts.
LAYERS = ('layers/attention/*', 'layers/mlp/*')


def chosen(
    params: Any, patterns: Sequence[str], *, knob: str, adapted: str, refusal: str
) -> dict[str, Any]:
    """Finds the matrices whose names match a pattern, by name; a stack of layers counts as one.

    Args:
      params: parameter tree, or its shapes.
      patterns: over names such as 'layers/attention/q'.
      knob: config key of the patterns, for the error message.
      adapted: what is done to a matrix, for the error message.
      refusal: what banks of experts do instead.

    Raises:
      UserError: a pattern without a matrix, or one that matches a bank of experts.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_weight)
    named = {partition.path_name(path): leaf for path, leaf in leaves}
    axes = {
        name: len(jax.eval_shape(merge, leaf).shape) - name.startswith('layers/')
        for name, leaf in named.items()
    }
    matrices = [name for name, number in axes.items() if number == 2]
    banks = [name for name, number in axes.items() if number == 3]
    for pattern in patterns:
        matched = [name for name in banks if partition.match(name, (pattern,))]
        if matched:
            raise UserError(
                f'{knob}: "{pattern}" matches {listing(matched)}, which are banks of experts and '
                f'{refusal}; '
                f'name what is to be {adapted} of {listing(matrices)}.'
            )
        if not any(partition.match(name, (pattern,)) for name in matrices):
            raise UserError(
                f'{knob}: "{pattern}" matches no matrix. Matrices: {listing(matrices)}.'
            )
    return {name: named[name] for name in matrices if partition.match(name, patterns)}


def replaced(params: Any, leaves: Mapping[str, Any]) -> Any:
    """Returns the tree with the given leaves, by name, in place of its own."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaves.get(partition.path_name(path), leaf), params, is_leaf=is_weight
    )
