"""Checkpoints of everything a stage needs to go on bit for bit: parameters, training state, data position, counters.

Layout of a folder: `STEP/params`, `STEP/train` (arrays, written by Orbax) and `STEP/meta` (JSON). A step is written
under a temporary name and renamed when it is complete, so a kill at any moment leaves the previous steps usable.

Restoring is always into an abstract tree, and everything is compared by name before an array is read: shapes, dtypes
and the static fields of weight nodes (which Orbax neither saves nor checks).
"""

import dataclasses
import json
import logging
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from reasonjax.errors import UserError

LISTED = 12  # how many leaves an error lists by name


class Iterator(Protocol):
    """A position in the data: its state is JSON, equal on every process (it is a global index, not a host's share)."""

    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> None: ...


class Restored(NamedTuple):
    """What `Checkpoints.restore` returns; a part that was not asked for is None."""

    params: Any
    train: Any
    meta: dict[str, Any]


class Checkpoints:
    """The checkpoints of one stage, for the process that writes them.

    Args:
        folder: where they live; made if it does not exist. What a killed run left half-written in it is removed, so
            a program that only reads uses `load_params`.
        keep: how many of the newest to keep; None keeps all.
    """

    def __init__(self, folder: str | os.PathLike, keep: int | None = 2):
        self._folder = _absolute(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._manager = _manager(self._folder, keep=keep, cleanup=True)
        for step in set(self._manager.all_steps()) - set(_complete(self._folder, self._manager)):
            self._manager.delete(step)

    def steps(self) -> list[int]:
        """The steps that can be restored, in order; a save under way is waited for."""
        self.wait()
        return _complete(self._folder, self._manager)

    def latest(self) -> int | None:
        """The newest step that can be restored, or None."""
        return max(self.steps(), default=None)

    def save(self, step: int, *, params: Any, train: Any = None, data: Iterator | None = None,
             meta: Mapping[str, Any] | None = None) -> bool:
        """Starts writing a checkpoint and returns when the arrays are copied; they may be donated afterwards.

        Args:
            step: its name, 0 or more.
            params: a pytree of arrays; nodes may be registered dataclasses, None marks holes.
            train: any pytree of arrays and numbers: optimiser state, counters, typed PRNG keys.
            data: the data iterator; its position now is saved.
            meta: JSON: the model config, the fingerprint of the data, counters.

        Returns:
            False where the step is there already: a resumed run is bit-exact, so it is left as it is.
        """
        if step in self._manager.all_steps():
            return False
        record = {'meta': dict(meta or {}), 'static': static_fields({'params': params, 'train': train})}
        if data is not None:
            record['data'] = data.get_state()
        # A copy, because the writer runs in the background and the caller's counters move on.
        record = json.loads(json.dumps(record))
        items = {'params': ocp.args.StandardSave(params), 'meta': ocp.args.JsonSave(record)}
        if train is not None:
            items['train'] = ocp.args.StandardSave(train)
        # Forced, because Orbax otherwise skips, without a word, a step before the newest one.
        return self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore(self, step: int | None = None, *, params: Any = None, train: Any = None, data: Iterator | None = None,
                expect: Mapping[str, Any] | None = None) -> Restored:
        """Reads a checkpoint, bit for bit, after comparing everything that can be compared.

        Args:
            step: which; None is the newest.
            params: the tree expected, of `jax.ShapeDtypeStruct` with shardings or of arrays; None leaves it out.
            train: the same for the training state.
            data: a fresh iterator, which is set to the saved position.
            expect: entries that `meta` must hold with these values, such as the fingerprint of the data.

        Raises:
            UserError: there is no such step; a leaf is missing, left over or of another shape or dtype; a static field
                or an entry of `expect` differs; there is no data position.
        """
        self.wait()
        step = _choose(self._folder, _complete(self._folder, self._manager), step)
        where = self._folder / str(step)
        record = _read_record(self._manager, step)
        _expect(where, record['meta'], expect or {})
        wanted = {name: abstract(tree) for name, tree in (('params', params), ('train', train)) if tree is not None}
        _compare(where, self._manager, step, wanted, record['static'], cast=False)
        if data is not None and 'data' not in record:
            raise UserError(f'{where} holds no data position, so a run cannot be resumed from it.')
        found = _read(self._manager, step, wanted)
        if data is not None:
            data.set_state(record['data'])
        return Restored(found.get('params'), found.get('train'), record['meta'])

    def wait(self) -> None:
        """Waits until the save under way is complete; raises what went wrong in it."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the writer's threads."""
        self._manager.close()

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def load_params(folder: str | os.PathLike, params: Any, *, step: int | None = None) -> tuple[Any, dict[str, Any], int]:
    """Reads only the parameters, for example of a run that is still going on. Nothing in the folder is changed.

    Args:
        folder: the folder of a stage's checkpoints.
        params: the tree expected; floating leaves are cast to its dtypes.
        step: which; None is the newest.

    Returns:
        (params, meta, step).

    Raises:
        UserError: as `Checkpoints.restore`.
    """
    folder = _absolute(folder)
    with _reader(folder) as manager:
        step = _choose(folder, _complete(folder, manager), step)
        record = _read_record(manager, step)
        wanted = {'params': abstract(params)}
        _compare(folder / str(step), manager, step, wanted, record['static'], cast=True)
        return _read(manager, step, wanted)['params'], record['meta'], step


def abstract(tree: Any) -> Any:
    """Arrays become `jax.ShapeDtypeStruct` with their sharding; a leaf without one goes to the default device."""
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
            return leaf  # NumPy arrays and Python numbers come back as what they are
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or default)

    return jax.tree.map(one, tree)


def static_fields(tree: Any) -> dict[str, dict[str, Any]]:
    """The kind and the static fields of every dataclass node, as JSON: `{path: {'kind': ..., field: value}}`.

    Static fields are part of a node's type for jax and absent from a checkpoint's arrays: a quantised weight of block
    32 would otherwise be restored into one of block 16 without a word.
    """
    found = {}

    def visit(path: str, node: Any) -> None:
        # Everything but the node itself counts as a leaf: this is one level of the tree.
        children = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]
        names = [_name(keys) for keys, _ in children]
        if dataclasses.is_dataclass(node) and '' not in names:
            found[path] = {'kind': type(node).__name__} | {
                field.name: _plain(getattr(node, field.name)) for field in dataclasses.fields(node)
                if field.name not in names}
        for name, (keys, child) in zip(names, children):
            if keys:
                visit(f'{path}/{name}' if path else name, child)

    visit('', tree)
    return found


def _plain(value: Any) -> Any:
    """A static field as JSON; memory addresses are dropped, because they differ from run to run."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple | list):
        return [_plain(x) for x in value]
    return re.sub(r' at 0x[0-9a-f]+', '', repr(value))


def _name(keys: Iterable[Any]) -> str:
    """A path of the tree as 'layers/attention/0', the same for attributes, keys and positions."""
    return jax.tree_util.keystr(tuple(keys), simple=True, separator='/')


def _absolute(folder: str | os.PathLike) -> epath.Path:
    return epath.Path(folder).expanduser().resolve()


class _Quiet(logging.Filter):
    """Drops what Orbax reports about its own progress (dozens of lines for each save)."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or f'{os.sep}orbax{os.sep}' not in record.pathname


_QUIET = _Quiet()


def _manager(folder: epath.Path, *, keep: int | None, cleanup: bool) -> ocp.CheckpointManager:
    # absl shows information by default once its flags are parsed. The same filter object is added only once.
    logging.getLogger('absl').addFilter(_QUIET)
    return ocp.CheckpointManager(
        folder,
        options=ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(keep), cleanup_tmp_directories=cleanup, create=False),
        item_handlers={'params': ocp.StandardCheckpointHandler(), 'train': ocp.StandardCheckpointHandler(),
                       'meta': ocp.JsonCheckpointHandler()})


def _reader(folder: epath.Path) -> ocp.CheckpointManager:
    if not folder.is_dir():
        raise UserError(f'no checkpoint: there is no folder {folder}.')
    return _manager(folder, keep=None, cleanup=False)


def _complete(folder: epath.Path, manager: ocp.CheckpointManager) -> list[int]:
    """The steps whose folder is whole. Orbax goes by the name alone, which a broken copy also has."""
    manager.reload()
    return sorted(step for step in manager.all_steps()
                  if (folder / str(step) / 'meta' / 'metadata').is_file() and (folder / str(step) / 'params').is_dir())


def _choose(folder: epath.Path, steps: list[int], step: int | None) -> int:
    if not steps:
        names = sorted(path.name for path in folder.iterdir())
        there = ', '.join(names[:LISTED]) + (', ...' if len(names) > LISTED else '') if names else 'nothing'
        raise UserError(f'no complete checkpoint in {folder}; there is: {there}.')
    if step is None:
        return steps[-1]
    if step not in steps:
        raise UserError(f'no checkpoint of step {step} in {folder}; there are: {", ".join(map(str, steps))}.')
    return step


def _read_record(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    return manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))['meta']


def _read(manager: ocp.CheckpointManager, step: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
    if not wanted:
        return {}
    found = manager.restore(step, args=ocp.args.Composite(
        **{name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}))
    return {name: found[name] for name in wanted}


def _expect(where: epath.Path, meta: Mapping[str, Any], expect: Mapping[str, Any]) -> None:
    expect = json.loads(json.dumps(dict(expect)))  # tuples are lists in JSON
    wrong = [f'  {name}: expected {value!r}, the checkpoint has {meta.get(name)!r}'
             for name, value in expect.items() if meta.get(name) != value]
    if wrong:
        raise UserError(f'checkpoint {where} belongs to another run:\n' + '\n'.join(wrong)
                        + '\nUse the config and the data it was made with, or another --workdir.')


def _compare(where: epath.Path, manager: ocp.CheckpointManager, step: int, wanted: Mapping[str, Any],
             static: Mapping[str, Any], *, cast: bool) -> None:
    """Raises a UserError that names every difference between the trees wanted and the checkpoint; reads no array."""
    metadata = manager.item_metadata(step)
    differ, missing, extra = [], [], []
    for item, tree in wanted.items():
        if metadata.get(item) is None:
            raise UserError(f'checkpoint {where} has no part "{item}".')
        have = {_name(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(metadata[item].tree)[0]}
        want = {_name(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}
        missing += [f'{item}/{name} {_text(leaf)}' for name, leaf in want.items() if name not in have]
        extra += [f'{item}/{name} {_text(leaf)}' for name, leaf in have.items() if name not in want]
        differ += [f'{item}/{name}: expected {_text(leaf)}, found {_text(have[name])}' for name, leaf in want.items()
                   if name in have and not _fits(leaf, have[name], cast)]
    expected = json.loads(json.dumps(static_fields(wanted)))
    found = {path: fields for path, fields in static.items() if path.split('/')[0] in wanted}
    for path in sorted(expected.keys() & found.keys()):
        differ += [f'{path}.{name}: expected {expected[path].get(name)!r}, found {found[path].get(name)!r}'
                   for name in sorted(expected[path].keys() | found[path].keys())
                   if expected[path].get(name) != found[path].get(name)]
    # A node of one side only shows in its leaves, unless both sides have leaves of those names.
    differ += [f'{path}: expected {expected.get(path, {}).get("kind", "a plain array or container")}, '
               f'found {found.get(path, {}).get("kind", "a plain array or container")}'
               for path in sorted(expected.keys() ^ found.keys())]
    if differ or missing or extra:
        lines = (_section('of another shape or kind', differ) + _section('missing in the checkpoint', missing)
                 + _section('only in the checkpoint', extra))
        raise UserError(f'checkpoint {where} is of another model:\n' + '\n'.join(lines)
                        + '\nUse the config it was made with (config.json of its workdir), or another --workdir.')


def _section(title: str, entries: list[str]) -> list[str]:
    if not entries:
        return []
    more = [f'    ... and {len(entries) - LISTED} more'] if len(entries) > LISTED else []
    return [f'  {title}:'] + [f'    {entry}' for entry in entries[:LISTED]] + more


def _stored(leaf: Any) -> tuple[tuple[int, ...], Any]:
    """The shape and dtype under which a leaf is stored: a typed key as its data, a Python number as a scalar."""
    if hasattr(leaf, 'dtype') and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return tuple(getattr(leaf, 'shape', ())), getattr(leaf, 'dtype', None)


def _fits(want: Any, have: Any, cast: bool) -> bool:
    (want_shape, want_dtype), (have_shape, have_dtype) = _stored(want), _stored(have)
    if want_shape != have_shape:
        return False
    if want_dtype is None or want_dtype == have_dtype:
        return True
    return cast and jnp.issubdtype(want_dtype, jnp.floating) and jnp.issubdtype(have_dtype, jnp.floating)


def _text(leaf: Any) -> str:
    shape, dtype = _stored(leaf)
    return f'{dtype or "number"}[{",".join(map(str, shape))}]'
