"""A cell of a comparison: one recipe on one task with one seed, as a JSON file."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from reasonjax import files
from reasonjax.errors import UserError, listing, nearest

INDEX = 'cells.json'
STATUSES = ('done', 'failed')
MODES = ('greedy', 'sampled')
COSTS = ('generated_tokens', 'trained_tokens', 'flops', 'seconds', 'peak_bytes')
CURVE = ('step', 'trained_tokens', 'generated_tokens', 'flops', 'seconds', 'accuracy', 'length')


@dataclasses.dataclass(frozen=True)
class Cell:
    """What one recipe reached on one task with one seed.

    Attributes:
      recipe, task, seed: which cell it is.
      status: 'done' or 'failed'.
      error: why it failed; '' when done.
      correct: split -> {'greedy': 0 or 1 for each problem, 'sampled': share of right samples for
        each problem}. Splits are 'test', 'ood' and evaluations on other tasks, 'other:<task>'. The
        problems of a (task, split) are the same for all recipes and seeds, in the same order. A
        mode that was not measured is an empty list.
      before: the same, for the checkpoint that training started from.
      length: split -> mean response length in tokens.
      curve: evaluations on the split 'validation' along training, in order: step, then what
        training had cost so far, then accuracy and mean length.
      cost: what training cost: tokens, floating-point operations, seconds, bytes at the peak. None
        is what was not measured.
    """

    recipe: str
    task: str
    seed: int
    status: str
    error: str = ''
    correct: dict[str, dict[str, list[float]]] = dataclasses.field(default_factory=dict)
    before: dict[str, dict[str, list[float]]] = dataclasses.field(default_factory=dict)
    length: dict[str, float | None] = dataclasses.field(default_factory=dict)
    curve: list[dict[str, float | None]] = dataclasses.field(default_factory=list)
    cost: dict[str, float | None] = dataclasses.field(default_factory=dict)

    @property
    def done(self) -> bool:
        return self.status == 'done'


def write(file: str | os.PathLike, cell: Cell) -> pathlib.Path:
    """Writes a cell in one piece, its folder as well; a reader never sees half of it.

    Raises:
      UserError: the cell is not what `read` accepts.
    """
    file = pathlib.Path(file)
    content = dataclasses.asdict(cell)
    _check(file, content)
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(file, json.dumps(content, allow_nan=False, ensure_ascii=False) + '\n')
    return file


def read(file: str | os.PathLike) -> Cell:
    """Reads a cell.

    Raises:
      UserError: not a JSON object, or a field is missing, unknown or not what it should be; the
        message names file and field.
    """
    file = pathlib.Path(file)
    content = files.json_object(file)
    _check(file, content)
    return Cell(**content)


def write_index(workdir: pathlib.Path, cells: Sequence[pathlib.Path]) -> None:
    """Writes down which cells a comparison is of, by their files: its workdir may hold others, of
    other settings."""
    files.write_text(
        workdir / INDEX,
        json.dumps([os.path.relpath(file, workdir) for file in cells], indent=0) + '\n',
    )


def read_run(workdir: str | os.PathLike) -> list[Cell]:
    """Reads the cells of the latest comparison in a workdir.

    Raises:
      UserError: there is none, or a cell that cannot be read.
    """
    index = pathlib.Path(workdir) / INDEX
    if not index.is_file():
        raise UserError(f'{workdir} holds no comparison (no {INDEX}).')
    names = files.read_json(index)
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(f'{index}: expected a list of file names.')
    return [read(index.parent / name) for name in names]


def _check(file: pathlib.Path, content: Mapping[str, Any]) -> None:
    _keys(file, '', content, [field.name for field in dataclasses.fields(Cell)])
    for name in ('recipe', 'task', 'status', 'error'):
        _demand(isinstance(content[name], str), file, name, 'text', content[name])
    _demand(_is_whole(content['seed']), file, 'seed', 'a whole number', content['seed'])
    status = content['status']
    _demand(
        status in STATUSES,
        file,
        'status',
        f'one of {listing(STATUSES)}',
        status,
        nearest(status, STATUSES),
    )
    agrees = (status == 'done') == (not content['error'])
    _demand(
        agrees, file, 'error', 'text where the cell failed, "" where it is done', content['error']
    )
    for name in ('correct', 'before'):
        _check_outcomes(file, name, content[name])
    if status == 'done':
        _demand(
            bool(content['correct']),
            file,
            'correct',
            'at least one split in a cell that is done',
            content['correct'],
        )
        sizes = [
            {
                (split, mode): len(outcomes)
                for split, modes in content[name].items()
                for mode, outcomes in modes.items()
                if outcomes
            }
            for name in ('correct', 'before')
        ]
        odd = [key for key in sizes[1] if sizes[0].get(key) != sizes[1][key]]
        _demand(
            not odd,
            file,
            'before',
            'only problems of "correct", as many in each split',
            ' and '.join(map('/'.join, odd)),
        )
    _demand(isinstance(content['length'], dict), file, 'length', 'an object', content['length'])
    for split, value in content['length'].items():
        _demand(
            _is_amount(value), file, f'length.{split}', 'a number of at least 0, or null', value
        )
    _demand(isinstance(content['curve'], list), file, 'curve', 'a list', content['curve'])
    for index, point in enumerate(content['curve']):
        name = f'curve[{index}]'
        _demand(isinstance(point, dict), file, name, 'an object', point)
        _keys(file, name, point, CURVE)
        for key, value in point.items():
            _demand(
                _is_amount(value), file, f'{name}.{key}', 'a number of at least 0, or null', value
            )
    _demand(isinstance(content['cost'], dict), file, 'cost', 'an object', content['cost'])
    if content['cost'] or status == 'done':
        _keys(file, 'cost', content['cost'], COSTS)
    for name, value in content['cost'].items():
        _demand(_is_amount(value), file, f'cost.{name}', 'a number of at least 0, or null', value)


def _check_outcomes(file: pathlib.Path, name: str, splits: Any) -> None:
    _demand(isinstance(splits, dict), file, name, 'an object of splits', splits)
    for split, modes in splits.items():
        where = f'{name}.{split}'
        _demand(isinstance(modes, dict), file, where, f'an object of {listing(MODES)}', modes)
        _keys(file, where, modes, MODES)
        for mode, outcomes in modes.items():
            _demand(isinstance(outcomes, list), file, f'{where}.{mode}', 'a list', outcomes)
            for index, value in enumerate(outcomes):
                good = (
                    _is_amount(value)
                    and value is not None
                    and (value in (0, 1) if mode == 'greedy' else value <= 1)
                )
                _demand(
                    good,
                    file,
                    f'{where}.{mode}[{index}]',
                    '0 or 1' if mode == 'greedy' else 'a share from 0 to 1',
                    value,
                )
        lengths = {len(outcomes) for outcomes in modes.values() if outcomes}
        _demand(
            len(lengths) < 2,
            file,
            where,
            'the same problems in each mode',
            f'{listing(map(str, lengths))} of them',
        )


def _keys(file: pathlib.Path, name: str, entries: Mapping[str, Any], wanted: Any) -> None:
    prefix = f'{name}.' if name else ''
    for key in entries:
        if key not in wanted:
            raise UserError(
                f'{file}: "{prefix}{key}" is unknown. Expected '
                f'{listing(wanted)}.{nearest(key, wanted)}'
            )
    for key in wanted:
        if key not in entries:
            raise UserError(f'{file}: "{prefix}{key}" is missing.')


def _demand(
    good: bool, file: pathlib.Path, name: str, wanted: str, value: Any, hint: str = ''
) -> None:
    if not good:
        raise UserError(f'{file}: "{name}": expected {wanted}, found {_short(value)}.{hint}')


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return f'{text[:60]}…' if len(text) > 60 else text or '""'


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_amount(value: Any) -> bool:
    return (
        value is None
        or isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value >= 0
    )
