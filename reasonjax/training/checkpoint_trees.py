"""What a checkpoint knows of the trees in it: abstract forms, static fields, differences, and the
arrays within a method's state."""

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reasonjax.errors import UserError
from reasonjax.training.checkpoint_files import LISTED

_ARRAY = '__array__'


def abstract(tree: Any) -> Any:
    """Replaces arrays by `jax.ShapeDtypeStruct` with their sharding, else the default device's."""
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            return leaf  # NumPy arrays and Python numbers come back as what they are
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or default)

    return jax.tree.map(one, tree)


def static_fields(tree: Any) -> dict[str, dict[str, Any]]:
    """Returns the kind and the static fields of every dataclass node, as JSON. The form is
    `{path: {'kind': ..., field: value}}`.

    Static fields are part of a node's type for jax and absent from a checkpoint's arrays: a
    quantised weight of block 32 would otherwise be restored into one of block 16 unnoticed.
    """
    fields_of = {}

    def visit(path: str, node: Any) -> None:
        # Everything but the node itself counts as a leaf: this is one level of the tree.
        children = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]
        names = [_name(keys) for keys, _ in children]
        if dataclasses.is_dataclass(node) and '' not in names:
            fields_of[path] = {'kind': type(node).__name__} | {
                field.name: _plain(getattr(node, field.name))
                for field in dataclasses.fields(node)
                if field.name not in names
            }
        for name, (keys, child) in zip(names, children):
            if keys:
                visit(f'{path}/{name}' if path else name, child)

    visit('', tree)
    return fields_of


def _plain(value: Any) -> Any:
    """Converts a static field to JSON without memory addresses, which differ from run to run."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_plain(x) for x in value]
    return re.sub(r' at 0x[0-9a-f]+', '', repr(value))


def split_arrays(state: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """Takes the arrays out of a state of dicts, lists and plain values: what is left is JSON, with
    a number in each array's place."""
    arrays: dict[str, np.ndarray] = {}

    def visit(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {name: visit(value) for name, value in node.items()}
        if isinstance(node, list | tuple):
            return [visit(value) for value in node]
        if isinstance(node, np.ndarray | np.generic | jax.Array):
            name = str(len(arrays))
            arrays[name] = np.asarray(jax.device_get(node))
            return {_ARRAY: name}
        return node

    return visit(state), arrays


def join_arrays(plain: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Puts back what `split_arrays` took out; tuples have become lists."""
    if isinstance(plain, dict):
        if _ARRAY in plain:
            return arrays[plain[_ARRAY]]
        return {name: join_arrays(value, arrays) for name, value in plain.items()}
    if isinstance(plain, list):
        return [join_arrays(value, arrays) for value in plain]
    return plain


def _name(keys: Iterable[Any]) -> str:
    """Formats a path of the tree as 'layers/attention/0', whether attributes, keys or positions."""
    return jax.tree_util.keystr(tuple(keys), simple=True, separator='/')


def check_meta(where: os.PathLike, meta: Mapping[str, Any], expect: Mapping[str, Any]) -> None:
    """Raises a UserError that lists the entries of `expect` that `meta` does not hold."""
    expect = json.loads(json.dumps(dict(expect)))  # tuples are lists in JSON
    wrong = [
        f'  {name}: expected {value!r}, the checkpoint has {meta.get(name)!r}'
        for name, value in expect.items()
        if meta.get(name) != value
    ]
    if wrong:
        raise UserError(
            f'checkpoint {where} belongs to another run:\n'
            + '\n'.join(wrong)
            + '\nUse the config and the data it was made with, or another --workdir.'
        )


def compare(
    where: os.PathLike,
    metadata: Mapping[str, Any],
    wanted: Mapping[str, Any],
    static: Mapping[str, Any],
    *,
    cast: bool,
) -> None:
    """Raises a UserError that names every difference between the trees wanted and the checkpoint;
    reads no array.

    Args:
        where: the checkpoint, for the message.
        metadata: Orbax's, of each part.
        wanted: abstract trees by part.
        static: what `static_fields` found when the checkpoint was written.
        cast: whether floating leaves may be of another dtype.
    """
    differ, missing, extra = [], [], []
    for item, tree in wanted.items():
        if metadata.get(item) is None:
            raise UserError(f'checkpoint {where} has no part "{item}".')
        have = {
            _name(keys): leaf
            for keys, leaf in jax.tree_util.tree_flatten_with_path(metadata[item].tree)[0]
        }
        want = {_name(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
        missing += [
            f'{item}/{name} {_text(leaf)}' for name, leaf in want.items() if name not in have
        ]
        extra += [f'{item}/{name} {_text(leaf)}' for name, leaf in have.items() if name not in want]
        differ += [
            f'{item}/{name}: expected {_text(leaf)}, found {_text(have[name])}'
            for name, leaf in want.items()
            if name in have and not _fits(leaf, have[name], cast)
        ]
    expected = json.loads(json.dumps(static_fields(wanted)))
    saved = {path: fields for path, fields in static.items() if path.split('/')[0] in wanted}
    for path in sorted(expected.keys() & saved.keys()):
        differ += [
            f'{path}.{name}: expected {expected[path].get(name)!r}, found {saved[path].get(name)!r}'
            for name in sorted(expected[path].keys() | saved[path].keys())
            if expected[path].get(name) != saved[path].get(name)
        ]
    # A node of one side only shows in its leaves, unless both sides have leaves of those names.
    differ += [
        f'{path}: expected {expected.get(path, {}).get("kind", "a plain array or container")}, '
        f'found {saved.get(path, {}).get("kind", "a plain array or container")}'
        for path in sorted(expected.keys() ^ saved.keys())
    ]
    if differ or missing or extra:
        lines = (
            _section('of another shape or kind', differ)
            + _section('missing in the checkpoint', missing)
            + _section('only in the checkpoint', extra)
        )
        raise UserError(
            f'checkpoint {where} is of another model:\n'
            + '\n'.join(lines)
            + '\nUse the config it was made with (config.json of its workdir), or another '
            '--workdir.'
        )


def _section(title: str, entries: list[str]) -> list[str]:
    if not entries:
        return []
    more = [f'    ... and {len(entries) - LISTED} more'] if len(entries) > LISTED else []
    return [f'  {title}:'] + [f'    {entry}' for entry in entries[:LISTED]] + more


def _stored(leaf: Any) -> tuple[tuple[int, ...], Any]:
    """Returns the shape and dtype with which a leaf is stored. A typed key is stored as its data, a
    Python number as a scalar."""
    if hasattr(leaf, 'dtype') and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return tuple(getattr(leaf, 'shape', ())), getattr(leaf, 'dtype', None)


def _fits(want: Any, have: Any, cast: bool) -> bool:
    (want_shape, want_dtype), (have_shape, have_dtype) = _stored(want), _stored(have)
    if want_shape != have_shape:
        return False
    if want_dtype is None or want_dtype == have_dtype:
        return True
    return (
        cast
        and jnp.issubdtype(want_dtype, jnp.floating)
        and jnp.issubdtype(have_dtype, jnp.floating)
    )


def _text(leaf: Any) -> str:
    shape, dtype = _stored(leaf)
    return f'{dtype or "number"}[{",".join(map(str, shape))}]'
