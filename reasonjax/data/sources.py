"""Sources: random access to rows of columns, with the place each row came from.

A source is anything with `__len__`, `__getitem__(i) -> dict`, `where(i) -> str` (as errors print it, `train.jsonl:17`)
and `fingerprint() -> str` (the same for the same content, wherever the files lie). The functions of this module are
chosen by name in a config: `dict(name='jsonl', path='train.jsonl')`.
"""

import glob
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reasonjax.bounds import AtLeast
from reasonjax.errors import UserError, listing, nearest


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

    Args:
        path: a file, a folder (its *.jsonl files in sorted order) or a glob pattern.
        limit: keep the first `limit` rows only; None keeps all.

    Raises:
        UserError: nothing to read, or lines that are not JSON objects (the first is named, valid rows are counted).
    """
    rows, places, digest = [], [], hashlib.sha256()
    for file in _files(path, 'jsonl'):
        content = _bytes(file)
        digest.update(hashlib.sha256(content).digest())
        valid, broken = 0, []
        for number, line in enumerate(content.removeprefix(b'\xef\xbb\xbf').split(b'\n'), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode('utf-8'))
            except UnicodeDecodeError as error:
                broken.append((number, f'not UTF-8 ({error.reason} at byte {error.start + 1})'))
                continue
            except json.JSONDecodeError as error:
                broken.append((number, f'not valid JSON ({error.msg} at column {error.colno})'))
                continue
            if not isinstance(row, dict):
                broken.append((number, f'expected a JSON object of columns, found {type(row).__name__}'))
                continue
            valid += 1
            rows.append(row)
            places.append(f'{file}:{number}')
        if broken:
            number, reason = broken[0]
            raise UserError(
                f'{file}:{number}: {reason}; {_count(len(broken), "bad line")}, '
                f'{_count(valid, "valid row")} in this file'
            )
    return _limited(f'jsonl:{path}', rows, places, digest, limit)


def parquet(*, path: str, limit: AtLeast(1) | None = None) -> Source:
    """Reads Parquet files into memory.

    Within columns, keys without a value are left out: a table gives every message every key that any message has.

    Args:
        path: a file, a folder (its *.parquet files in sorted order) or a glob pattern.
        limit: keep the first `limit` rows only; None keeps all.

    Raises:
        UserError: nothing to read, or a file that is not Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, places, digest = [], [], hashlib.sha256()
    for file in _files(path, 'parquet'):
        content = _bytes(file)
        digest.update(hashlib.sha256(content).digest())
        try:
            table = pq.read_table(pa.BufferReader(content))
        except pa.ArrowException as error:
            raise UserError(
                f'{file}: not a readable Parquet file ({error}); '
                f'{_count(len(rows), "valid row")} in the files before it'
            ) from error
        rows.extend(_rows(table, file))
        places.extend(f'{file}:{i + 1}' for i in range(table.num_rows))
    return _limited(f'parquet:{path}', rows, places, digest, limit, _without_gaps)


def tfds(*, dataset: str, split: str = 'train', data_dir: str | None = None) -> Source:
    """Opens a TensorFlow Datasets data set for random access, without TensorFlow; text columns become `str`.

    Args:
        dataset: as in the catalogue: `gsm8k`, `math_qa:1.0.0`, `my_data/config`.
        split: a split or a slice of one: `train`, `train[:10%]`, `test[100:200]`.
        data_dir: the folder that holds prepared data sets; None is the library's default.

    Raises:
        UserError: unknown data set or split, or data prepared in a format without random access.
    """
    import tensorflow_datasets

    try:
        builder = tensorflow_datasets.builder(dataset, data_dir=data_dir, file_format='array_record')
    except tensorflow_datasets.core.registered.DatasetNotFoundError as error:
        raise UserError(f'source.dataset: no TFDS data set {dataset!r} (data_dir={data_dir!r}). {error}') from error
    except (ValueError, NotImplementedError) as error:
        raise UserError(
            f'source.dataset: TFDS data set {dataset!r} cannot be opened with random access: {error}'
        ) from error
    builder.download_and_prepare()
    try:
        rows = builder.as_data_source(split=split)
    except (ValueError, KeyError) as error:
        choices = list(builder.info.splits)
        hint = nearest(split, choices)
        raise UserError(f'source.split: {dataset} has no split {split!r}; splits: {listing(choices)}.{hint}') from error
    except NotImplementedError as error:
        raise UserError(
            f'source.dataset: TFDS data set {dataset!r} was not prepared as array_record: {error}'
        ) from error
    if not len(rows):
        raise UserError(f'source.split: split {split!r} of TFDS data set {dataset} has no rows')
    info = builder.info
    shards = {key: [value.num_bytes, list(value.shard_lengths)] for key, value in info.splits.items()}
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
            raise UserError(f'{label}:{i + 1}: expected a mapping from column to value, found {type(row).__name__}')
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(dict(row), sort_keys=True).encode())
    return Source(label, rows, digest.hexdigest())


def _limited(
    name: str, rows: list, places: list[str], digest: Any, limit: int | None, convert: Callable[[Mapping], dict] = dict
) -> Source:
    if not rows:
        raise UserError(f'{name.partition(":")[2]}: no rows (0 valid rows counted)')
    if limit is not None:
        if limit < 1:
            raise UserError(f'source.limit: expected a positive number of rows or None, got {limit}')
        digest.update(f'limit={limit}'.encode())
        rows, places = rows[:limit], places[:limit]
    return Source(name, rows, digest.hexdigest(), places, convert)


def _files(path: str, suffix: str) -> list[pathlib.Path]:
    if not path:
        raise UserError(f'source.path is empty; give a .{suffix} file, a folder of them or a glob pattern')
    here = pathlib.Path(path).expanduser()
    if here.is_file():
        return [here]
    if here.is_dir():
        found = sorted(here.glob(f'*.{suffix}'))
        if not found:
            raise UserError(f'source.path: folder {path} holds no *.{suffix} files; it holds: {_holding(here)}')
        return found
    found = [pathlib.Path(match) for match in sorted(glob.glob(str(here))) if pathlib.Path(match).is_file()]
    if not found:
        siblings = [entry.name for entry in here.parent.iterdir()] if here.parent.is_dir() else []
        raise UserError(f'source.path: no file, folder or match for {path}.{nearest(here.name, siblings)}')
    return found


def _holding(folder: pathlib.Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ', '.join(names[:8]) + (', ...' if len(names) > 8 else '') if names else 'nothing'


def _bytes(file: pathlib.Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f'{file}: cannot be read ({error.strerror})') from error


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}{"" if number == 1 else "s"}'


def _rows(table: Any, file: pathlib.Path) -> list[dict[str, Any]]:
    try:
        return table.to_pylist()
    except UnicodeDecodeError:
        for i in range(table.num_rows):
            try:
                table.slice(i, 1).to_pylist()
            except UnicodeDecodeError as error:
                raise UserError(f'{file}:{i + 1}: holds text that is not UTF-8 ({error.reason}, byte {error.start + 1})') from error
        raise


def _without_gaps(row: Mapping[str, Any]) -> dict[str, Any]:
    """Takes the keys out of nested values that a table had to fill; a column itself may be null."""

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
            raise UserError(f'holds text that is not UTF-8 ({error.reason}, byte {error.start + 1})') from error
    if hasattr(value, 'dtype'):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
