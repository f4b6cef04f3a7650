"""Splitting a tree into the part that trains and the part that does not, and joining them again."""

import fnmatch
from collections.abc import Sequence
from typing import Any

import jax


def path_name(path: Sequence[Any]) -> str:
    """The name of a leaf, 'layers/attention/q/a': the language of filters, weight decay and error messages."""
    return '/'.join(str(getattr(p, 'key', getattr(p, 'name', getattr(p, 'idx', p)))) for p in path)


def names(tree: Any) -> list[str]:
    """Names of all array leaves, in tree order."""
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def match(name: str, patterns: Sequence[str]) -> bool:
    """Whether a leaf's name matches one of the shell-style patterns ('layers/*/q/*'; '*' crosses '/')."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def partition(tree: Any, trainable: Any) -> tuple[Any, Any]:
    """Splits by a tree of bool of the same structure; each part has None where the other has the leaf."""
    train = jax.tree.map(lambda keep, leaf: leaf if keep else None, trainable, tree)
    freeze = jax.tree.map(lambda keep, leaf: None if keep else leaf, trainable, tree)
    return train, freeze


def combine(train: Any, freeze: Any) -> Any:
    """Joins what `partition` split."""
    return jax.tree.map(lambda a, b: b if a is None else a, train, freeze, is_leaf=lambda x: x is None)
