"""Splitting a tree into the part that trains and the part that does not, and joining them again."""

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from reasonjax.errors import UserError, listing
from reasonjax.weights.linear import is_weight


def path_name(path: Sequence[Any]) -> str:
    """Names a leaf as filters, weight decay and error messages do, say 'layers/attention/q/a'."""
    return '/'.join(str(getattr(p, 'key', getattr(p, 'name', getattr(p, 'idx', p)))) for p in path)


def names(tree: Any) -> list[str]:
    """Lists the names of all array leaves, in tree order."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def match(name: str, patterns: Sequence[str]) -> bool:
    """Returns whether a leaf's name matches a shell-style pattern ('layers/*/q/*'; '*' crosses
    '/')."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def constants(tree: Any) -> Any:
    """Marks the leaves that are constants of their node, such as the codes of a quantised weight.
    The result is a tree of bool of the same structure."""

    def of_node(node: Any) -> Any:
        children = jax.tree.map(constants, node, is_leaf=lambda x: x is not node)
        fixed = {
            name: jax.tree.map(lambda _: True, getattr(children, name)) for name in node.constants
        }
        return dataclasses.replace(children, **fixed)

    return jax.tree.map(
        lambda leaf: of_node(leaf) if is_weight(leaf) else False, tree, is_leaf=is_weight
    )


def partition(tree: Any, trainable: Any) -> tuple[Any, Any]:
    """Splits by a tree of bool of the same structure; each part has None where the other has the
    leaf.

    Raises:
      UserError: a leaf of integers is to train.
    """
    leaves = zip(names(tree), jax.tree.leaves(trainable), jax.tree.leaves(tree), strict=True)
    integers = [
        name
        for name, keep, leaf in leaves
        if keep and jnp.issubdtype(getattr(leaf, 'dtype', float), jnp.integer)
    ]
    if integers:
        raise UserError(
            f'config.filter: chooses {listing(integers)}, of integers (quantised weights), which '
            'cannot train.'
        )
    train = jax.tree.map(lambda keep, leaf: leaf if keep else None, trainable, tree)
    freeze = jax.tree.map(lambda keep, leaf: None if keep else leaf, trainable, tree)
    return train, freeze


def combine(train: Any, freeze: Any) -> Any:
    """Joins what `partition` split."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, train, freeze, is_leaf=lambda x: x is None
    )
