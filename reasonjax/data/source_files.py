"""Files of a data set: which ones a path means, their bytes, and what is said where they are of
another kind."""

import glob
import gzip
import io
import os
import pathlib
import re
import urllib.parse
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from reasonjax.errors import UserError, one_line
from reasonjax.files import (
    POINTER,
    expanded,
    is_pointer,
    nearest_name,
    open_file,
    read_bytes,
    reason,
)

# Of a folder, the files with the first of these endings (in whatever case) that any has.
ENDINGS = {
    'jsonl': ('.jsonl', '.jsonl.gz', '.ndjson', '.ndjson.gz', '.json', '.json.gz'),
    'parquet': ('.parquet', '.pq'),
}
GZIP, PARQUET = b'\x1f\x8b', b'PAR1'
# a packed file is read up to so many bytes, and so many more for each of its own
UNPACKED = 2**30, 100
# of the datasets library, beside its data
METADATA = ('dataset_info.json', 'dataset_infos.json', 'dataset_dict.json', 'state.json')
NOTHING = '__HIVE_DEFAULT_PARTITION__'  # how a folder is called where the column has no value
TABLE = 'is a table of text; convert it: pandas.read_csv("{}"{}).to_json("rows.jsonl", orient="records", lines=True)'
ARCHIVES = ('.zip', '.zst', '.bz2', '.xz', '.7z', '.tar', '.tgz', '.tar.gz')
OTHERS = {
    '.csv': TABLE.format('FILE', ''),
    '.tsv': TABLE.format('FILE', ', sep="\\t"'),
    '.xlsx': 'is a spreadsheet; convert it: pandas.read_excel("FILE").to_json("rows.jsonl", '
    'orient="records", lines=True)',
    **dict.fromkeys(ARCHIVES, 'is an archive; unpack it first (gzip alone is read as it is)'),
    **dict.fromkeys(
        ('.arrow', '.feather'),
        'is an Arrow file; convert it: datasets.load_from_disk("FOLDER").to_parquet("FILE")',
    ),
}


class File(NamedTuple):
    """A file of a data set, and the columns that the names of its folders state ('lang=en')."""

    path: pathlib.Path
    columns: dict[str, Any]


def find(path: str, kind: str) -> list[File]:
    """Finds the files of a data set, in sorted order.

    Args:
        path: a file; a folder, of which hidden files and `METADATA` are left out, and whose files
            may lie in folders 'column=value'; or a glob pattern, in which ** stands for any
            folders.
        kind: of `ENDINGS`.

    Raises:
        UserError: nothing of this kind there, or a folder with rows in files of two kinds, or in
          its own and in its folders' files.
    """
    if not path:
        raise UserError(
            f'source.path is empty; give a .{kind} file, a folder of them or a glob pattern'
        )
    here = expanded(path)
    try:
        if here.is_file():
            return [File(here, {})]
        if here.is_dir():
            return _of_folder(here, path, kind)
        matches = [
            pathlib.Path(match)
            for match in sorted(glob.glob(str(here), recursive=True))
            if pathlib.Path(match).is_file()
        ]
    except OSError as error:  # a folder on the way that may not be read, a name that is too long
        raise UserError(
            f'source.path: {one_line(path)} cannot be read ({reason(error)})'
        ) from error
    if not matches:
        if os.path.lexists(here):
            open_file(here).close()  # says what is wrong with it
        raise UserError(
            f'source.path: no file, folder or match for {one_line(path)}.{nearest_name(here)}'
        )
    fixed = next(i for i, part in enumerate(here.parts) if glob.has_magic(part))
    return _with_columns(matches, fixed)


def _of_folder(folder: pathlib.Path, path: str, kind: str) -> list[File]:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith('.'))
    parts = [entry for entry in entries if _is_partition(entry)]
    within = sorted(file for part in parts for file in _within(part))
    for files in ([entry for entry in entries if entry not in parts], within):
        for ending in ENDINGS[kind]:
            if chosen := [
                file
                for file in files
                if file.name.lower().endswith(ending) and file.name not in METADATA
            ]:
                _check_all(path, chosen, [*files, *within], kind)
                return _with_columns(chosen, len(folder.parts))
    below = sorted(
        {
            file.parent
            for ending in ENDINGS[kind]
            for entry in entries
            for file in entry.glob(f'*{ending}')
        }
    )
    if below:
        raise UserError(
            f'source.path: folder {path} holds no *.{kind} files; {below[0]} does: give the folder '
            'that is meant'
        )
    holding = (
        ', '.join(entry.name for entry in entries[:8]) + (', ...' if len(entries) > 8 else '')
        if entries
        else 'nothing'
    )
    raise UserError(
        f'source.path: folder {path} holds no *.{kind} files; it holds: '
        f'{holding}{advice(entries[0], kind) if entries else ""}'
    )


def _check_all(
    path: str, chosen: Sequence[pathlib.Path], files: Sequence[pathlib.Path], kind: str
) -> None:
    """Raises UserError where a folder has rows in other files too. Files .json beside JSON lines
    are ignored, since they mostly hold settings."""
    endings = [
        ending
        for ending in ENDINGS[kind]
        if not ending.startswith('.json') or ending.startswith('.jsonl')
    ]
    for file in files:
        if file not in chosen and file.name.lower().endswith(tuple(endings)):
            names = f'{chosen[0].name} and {file.relative_to(chosen[0].parent) if file.is_relative_to(chosen[0].parent) else file.name}'
            raise UserError(
                f'source.path: folder {path} holds {names}, of which only one kind can be meant: '
                'give a glob pattern'
            )


def _is_partition(entry: pathlib.Path) -> bool:
    """Returns whether an entry of a folder is a partition: a folder 'column=value'."""
    return '=' in entry.name and entry.is_dir()


def _within(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists the files of a partition 'column=value', and those of the partitions within."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(('.', '_'))]
    return [
        file for entry in entries for file in (_within(entry) if _is_partition(entry) else [entry])
    ]


def _with_columns(files: Sequence[pathlib.Path], fixed: int) -> list[File]:
    """Adds the columns that folders after the first `fixed` parts of paths state. They are numbers
    where all values of a column are."""
    stated = [_stated(file, fixed) for file in files]
    texts: dict[str, list[str]] = {}
    for columns in stated:
        for name, value in columns.items():
            texts.setdefault(name, []).append(value)
    numeric = {
        name
        for name, values in texts.items()
        if all(re.fullmatch(r'0|-?[1-9]\d{0,17}', v) for v in values if v != NOTHING)
    }

    def value(name: str, text: str) -> Any:
        return (
            None
            if text == NOTHING
            else int(text)
            if name in numeric
            else urllib.parse.unquote(text)
        )

    return [
        File(
            file, {urllib.parse.unquote(name): value(name, text) for name, text in columns.items()}
        )
        for file, columns in zip(files, stated, strict=True)
    ]


def _stated(file: pathlib.Path, fixed: int) -> dict[str, str]:
    columns: dict[str, str] = {}
    for name, value in (part.split('=', 1) for part in file.parts[fixed:-1] if '=' in part):
        if columns.setdefault(name, value) != value:
            raise UserError(
                f'{file}: its folders state two values of column "{name}": {columns[name]} and '
                f'{value}'
            )
    return columns


def content(file: pathlib.Path) -> bytes:
    """Reads a file, and unpacks it if it is packed by gzip.

    Raises:
        UserError: it cannot be read, is damaged, or would be far larger than any data of its size.
    """
    packed = read_bytes(file)
    if not packed.startswith(GZIP) and file.suffix.lower() != '.gz':
        return packed
    pieces, size, most = [], 0, UNPACKED[0] + UNPACKED[1] * len(packed)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as opened:
            while piece := opened.read(2**24):
                pieces.append(piece)
                size += len(piece)
                if size > most:
                    raise UserError(
                        f'{file}: {len(packed):,} bytes unpack to more than {most:,}; unpack it '
                        'yourself if that is meant'
                    )
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f'{file}: damaged gzip file ({one_line(str(error))}); copy or pack it again'
        ) from error
    return b''.join(pieces)


def advice(file: pathlib.Path, kind: str, start: bytes = b'') -> str:
    """Says what to do with a file that does not hold what its source reads; '' where its name and
    its first bytes tell nothing."""
    name = file.name.lower()
    if is_pointer(start):
        return f'; {file.name} {POINTER}'
    other = next((text for ending, text in OTHERS.items() if name.endswith(ending)), '')
    if kind == 'jsonl' and (start.startswith(PARQUET) or name.endswith(ENDINGS['parquet'])):
        other = 'is a Parquet file: source.name=parquet reads it'
    elif kind == 'parquet' and (
        name.endswith(ENDINGS['jsonl']) or start.lstrip()[:1] in (b'{', b'[')
    ):
        other = 'holds JSON: source.name=jsonl reads it'
    elif kind == 'jsonl' and '.json' in pathlib.Path(name).suffixes:
        other = 'must hold a list of objects, or an object a line'
    return f'; {file.name} {other}' if other else ''
