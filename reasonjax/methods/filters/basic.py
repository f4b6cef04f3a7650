"""Filters by name and by kind of leaf."""

from collections.abc import Callable
from typing import Any

import jax

from reasonjax.errors import UserError, listing
from reasonjax.weights import partition


def _by_name(params: Any, wanted: Callable[[str], bool]) -> Any:
    """Marks the leaves whose names are wanted, except constants of nodes."""

    def one(path: Any, constant: bool) -> bool:
        return not constant and wanted(partition.path_name(path))

    return jax.tree_util.tree_map_with_path(one, partition.constants(params))


def all(specs: Any, params: Any) -> Any:
    """Trains everything except quantised weights and the scales of low-rank pairs."""
    return _by_name(params, lambda name: True)


def paths(
    specs: Any, params: Any, *, include: tuple[str, ...] = ('*',), exclude: tuple[str, ...] = ()
) -> Any:
    """Leaves whose name matches a pattern of `include` and none of `exclude` train, but never those
    that `all` leaves out.

    `include=('*',), exclude=()` is `all`. Patterns are shell-style over names such as
    'layers/attention/q' ('*' crosses '/').

    Raises:
      UserError: a pattern that matches nothing, or nothing left to train.
    """
    names = partition.names(params)
    for knob, patterns in (('include', include), ('exclude', exclude)):
        for pattern in patterns:
            if not any(partition.match(name, (pattern,)) for name in names):
                raise UserError(
                    f'config.filter.{knob}: pattern "{pattern}" matches no weight. Weights: '
                    f'{listing(names)}.'
                )
    chosen = _by_name(
        params, lambda name: partition.match(name, include) and not partition.match(name, exclude)
    )
    if not any_true(chosen):
        raise UserError('config.filter: include and exclude together leave nothing to train.')
    return chosen


def lora(specs: Any, params: Any) -> Any:
    """Trains only the factors A and B of low-rank leaves; of a pair over a pair, the outer one.

    Raises:
      UserError: the parameters have no low-rank leaf.
    """
    chosen = _by_name(
        params,
        lambda name: (
            partition.match(name, ('*/a', '*/b')) and not partition.match(name, ('*/base/*',))
        ),
    )
    if not any_true(chosen):
        raise UserError(
            'config.filter.name=lora: no low-rank weights here; set config.adapter.name=lora too.'
        )
    return chosen


def any_true(chosen: Any) -> bool:
    return True in jax.tree.leaves(chosen)
