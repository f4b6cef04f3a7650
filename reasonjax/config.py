"""Configs: load a `get_config()` file, apply `--config.a.b=c`, and turn `dict(name=..., **knobs)`
into functions.

A function is named in config as `dict(name=..., **knobs)`. Its **keyword-only parameters are its
knobs**: the signature is the schema. `complete` fills in every knob's default and rejects every
unknown one, so that the resolved config shows all that can be set, each leaf can be overridden from
the command line, and a typing error dies before anything runs.
"""

import ast
import functools
import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from reasonjax import bounds, config_files, files
from reasonjax.config_bounds import check_leaves
from reasonjax.config_names import EXTRA, REQUIRED, SLOTS, find, knobs
from reasonjax.errors import UserError, listing, nearest

# Slots whose functions stand side by side, each under a name of the user's.
NAMED = ('rewards',)


def resolve(
    node: Mapping, slot: str, key: str | None = None, trust: Sequence[str] | None = None
) -> Callable:
    """Binds a node's knobs to the function it names.

    Args:
      node: `{'name': ..., **knobs}`.
      slot: a key of `SLOTS`.
      key: the config key, for error messages; the slot's name by default.
      trust: see `find`.

    Raises:
      UserError: unknown function or knob, a knob without default that is not given, or a value that
        is not within the knob's bound.
    """
    key = key or slot
    function = find(node['name'], slot, key, trust)
    given = {k: _plain(v) for k, v in node.items() if k != 'name' and k not in EXTRA.get(slot, ())}
    schema = knobs(function)
    for knob in given:
        if knob not in schema:
            hint = f'{nearest(knob, schema)} It has: {listing(schema) or "none"}.'
            raise UserError(f'config.{key}.{knob}: {node["name"]} has no such knob.{hint}')
    for knob, default in schema.items():
        if default is REQUIRED and given.get(knob) in (None, ''):
            raise UserError(
                f'config.{key}.{knob}: {node["name"]} needs this knob; it has no default.'
            )
    bounds.check_knobs(function, given, f'config.{key}')
    return functools.partial(function, **given)


def _nodes(
    config: ml_collections.ConfigDict, prefix: str = ''
) -> Iterator[tuple[str, str, Any, Any]]:
    """Yields (key, slot, container, index) of every function node of the tree, parents first."""
    for field in list(config.keys()):
        value = config[field]
        key = f'{prefix}{field}'
        if field in NAMED and isinstance(value, ml_collections.ConfigDict):
            for name in value.keys():
                yield f'{key}.{name}', field, value, name
        elif field in SLOTS and isinstance(value, ml_collections.ConfigDict):
            yield key, field, config, field
            yield from _nodes(config[field], f'{key}.')
        elif field in SLOTS and isinstance(value, list | tuple):
            for i in range(len(value)):
                yield f'{key}[{i}]', field, value, i
        elif isinstance(value, ml_collections.ConfigDict):
            yield from _nodes(value, f'{key}.')


def names(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Lists the names of all functions of a config."""
    return tuple(container[index]['name'] for _, _, container, index in _nodes(config))


def _open_lists(config: ml_collections.ConfigDict) -> None:
    """Makes the dicts in lists of functions ConfigDicts, so that their knobs can be filled in and
    overridden like any other."""
    for key, _, container, index in list(_nodes(config)):
        node = container[index]
        if not isinstance(node, Mapping | ml_collections.ConfigDict):
            raise UserError(
                f'config.{key}: a function is named as dict(name={node!r}), with its knobs beside '
                'the name.'
            )
        if not isinstance(node, ml_collections.ConfigDict):
            _set(config, _parts(key), ml_collections.ConfigDict(node))


def complete(
    config: ml_collections.ConfigDict, trust: Sequence[str] | None = None
) -> ml_collections.ConfigDict:
    """Fills in every knob's default, in place, and rejects unknown functions and knobs, and values
    out of bounds. Returns the config.

    For `trust` see `find`.
    """
    _open_lists(config)
    _fill(config, trust)
    check(config, trust)
    return config


def check(config: ml_collections.ConfigDict, trust: Sequence[str] | None = None) -> None:
    """Raises UserError where a completed config names what is not there, or holds a value that is
    not within its bound."""
    # First, because knobs may refer to them.
    check_leaves(config, SLOTS, EXTRA)
    for key, slot, container, index in _nodes(config):
        resolve(container[index], slot, key, trust)


def _fill(config: ml_collections.ConfigDict, trust: Sequence[str] | None = None) -> None:
    """Puts every knob into every function node; those that must be given are None or '' until an
    override gives them."""
    for key, slot, container, index in _nodes(config):
        node = container[index]
        if 'name' not in node:
            raise UserError(f'config.{key}: a function node needs "name".')
        function = find(node['name'], slot, key, trust)
        for knob, default in {**knobs(function), **EXTRA.get(slot, {})}.items():
            if knob not in node and default is REQUIRED:
                # Text for text, so that a path that looks like a number stays one.
                kind = bounds.base(inspect.signature(function).parameters[knob].annotation)
                node[knob] = '' if kind in (str, 'str') else None
            elif knob not in node:
                node[knob] = default


def load(location: str, overrides: Sequence[tuple[str, str]] = ()) -> ml_collections.ConfigDict:
    """Loads a config file and applies overrides.

    Args:
      location: 'configs/x.py', or 'configs/x.py:argument' to pass a string to its `get_config`.
      overrides: pairs ('train.steps', '10'), applied after completion; a new `name` brings its own
        knobs' defaults.

    Returns:
      The completed, locked config.

    Raises:
      UserError: what `config_files.get_config` refuses, an unknown key, a value of another type.
    """
    path, _, argument = location.partition(':')
    config = apply(config_files.get_config(path, argument), overrides)
    config.lock()
    return config


def apply(
    config: ml_collections.ConfigDict,
    overrides: Sequence[tuple[str, str]],
    trust: Sequence[str] | None = None,
) -> ml_collections.ConfigDict:
    """Completes a config and applies overrides, in place: first the functions' names, then what
    their knobs are to be. Returns it.

    For `trust` see `find`; names among the overrides are the user's own words, and trusted.
    """
    _open_lists(config)
    names = [(key, value) for key, value in overrides if key.split('.')[-1] == 'name']
    trust = None if trust is None else (*trust, *(value for _, value in names))
    for key, value in names:
        _rename(config, key, value)
    _fill(config, trust)
    for key, value in overrides:
        if (key, value) not in names:
            override(config, key, value)
    return complete(config, trust)


def _parts(key: str) -> list[str | int]:
    return [int(p) if p.isdigit() else p for p in re.findall(r'[^.\[\]]+', key)]


def _walk(config: Any, key: str) -> tuple[Any, str | int]:
    """Returns the container and the last index of a dotted key such as
    'sft.data.transforms[0].keep'."""
    node, seen, parts = config, 'config', _parts(key)
    for depth, part in enumerate(parts):
        where = f'--config.{key}'
        if isinstance(node, list | tuple):
            if not isinstance(part, int) or part >= len(node):
                raise UserError(f'{where}: {seen} has {len(node)} entries, numbered from 0.')
        elif not isinstance(node, ml_collections.ConfigDict):
            raise UserError(f'{where}: {seen} is a value ({node!r}), not a group of keys.')
        elif part not in node:
            raise UserError(
                f'{where}: {seen} has no key "{part}".{nearest(str(part), node.keys())} It has: '
                f'{listing(node.keys())}.'
            )
        if depth == len(parts) - 1:
            return node, part
        node = node[part]
        seen += f'[{part}]' if isinstance(part, int) else f'.{part}'
    raise UserError(f'--config.{key}: empty key.')


def _set(config: Any, parts: list[str | int], value: Any) -> None:
    """Sets what a path leads to; an entry of a tuple by setting the whole tuple."""
    container = config
    for part in parts[:-1]:
        container = container[part]
    if isinstance(container, tuple):
        index = parts[-1]
        _set(config, parts[:-1], container[:index] + (value,) + container[index + 1 :])
    else:
        container[parts[-1]] = value


def _function_node(config: ml_collections.ConfigDict, key: str) -> tuple[Any, str] | None:
    """Finds the function node that `key` leads to, and its slot; None where there is none."""
    slot = next((p for p in reversed(_parts(key)) if p in SLOTS), None)
    if slot is None:
        return None
    container, index = _walk(config, key)
    node = container[index]
    return (node, slot) if isinstance(node, ml_collections.ConfigDict) and 'name' in node else None


def _rename(config: ml_collections.ConfigDict, key: str, value: str) -> None:
    """Replaces the name of a function; knobs that the new function lacks are dropped."""
    node_key = key.rpartition('.')[0]
    function_node = _function_node(config, node_key) if node_key else None
    if function_node is None:
        override(config, key, value)
        return
    node, slot = function_node
    schema = knobs(find(value, slot, node_key))
    kept = {
        k: v
        for k, v in node.items(preserve_field_references=True)
        if k in schema or k in EXTRA.get(slot, ())
    }
    _set(config, _parts(node_key), ml_collections.ConfigDict({'name': value, **kept}))


def value_at(config: ml_collections.ConfigDict, key: str) -> Any:
    """Returns the value of a dotted key; raises UserError where there is none."""
    container, index = _walk(config, key)
    return container[index]


def override(config: ml_collections.ConfigDict, key: str, text: str) -> None:
    """Sets one leaf, in place, from its text on the command line.

    Raises:
      UserError: no such key (nearest offered), or text that is not of the leaf's type.
    """
    container, index = _walk(config, key)
    old = container[index]
    if isinstance(old, ml_collections.ConfigDict):
        raise UserError(
            f'--config.{key}: this is a group of keys ({listing(old.keys())}); set one of them.'
        )
    value = _parse(text, old, key, may_be_none=_default_is_none(config, key))
    if old is not None and value is None:
        container[index] = ml_collections.config_dict.placeholder(type(old))
    else:
        _set(config, _parts(key), value)


def _default_is_none(config: ml_collections.ConfigDict, key: str) -> bool:
    """Returns whether a key is a knob whose default is None, so that None is a valid value."""
    node_key, _, knob = key.rpartition('.')
    function_node = _function_node(config, node_key) if node_key else None
    return (
        function_node is not None
        and knobs(find(function_node[0]['name'], function_node[1], node_key)).get(knob, '') is None
    )


def _parse(text: str, old: Any, key: str, may_be_none: bool) -> Any:
    lowered = {
        'true': True,
        'false': False,
        'none': None,
        'inf': float('inf'),
        '-inf': -float('inf'),
        'nan': float('nan'),
    }
    if isinstance(old, str) and not (may_be_none and text.lower() == 'none'):
        return text
    try:
        value = lowered[text.lower()] if text.lower() in lowered else ast.literal_eval(text)
    # also numbers of thousands of digits, thousands of brackets
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        value = text
    if isinstance(value, float) and math.isinf(value) and text.lower() not in lowered:
        value = text  # 1e400 is too large, and not what is meant by infinity
    if old is None or (value is None and may_be_none):
        return value
    if isinstance(old, tuple | list):
        entries = value if isinstance(value, tuple | list) else (value,)
        return type(old)(_like(entry, old[0], text, key) if old else entry for entry in entries)
    return _like(value, old, text, key)


def _like(value: Any, old: Any, text: str, key: str) -> Any:
    """Returns a value if it is of the type of `old`; an int may stand for a float."""
    integral = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(old, float) and integral and abs(value) <= sys.float_info.max:
        return float(value)
    if not isinstance(value, type(old)) or isinstance(value, bool) != isinstance(old, bool):
        text = text if len(text) <= bounds.LONGEST else bounds.shown(text)
        raise UserError(
            f'--config.{key}={text}: expected {type(old).__name__} (now {old!r}), got '
            f'{type(value).__name__}.'
        )
    return value


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Separates `--config.a.b=c` (or `--config.a.b c`) from a program's own arguments.

    Returns:
      The other arguments, and the overrides as (key, text) pairs.
    """
    rest, overrides = [], []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if not argument.startswith('--config.'):
            rest.append(argument)
            continue
        key, equals, value = argument[len('--config.') :].partition('=')
        if not equals:
            if not queue or queue[0].startswith('--'):
                raise UserError(f'{argument}: no value given; write {argument}=VALUE.')
            value = queue.pop(0)
        overrides.append((key, value))
    return rest, overrides


def _plain(value: Any) -> Any:
    """ConfigDicts to dicts, all the way down, as functions and JSON want them."""
    if isinstance(value, ml_collections.ConfigDict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(v) for v in value)
    return value


def to_json(config: ml_collections.ConfigDict) -> str:
    """Returns the resolved config as JSON, keys sorted. Infinities become `Infinity`, JSON's usual
    extension."""
    return json.dumps(_plain(config), indent=2, sort_keys=True)


def from_json(text: str, where: str = 'config') -> ml_collections.ConfigDict:
    """Reads back what `to_json` wrote (tuples come back as tuples).

    Raises:
      UserError: not JSON, or JSON that is no config; begins with `where`.
    """

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(tuples(v) for v in value) if isinstance(value, list) else value

    value = files.parse_json(text, where)
    if not isinstance(value, dict):
        raise UserError(f'{where}: expected a JSON object, found {type(value).__name__}.')
    try:
        return ml_collections.ConfigDict(tuples(value))
    # a key with a dot in it, or named __class__, say
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f'{where}: is not a config ({error}).') from error


def differences(old: Any, new: Any, key: str = 'config') -> list[str]:
    """Lists 'config.a.b: 1 -> 2' for every leaf that differs between two configs."""
    old, new = _plain(old), _plain(new)
    if isinstance(old, dict) != isinstance(new, dict):
        old, new = (
            f'a group of keys ({listing(x)})' if isinstance(x, dict) else x for x in (old, new)
        )
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for k in sorted({*old, *new})
            for line in differences(old.get(k, '(absent)'), new.get(k, '(absent)'), f'{key}.{k}')
        ]
    same = old == new or json.dumps(old) == json.dumps(new)
    return [] if same else [f'{key}: {old!r} -> {new!r}']
