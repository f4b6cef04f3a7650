"""Checkpoints of everything a stage needs to resume bit for bit: parameters, training state, data
position, method state, counters.

Layout of a folder: `STEP/params`, `STEP/train`, `STEP/memory` (arrays, written by Orbax),
`STEP/meta` (JSON) and `STEP/checksums.json`. A step is written under a temporary name and renamed
when all of it is there, so a kill at any moment leaves the earlier steps usable. Random keys are
not in it because there is nothing to save: they are counted from (seed, stage, step). A rollout
that waits to be trained on (`pipelined`, `dynamic_sampling`) is part of `memory`.

Restoring is always into an abstract tree. The bytes are compared with their checksums first, then
everything is compared by name before an array is read: shapes, dtypes and the static fields of
weight nodes (which Orbax neither saves nor checks). Arrays go where the abstract tree says,
whatever mesh they were saved from.

Several processes call everything here together, on a file system that they share; the first one
renames, deletes and writes JSON.
"""

import contextlib
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import orbax.checkpoint as ocp

from reasonjax.errors import UserError
from reasonjax.files import put_aside
from reasonjax.parallel import processes
from reasonjax.training import checkpoint_files as files
from reasonjax.training.checkpoint_manager import open_manager, read_arrays
from reasonjax.training.checkpoint_trees import (
    abstract,
    check_meta,
    compare,
    join_arrays,
    split_arrays,
    static_fields,
)


class Remembers(Protocol):
    """What keeps state between steps: a position in the data, what a method remembers.

    The state is equal on every process (a position is a global index, not a host's share). That of
    the data is JSON; a method's also holds arrays, anywhere within dicts and lists, which come back
    as NumPy arrays, bit for bit; tuples come back as lists.
    """

    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> None: ...


class Restored(NamedTuple):
    """What `Checkpoints.restore` returns; a part that was not asked for is None."""

    params: Any
    train: Any
    meta: dict[str, Any]
    step: int


class Checkpoints:
    """The checkpoints of one stage, for the program that writes them.

    Args:
        folder: where they live; made if it does not exist. What a killed run left half-written or
            half-deleted is removed, and what is damaged otherwise is renamed,
            so a program that only reads uses `load_params`.
        keep: how many of the newest to keep, besides those that `retain` names; None keeps all.
    """

    def __init__(self, folder: str | os.PathLike, keep: int | None = 2):
        self._folder = _absolute(folder)
        self._keep = keep
        self._retained: frozenset[int] = frozenset()
        self._sound: set[int] = set()  # steps whose bytes have been read and compared
        self._under_way = 0
        processes.on_main(self._tidy)
        self._manager = open_manager(self._folder, self.kept, self.seal, cleanup=True)

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, in order; waits for a save under way."""
        self.wait()
        return processes.on_main(lambda: files.steps(self._folder))

    def latest(self, upto: int | None = None) -> int | None:
        """Returns the newest step that is not damaged, or None where there is no checkpoint.

        A damaged checkpoint is named on standard error and renamed.

        Args:
            upto: pass over newer ones.

        Raises:
            UserError: all checkpoints are damaged.
        """
        for step in reversed([step for step in self.steps() if upto is None or step <= upto]):
            wrong = self._damage(step)
            if not wrong:
                return step
            processes.on_main(lambda: self._put_aside(step, wrong))  # noqa: B023, called at once
            self._manager.reload()
        if upto is None and (names := processes.on_main(lambda: files.aside(self._folder))):
            raise UserError(
                f'every checkpoint in {self._folder} is damaged ({", ".join(names)}), and a stage '
                'never restarts silently. Put a copy back under the name of its step, or delete '
                'the folder to have the stage start from its beginning.'
            )
        return None

    def retain(self, steps: Iterable[int]) -> None:
        """Sets which steps are kept however old they get; replaces those set before."""
        self._retained = frozenset(steps)

    def kept(self, steps: list[int]) -> set[int]:
        """Returns which of `steps` are kept: the newest, and those that `retain` names."""
        return set(steps if self._keep is None else sorted(steps)[-self._keep :]) | self._retained

    def save(
        self,
        step: int,
        *,
        params: Any,
        train: Any = None,
        data: Remembers | None = None,
        memory: Remembers | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> bool:
        """Starts writing a checkpoint and returns when the arrays are copied; they may be donated
        afterwards.

        Args:
            step: its name, 0 or more.
            params: a pytree of arrays; nodes may be registered dataclasses, None marks holes.
            train: any pytree of arrays and numbers: optimiser state, counters, typed PRNG keys.
            data: the data iterator; its position now is saved.
            memory: what the method remembers; its state now is saved.
            meta: JSON: the model config, the fingerprint of the data, counters.

        Returns:
            False where the step is there already: a resumed run is bit-exact, so it is left as it
              is.

        Raises:
            UserError: this or the save before could not be written, on a full disk say; earlier
              checkpoints are as they were.
        """
        if step in self._manager.all_steps():
            return False
        record = {
            'meta': dict(meta or {}),
            'static': static_fields({'params': params, 'train': train}),
            'retained': sorted(self._retained),
        }
        items = {'params': ocp.args.StandardSave(params)}
        if train is not None:
            items['train'] = ocp.args.StandardSave(train)
        if data is not None:
            record['data'] = data.get_state()
        if memory is not None:
            record['memory'], arrays = split_arrays(memory.get_state())
            if arrays:
                items['memory'] = ocp.args.StandardSave(arrays)
        # A copy, because the writer runs in the background and the caller's counters move on.
        items['meta'] = ocp.args.JsonSave(json.loads(json.dumps(record)))
        self.wait()
        self._under_way = step
        with self._writing():
            # Forced, because Orbax otherwise silently skips a step before the newest one.
            return self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def restore(
        self,
        step: int | None = None,
        *,
        params: Any = None,
        train: Any = None,
        data: Remembers | None = None,
        memory: Remembers | None = None,
        expect: Mapping[str, Any] | None = None,
    ) -> Restored:
        """Reads a checkpoint, bit for bit, after comparing everything that can be compared.

        Args:
            step: which; None is the newest that is not damaged.
            params: the tree expected, of `jax.ShapeDtypeStruct` with shardings or of arrays; None
              leaves it out.
            train: the same for the training state.
            data: a fresh iterator, which is set to the saved position.
            memory: what the method remembers, which is set to the saved state.
            expect: entries that `meta` must hold with these values, such as the fingerprint of the
              data.

        Raises:
            UserError: there is no such step, or it is damaged; a leaf is missing, left over or of
                another shape or dtype; a static field or an entry of `expect` differs; there is no
                data position, or no state of the method.
        """
        if step is None:
            step = self.latest()
        step = files.choose_step(self._folder, self.steps(), step)
        where = self._folder / str(step)
        files.refuse(where, self._damage(step))
        record = processes.on_main(lambda: files.read_record(where))
        check_meta(where, record['meta'], expect or {})
        wanted = {
            name: abstract(tree)
            for name, tree in (('params', params), ('train', train))
            if tree is not None
        }
        compare(where, self._manager.item_metadata(step), wanted, record['static'], cast=False)
        for name, wants in (('data', data), ('memory', memory)):
            if wants is not None and name not in record:
                what = {'data': 'data position', 'memory': 'state of the method'}[name]
                raise UserError(f'{where} holds no {what}, so a run cannot be resumed from it.')
        loaded = read_arrays(self._manager, step, wanted)
        if data is not None:
            with _position(where, 'data position'):
                data.set_state(record['data'])
        if memory is not None:
            there = (where / 'memory').is_dir()
            arrays = (
                self._manager.restore(
                    step, args=ocp.args.Composite(memory=ocp.args.StandardRestore())
                )['memory']
                if there
                else {}
            )
            with _position(where, 'state of the method'):
                memory.set_state(join_arrays(record['memory'], arrays))
        return Restored(loaded.get('params'), loaded.get('train'), record['meta'], step)

    def wait(self) -> None:
        """Waits until the save under way is complete; raises a UserError where it could not be
        written."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the writer's threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def seal(self) -> None:
        """Writes the checksums of the save under way. The writer calls this when all files are
        there, before it renames their folder."""
        files.write_sums(files.writing(self._folder, self._under_way))

    def _tidy(self) -> None:
        """Removes folders whose deletion was cut short, and renames others that lack something."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in files.strays(self._folder):
            print(
                f'warning: {path} is not a folder. Renamed to {put_aside(path, files.STRAY).name}.',
                file=sys.stderr,
            )
        complete, retained = [], set()
        for step in reversed(files.steps(self._folder)):
            wrong = files.damage(self._folder / str(step), read=False)
            if not wrong:
                retained = retained or set(files.read_record(self._folder / str(step))['retained'])
                complete.append(step)
            elif self._keep is not None and len(complete) >= self._keep and step not in retained:
                shutil.rmtree(self._folder / str(step))
            else:
                self._put_aside(step, wrong)

    def _put_aside(self, step: int, wrong: list[str]) -> None:
        where = self._folder / str(step)
        print(
            f'warning: {files.damaged(where, wrong)} Renamed to {put_aside(where).name}.',
            file=sys.stderr,
        )

    def _damage(self, step: int) -> list[str]:
        """Returns what is wrong with a checkpoint, as all processes find together. Each reads a
        part of the files."""
        if step in self._sound:
            return []
        wrong = files.damage_all(self._folder / str(step))
        if not wrong:
            self._sound.add(step)
        return wrong

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns what goes wrong in the writer into an error that says what is left."""
        try:
            yield
        except (OSError, ValueError) as error:  # tensorstore raises ValueError for everything
            if processes.is_main():
                files.sweep(self._folder)
            complete = ', '.join(map(str, files.steps(self._folder))) or 'none yet'
            raise UserError(
                f'cannot write checkpoint {self._folder / str(self._under_way)}: '
                f'{files.reason(error)}. Complete checkpoints there: {complete}. '
                'Free some space, or fix the cause, and give the same command again: it resumes '
                'from the newest.'
            ) from error


def load_params(
    folder: str | os.PathLike, params: Any, *, step: int | None = None
) -> tuple[Any, dict[str, Any], int]:
    """Reads only the parameters, for example of a run that is still training. Nothing in the folder
    is changed.

    Args:
        folder: the folder of a stage's checkpoints.
        params: the tree expected; floating leaves are cast to its dtypes.
        step: which; None is the newest that is not damaged. Damaged ones that are passed over are
          named on standard error.

    Returns:
        (params, meta, step).

    Raises:
        UserError: as `Checkpoints.restore`.
    """
    folder = _absolute(folder)
    if step is None:
        step = files.newest_step(folder)
    else:
        step = files.choose_step(folder, files.existing_steps(folder), step)
        files.refuse(folder / str(step), files.damage_all(folder / str(step)))
    where = folder / str(step)
    record = processes.on_main(lambda: files.read_record(where))
    with open_manager(folder, cleanup=False) as manager:
        wanted = {'params': abstract(params)}
        compare(where, manager.item_metadata(step), wanted, record['static'], cast=True)
        return read_arrays(manager, step, wanted)['params'], record['meta'], step


def read_meta(folder: str | os.PathLike) -> dict[str, Any]:
    """Reads the `meta` of the newest checkpoint that has a readable one; {} where there is none."""
    folder = _absolute(folder)

    def read() -> dict[str, Any]:
        for step in reversed(files.steps(folder) if folder.is_dir() else []):
            if not files.damage(folder / str(step), read=False):
                return files.read_record(folder / str(step))['meta']
        return {}

    return processes.on_main(read)


def _absolute(folder: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(folder).expanduser().resolve()


@contextlib.contextmanager
def _position(where: pathlib.Path, what: str) -> Iterator[None]:
    """Turns an error from a state of another form into a UserError that names the checkpoint."""
    try:
        yield
    except UserError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f'{where}: its {what} is damaged, or that of another version of reasonjax '
            f'({type(error).__name__}).'
        ) from error
