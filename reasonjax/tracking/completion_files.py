"""The sampled completions of a step as a Parquet file: one row each, with rewards and whatever
columns the problems have.

Stages share a folder; a file holds the rows of every stage that has such a step.
"""

import json
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from reasonjax.errors import UserError, one_line
from reasonjax.files import open_whole, put_aside

TABLE = re.compile(r'completions_([0-9]{5,})\.parquet')


def write(
    folder: pathlib.Path, stage: str, step: int, rows: Sequence[Mapping[str, Any]]
) -> pathlib.Path:
    """Writes the completions of a step; see `metrics.Writer.completions`. Rows of another stage in
    the same file stay.

    Raises:
        UserError: the file is there and cannot be read.
    """
    import pyarrow as pa  # here, because a supervised run never needs it
    import pyarrow.parquet as pq

    names = list(dict.fromkeys(name for row in rows for name in row))
    middle = [
        name for name in names if name not in ('step', 'prompt', 'completion', 'advantage', 'stage')
    ]
    columns = {'step': pa.array([int(step)] * len(rows), pa.int64())}
    for name in ('prompt', 'completion', *middle, 'advantage'):
        if name in names:
            columns[_text(name)] = column([row.get(name) for row in rows])
    columns['stage'] = pa.array([stage] * len(rows), pa.string())
    table = pa.table(columns)
    path = folder / f'completions_{step:05d}.parquet'
    folder.mkdir(exist_ok=True)
    if path.is_file():
        try:
            others = [row for row in pq.read_table(path).to_pylist() if row['stage'] != stage]
        except (pa.ArrowException, OSError, KeyError) as error:
            raise UserError(
                f'{path}: not a readable Parquet file ({one_line(str(error))}); remove it.'
            ) from error
        table = _joined(others, table) if others else table
    with open_whole(path) as file:
        pq.write_table(table, file)
    return path


def read(folder: pathlib.Path, stage: str = '') -> list[dict[str, Any]]:
    """Reads the rows that stages have written, in the order of steps; all stages where none is
    named.

    Raises:
        UserError: a file that cannot be read.
    """
    import pyarrow as pa  # here, because a supervised run never needs it
    import pyarrow.parquet as pq

    rows = []
    paths = folder.iterdir() if folder.is_dir() else ()
    steps = {path: int(name[1]) for path in paths if (name := TABLE.fullmatch(path.name))}
    for path in sorted(steps, key=steps.get):
        try:
            table = pq.read_table(path).to_pylist()
            rows += [row for row in table if stage in ('', row['stage'])]
        except (pa.ArrowException, OSError, KeyError) as error:
            reason = one_line(str(error))
            raise UserError(f'{path}: not a readable Parquet file ({reason}).') from error
    return rows


def count_files(folder: pathlib.Path, stage: str, upto: int) -> int:
    """Counts the files that a stage has written up to a step, and takes out its rows from those of
    later steps.

    A file that cannot be read is renamed, and named on standard error.
    """
    if not folder.is_dir():
        return 0
    import pyarrow as pa  # here, because a supervised run never needs it
    import pyarrow.parquet as pq

    number = 0
    for path in sorted(folder.iterdir()):
        if not (name := TABLE.fullmatch(path.name)):
            continue
        try:
            stages = pq.read_table(path, columns=['stage']).column('stage').to_pylist()
        except (pa.ArrowException, OSError, KeyError) as error:
            reason = one_line(str(error))
            print(
                f'warning: {path} cannot be read ({reason}). Renamed to {put_aside(path).name}.',
                file=sys.stderr,
            )
            continue
        if stage in stages and int(name[1]) > upto:
            table = pq.read_table(path)
            kept = table.filter(pa.array([other != stage for other in stages]))
            if len(kept):
                with open_whole(path) as file:
                    pq.write_table(kept, file)
            else:
                path.unlink()
        number += stage in stages and int(name[1]) <= upto
    return number


def _joined(others: list[dict[str, Any]], table: Any) -> Any:
    """Concatenates the rows of another stage and an Arrow table. A column with numbers in one and
    text in the other becomes text."""
    import pyarrow as pa

    try:
        return pa.concat_tables([pa.Table.from_pylist(others), table], promote_options='permissive')
    except pa.ArrowException:
        rows = others + table.to_pylist()
        return pa.table(
            {
                name: column([row.get(name) for row in rows])
                for name in dict.fromkeys(name for row in rows for name in row)
            }
        )


def column(values: Sequence[Any]) -> Any:
    """Builds an Arrow column of truth values, numbers or text; other values become JSON text."""
    import pyarrow as pa

    plain = [
        value.item() if hasattr(value, 'item') and getattr(value, 'size', 1) == 1 else value
        for value in values
    ]
    if all(value is None or isinstance(value, bool) for value in plain):
        return pa.array(plain, pa.bool_())
    if all(
        value is None or (isinstance(value, int) and -(2**63) <= value < 2**63) for value in plain
    ):
        return pa.array([None if value is None else int(value) for value in plain], pa.int64())
    if all(
        value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
        for value in plain
    ):
        return pa.array([None if value is None else float(value) for value in plain], pa.float64())
    return pa.array([None if value is None else _text(value) for value in plain], pa.string())


def _text(value: Any) -> str:
    """Converts a value to text: text unchanged, anything else as JSON. Dates and the like are
    written as Python shows them; a lone surrogate, which no file can hold, is escaped."""
    if not isinstance(value, str):
        try:
            value = json.dumps(value, ensure_ascii=False, default=str)
        # keys that are no text, a list that holds itself
        except (TypeError, ValueError, RecursionError):
            value = repr(value)
    return value.encode(errors='backslashreplace').decode()
