"""Sources: random access to rows of columns, with the place each row came from.

A source is anything with `__len__`, `__getitem__(i) -> dict`, `where(i) -> str` (as errors print
it, `train.jsonl:17`) and `fingerprint() -> str` (the same for the same content, wherever the files
lie). The functions of this module are chosen by name in a config: `dict(name='jsonl',
path='train.jsonl')`.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reasonjax import files
from reasonjax.bounds import AtLeast
from reasonjax.data import source_files
from reasonjax.errors import UserError, listing, nearest, one_line

# What a value may raise as it is turned into Python's: bytes that are no text, a date beyond the
# year 9999, a time zone that nobody knows.
_UNREADABLE = (ValueError, OverflowError, KeyError)


@dataclass(frozen=True, repr=False)
class Source:
    """Rows held by a sequence, and where they came from.

    Attributes:
        name: what `repr` shows; free of memory addresses, so that two runs print the same.
        rows: random access to the rows, each a mapping from column to value.
        digest: hash of the content.
        places: one string per row, or None for `name:row`, counted from 1.
        convert: applied to a row when it is read.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    digest: str
    places: Sequence[str] | None = None
    convert: Callable[[Mapping[str, Any]], dict[str, Any]] = dict

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.convert(self.rows[i])

    def __repr__(self) -> str:
        return f'Source({self.name}, rows={len(self)}, fingerprint={self.digest[:12]})'

    def where(self, i: int) -> str:
        """Returns the place of row `i` as errors name it."""
        return self.places[i] if self.places is not None else f'{self.name}:{i + 1}'

    def fingerprint(self) -> str:
        """Returns a hash that changes when the rows do, and not when the files move."""
        return self.digest


def jsonl(*, path: str, limit: AtLeast(1) | None = None) -> Source:
    """Reads JSON lines: one object per line; blank lines are skipped.

    A file whose name ends in .json may also hold one list of objects. Files that gzip has packed
    are read as they are.

    Args:
        path: a file, a folder or a glob pattern; of a folder its *.jsonl files in sorted order,
            where it has none its .jsonl.gz, .ndjson or .json files. What the names of folders below
            it state ('lang=en') becomes a column.
        limit: keep the first `limit` rows only; None keeps all.

    Raises:
        UserError: nothing to read, or lines that are not JSON objects (the first is named, valid
          rows are counted).
    """
    rows, places, digest = [], [], hashlib.sha256()
    for file, columns in source_files.find(path, 'jsonl'):
        content = source_files.content(file)
        _digest(digest, content, columns)
        before, broken = len(rows), []
        for number, value in _values(content, file):
            try:
                row = value() if callable(value) else value
                if not isinstance(row, dict):
                    raise UserError(
                        f'{file}:{number}: expected a JSON object of columns, found '
                        f'{type(row).__name__}'
                    )
            except UserError as error:
                broken.append(str(error).rstrip('.'))
                continue
            rows.append(_with(columns, row, f'{file}:{number}'))
            places.append(f'{file}:{number}')
        if broken:
            raise UserError(
                f'{broken[0]}; {_count(len(broken), "bad line")}, '
                f'{_count(len(rows) - before, "valid row")} in this file'
                f'{source_files.advice(file, "jsonl", content[:64])}'
            )
    return _limited(f'jsonl:{path}', rows, places, digest, limit)


def _values(content: bytes, file: pathlib.Path) -> Iterator[tuple[int, Any]]:
    """Yields the values of a file with their numbers. The values are the entries of a list, else
    for each line a function that parses it."""
    content = content.removeprefix(b'\xef\xbb\xbf')
    if '.json' in (suffix.lower() for suffix in file.suffixes) and content.lstrip()[:1] == b'[':
        listed = files.parse_json(files.decode(content, str(file)), str(file), distinct=True)
        yield from enumerate(listed, start=1)
        return
    for number, line in enumerate(content.split(b'\n'), start=1):
        if line.strip():
            yield number, lambda line=line, where=f'{file}:{number}': _parsed(line, where)


def _parsed(line: bytes, where: str) -> Any:
    try:
        text = line.decode('utf-8')
    except UnicodeDecodeError as error:
        raise UserError(f'{where}: not UTF-8 ({error.reason} at byte {error.start + 1})') from error
    return files.parse_json(text, where, distinct=True)


def _digest(digest: Any, content: bytes, columns: Mapping[str, Any]) -> None:
    digest.update(hashlib.sha256(content).digest())
    if columns:
        digest.update(json.dumps(columns, sort_keys=True).encode())


def _with(columns: Mapping[str, Any], row: dict[str, Any], where: str) -> dict[str, Any]:
    """Adds the columns that the names of folders state; a row may have them itself, if they
    agree."""
    for name, value in columns.items():
        if name in row and str(row[name]) != str(value):
            raise UserError(
                f'{where}: column "{name}" is {one_line(repr(row[name]), 80)}, but its folder is '
                f'called {name}={value}'
            )
    if columns:
        return {**row, **{name: value for name, value in columns.items() if name not in row}}
    return row


def parquet(*, path: str, limit: AtLeast(1) | None = None) -> Source:
    """Reads Parquet files into memory.

    Within columns, keys without a value are left out: a table gives every message every key that
    any message has.

    Args:
        path: a file, a folder (its *.parquet files in sorted order) or a glob pattern. What the
            names of folders below it state ('lang=en/part-0.parquet') becomes a column.
        limit: keep the first `limit` rows only; None keeps all.

    Raises:
        UserError: nothing to read, or a file that is not Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, places, digest = [], [], hashlib.sha256()
    for file, columns in source_files.find(path, 'parquet'):
        content = source_files.content(file)
        _digest(digest, content, columns)
        try:
            number = pq.read_metadata(pa.BufferReader(content)).num_rows
            if number > 2**20 + 100 * len(content):
                raise UserError(
                    f'{file}: has {len(content):,} bytes and {number:,} rows; nothing of this size '
                    'is read'
                )
            table = pq.read_table(pa.BufferReader(content))
        except UserError:
            raise
        except (pa.ArrowException, OSError, MemoryError, ValueError) as error:
            raise UserError(
                f'{file}: not a readable Parquet file ({one_line(str(error))}); '
                f'{_count(len(rows), "valid row")} in the files before '
                f'it{source_files.advice(file, "parquet", content[:64])}'
            ) from error
        start = len(rows)
        rows.extend(_rows(table, file))
        places.extend(f'{file}:{i + 1}' for i in range(table.num_rows))
        if columns:
            rows[start:] = [
                _with(columns, row, where)
                for row, where in zip(rows[start:], places[start:], strict=True)
            ]
    return _limited(f'parquet:{path}', rows, places, digest, limit, _without_gaps)


def tfds(*, dataset: str, split: str = 'train', data_dir: str | None = None) -> Source:
    """Opens a TensorFlow Datasets data set for random access, without TensorFlow; text columns
    become `str`.

    Args:
        dataset: as in the catalogue: `gsm8k`, `math_qa:1.0.0`, `my_data/config`.
        split: a split or a slice of one: `train`, `train[:10%]`, `test[100:200]`.
        data_dir: the folder that holds prepared data sets; None is the library's default.

    Raises:
        UserError: unknown data set or split, or data prepared in a format without random access.
    """
    import tensorflow_datasets

    try:
        builder = tensorflow_datasets.builder(
            dataset, data_dir=data_dir, file_format='array_record'
        )
    except tensorflow_datasets.core.registered.DatasetNotFoundError as error:
        raise UserError(
            f'source.dataset: no TFDS data set {dataset!r} (data_dir={data_dir!r}). {error}'
        ) from error
    except (ValueError, NotImplementedError) as error:
        raise UserError(
            f'source.dataset: TFDS data set {dataset!r} cannot be opened with random access: '
            f'{error}'
        ) from error
    builder.download_and_prepare()
    try:
        rows = builder.as_data_source(split=split)
    except (ValueError, KeyError) as error:
        choices = list(builder.info.splits)
        hint = nearest(split, choices)
        raise UserError(
            f'source.split: {dataset} has no split {split!r}; splits: {listing(choices)}.{hint}'
        ) from error
    except NotImplementedError as error:
        raise UserError(
            f'source.dataset: TFDS data set {dataset!r} was not prepared as array_record: {error}'
        ) from error
    if not len(rows):
        raise UserError(f'source.split: split {split!r} of TFDS data set {dataset} has no rows')
    info = builder.info
    shards = {
        key: [value.num_bytes, list(value.shard_lengths)] for key, value in info.splits.items()
    }
    digest = hashlib.sha256(json.dumps([info.full_name, split, shards], sort_keys=True).encode())
    return Source(f'tfds:{info.full_name}[{split}]', rows, digest.hexdigest(), convert=_plain)


def memory(*, rows: Sequence[Mapping[str, Any]], label: str = 'memory') -> Source:
    """Wraps rows that are already in memory (tests, notebooks, generated problems).

    Args:
        rows: mappings from column to JSON-serialisable value.
        label: what errors call the source.

    Raises:
        UserError: no rows, or a row that is not a mapping.
    """
    if not len(rows):
        raise UserError(f'{label}: no rows')
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise UserError(
                f'{label}:{i + 1}: expected a mapping from column to value, found '
                f'{type(row).__name__}'
            )
    digest = hashlib.sha256()
    for i, row in enumerate(rows):
        try:
            digest.update(json.dumps(dict(row), sort_keys=True).encode())
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(
                f'{label}:{i + 1}: holds what JSON cannot ({one_line(str(error))})'
            ) from error
    return Source(label, rows, digest.hexdigest())


def _limited(
    name: str,
    rows: list,
    places: list[str],
    digest: Any,
    limit: int | None,
    convert: Callable[[Mapping], dict] = dict,
) -> Source:
    if not rows:
        raise UserError(f'{name.partition(":")[2]}: no rows (0 valid rows counted)')
    if limit is not None:
        if limit < 1:
            raise UserError(
                f'source.limit: expected a positive number of rows or None, got {limit}'
            )
        digest.update(f'limit={limit}'.encode())
        rows, places = rows[:limit], places[:limit]
    return Source(name, rows, digest.hexdigest(), places, convert)


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}{"" if number == 1 else "s"}'


def _rows(table: Any, file: pathlib.Path) -> list[dict[str, Any]]:
    try:
        return table.to_pylist()
    except _UNREADABLE:
        for i in range(table.num_rows):
            try:
                table.slice(i, 1).to_pylist()
            except UnicodeDecodeError as error:
                raise UserError(
                    f'{file}:{i + 1}: holds text that is not UTF-8 ({error.reason}, byte '
                    f'{error.start + 1})'
                ) from error
            except _UNREADABLE as error:
                raise UserError(
                    f'{file}:{i + 1}: holds a value that Python cannot ({one_line(str(error))})'
                ) from error
        raise


def _without_gaps(row: Mapping[str, Any]) -> dict[str, Any]:
    """Drops the null keys that a table gives to nested values; a column itself may be null."""

    def filled(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: filled(item) for key, item in value.items() if item is not None}
        return [filled(item) for item in value] if isinstance(value, list) else value

    return {name: filled(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    """Turns what TFDS decodes (bytes, NumPy scalars) into what JSON rows hold."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        try:
            return value.decode('utf-8')
        except UnicodeDecodeError as error:
            raise UserError(
                f'holds text that is not UTF-8 ({error.reason}, byte {error.start + 1})'
            ) from error
    if hasattr(value, 'dtype'):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
