"""What a run has written down, held against what its checkpoints know of it: nothing goes missing
unnoticed.

A checkpoint knows how many records its stage had written. What cannot be given back is said on
standard error and in a record of `metrics.jsonl`: `records_lost` records stood where this one
stands, `records_extra` are too many, `completions_lost` tables are gone. A record with
`steps_before` says that the length of a stage was changed there.
"""

import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from reasonjax import files
from reasonjax.errors import UserError
from reasonjax.files import put_aside

LOST = 'records_lost'
EXTRA = 'records_extra'
TABLES_LOST = 'completions_lost'
STEPS_BEFORE = 'steps_before'


class Line(NamedTuple):
    """A record, and the line that it is written in."""

    text: str
    record: dict[str, Any]


def weight(record: Mapping[str, Any]) -> int:
    """Returns how many of the records that a stage wrote a record stands for, usually 1."""
    if LOST in record or EXTRA in record:
        return record.get(LOST, 0) - record.get(EXTRA, 0)
    return 0 if TABLES_LOST in record or STEPS_BEFORE in record else 1


def split(path: pathlib.Path) -> tuple[list[Line], list[tuple[int, str]]]:
    """Reads a `metrics.jsonl`.

    Returns:
      Its records in order, and its damaged lines with their numbers. What a kill has cut off at the
      end is neither.
    """
    lines, damaged = [], []
    for number, line in enumerate(files.read_bytes(path).split(b'\n')[:-1], 1):
        text = line.decode('utf-8', 'backslashreplace')
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if _is_record(record):
            lines.append(Line(text, record))
        else:
            damaged.append((number, text))
    return lines, damaged


def _is_record(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get('stage'), str)
        and all(type(value.get(key, 0)) is int for key in ('step', LOST, EXTRA, TABLES_LOST))
        and 'step' in value
    )


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the records of a `metrics.jsonl`, in order; skips a last line that a kill cut off.

    Raises:
      UserError: no such file, or a damaged line.
    """
    lines, damaged = split(path)
    if damaged:
        more = f', and {len(damaged) - 1} more' if len(damaged) > 1 else ''
        raise UserError(
            f'{path}:{damaged[0][0]}: is damaged, no record of a run{more}; a run that resumes '
            'puts such lines aside.'
        )
    return [line.record for line in lines]


def mend(path: pathlib.Path) -> list[Line]:
    """Reads a `metrics.jsonl`, if there is one, before it is appended to. Moves damaged lines to a
    file beside it, and says so.

    Raises:
      UserError: it is no file.
    """
    if not os.path.lexists(path):
        return []
    if not path.is_file():
        what = (
            'a link to what is not there'
            if path.is_symlink()
            else 'a folder'
            if path.is_dir()
            else 'a pipe or a device'
        )
        raise UserError(f'{path}: is {what}, so no record can be written there; move it away.')
    lines, damaged = split(path)
    if damaged:
        beside = path.with_name(f'{path.name}.damaged')
        with beside.open('a', encoding='utf-8', errors='backslashreplace') as file:
            file.writelines(f'{text}\n' for _, text in damaged)
        numbers = ', '.join(str(number) for number, _ in damaged[:5]) + (
            ', ...' if len(damaged) > 5 else ''
        )
        print(
            f'warning: {path}: damaged lines ({numbers}) were moved to {beside.name}.',
            file=sys.stderr,
        )
    if damaged or files.read_bytes(path)[-1:] not in (b'', b'\n'):
        # without what a kill has cut off, either: the next record would be written behind it
        write(path, lines)
    return lines


def write(path: pathlib.Path, lines: Sequence[Line]) -> None:
    """Replaces the content of a `metrics.jsonl` by these records."""
    files.write_text(path, ''.join(f'{line.text}\n' for line in lines))


def environments(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the environments of a run from its `environment.json`, the latest first. A damaged file
    is renamed, with a warning."""
    if not path.is_file():
        return []
    try:
        latest = files.json_object(path)
        earlier = latest.pop('earlier', [])
        if not (isinstance(earlier, list) and all(isinstance(one, dict) for one in earlier)):
            raise UserError(f'{path}: "earlier" is not a list of environments.')
    except UserError as error:
        print(f'warning: {error} Renamed to {put_aside(path).name}.', file=sys.stderr)
        return []
    return [latest, *earlier]


def missing(
    lines: Sequence[Line], tables: int, stage: str, step: int, known: Mapping[str, int]
) -> dict[str, int]:
    """Returns what is lost or extra in a stage's records, by its checkpoint; {} if nothing is.

    Args:
      lines: those of the stage, up to the step.
      tables: of completions that are there.
      stage: its name.
      step: of the checkpoint. An evaluation of it may be written down after the checkpoint.
      known: `records` and `completions` as the checkpoint has them.
    """
    number = sum(weight(line.record) for line in lines)
    after = sum(
        line.record['step'] == step and any(key.startswith('eval_') for key in line.record)
        for line in lines
    )
    tables += sum(line.record.get(TABLES_LOST, 0) for line in lines)
    wrong = {
        LOST: known.get('records', number) - number,
        EXTRA: number - after - known.get('records', number),
        TABLES_LOST: known.get('completions', tables) - tables,
    }
    return {name: number for name, number in wrong.items() if number > 0}


def complain(path: pathlib.Path, stage: str, step: int, wrong: Mapping[str, int]) -> None:
    """Prints what `missing` returned to standard error."""
    of = f'of stage {stage} up to step {step}'
    texts = {
        LOST: f'{wrong.get(LOST)} records {of} are gone (the file was shortened, deleted or '
        'damaged)',
        EXTRA: f'there are {wrong.get(EXTRA)} records {of} more than it wrote',
        TABLES_LOST: f'{wrong.get(TABLES_LOST)} tables of completions {of} are gone',
    }
    for name in wrong:
        print(
            f'warning: {path}: {texts[name]}; the run continues, and a record there says so ({name}).',
            file=sys.stderr,
        )


def scalar(value: Any) -> Any:
    """Converts a number of any library to Python's; booleans become 0 or 1, text and None stay."""
    if value is None or isinstance(value, str):
        return value
    if hasattr(value, 'item'):
        value = value.item()
    return int(value) if isinstance(value, bool) else value
