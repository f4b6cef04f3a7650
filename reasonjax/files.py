"""Files that a user hands in, or that another program may have changed: read with one line that
says what is wrong; written whole."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from reasonjax.errors import UserError, nearest, one_line

# A JSON escape of half a character (U+D800 to U+DFFF): such text cannot be encoded, so no tokenizer
# and no file takes it.
_HALF = re.compile(r'\\u[dD][89abABc-fC-F]')
_SURROGATE = re.compile('[\ud800-\udfff]')
DAMAGED = '.damaged'  # put behind the name of what is put aside
POINTER = 'is what Git LFS keeps in place of a file; get the file itself (git lfs pull)'


def reason(error: OSError) -> str:
    """Says why the system refused a file, in its own words ('Permission denied')."""
    return error.strerror or str(error)


def expanded(path: str | os.PathLike) -> pathlib.Path:
    """Returns a path with ~ replaced by the home of its user.

    Raises:
      UserError: there is no such user.
    """
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f'{path}: {error}') from error


def open_file(file: str | os.PathLike) -> BinaryIO:
    """Opens a file to read its bytes.

    Raises:
      UserError: it is not there (names the nearest), is a folder, a pipe or a device, or may not be
        read.
    """
    file = pathlib.Path(file)
    try:
        # A pipe that nobody writes to would never open.
        opened = open(file, 'rb', opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    except FileNotFoundError as error:
        link = ' (it is a link to what is not there)' if os.path.lexists(file) else ''
        raise UserError(
            f'{file}: no such file{link}.{"" if link else nearest_name(file)}'
        ) from error
    except OSError as error:
        raise UserError(f'{file}: cannot be read ({reason(error)}).') from error
    except ValueError as error:  # a null character in the name
        raise UserError(f'{str(file)!r}: is not a file name ({error}).') from error
    if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
        opened.close()
        raise UserError(f'{file}: cannot be read (a pipe or a device, not a file).')
    return opened


def is_pointer(start: bytes) -> bool:
    """Returns whether a file begins as a Git LFS pointer, as clones without LFS have it."""
    return start.startswith(b'version https://git-lfs')


def read_bytes(file: str | os.PathLike) -> bytes:
    """Reads a file.

    Raises:
      UserError: as `open_file`.
    """
    with open_file(file) as opened:
        try:
            return opened.read()
        except OSError as error:
            raise UserError(f'{file}: cannot be read ({reason(error)}).') from error


def copy_own(folder: pathlib.Path, file: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a file (or a folder) of a folder whose maker may be a stranger.

    Raises:
      UserError: it is a link that leads out of the folder, so that what it holds is not theirs to
        give. Links to the blobs of the Hub's cache are none: there, all files of a snapshot are
        links.
    """
    home = folder.resolve()
    places = [home, home.parents[1] / 'blobs'] if home.parent.name == 'snapshots' else [home]
    for one in [file, *file.rglob('*')] if file.is_dir() else [file]:
        if not any(one.resolve().is_relative_to(place) for place in places):
            raise UserError(
                f'{one}: is a link to {one.resolve()}, outside of the folder; put the file itself '
                'there to have it copied.'
            )
    (shutil.copytree if file.is_dir() else shutil.copyfile)(file, target)


def read_text(file: str | os.PathLike) -> str:
    """Reads a UTF-8 text; a byte-order mark at its start is dropped, line ends stay as they are.

    Raises:
      UserError: as `read_bytes`, or bytes that are not UTF-8 (names the line).
    """
    return decode(read_bytes(file), str(file))


def decode(content: bytes, where: str) -> str:
    """Decodes UTF-8; see `read_text`. `where` begins the error."""
    try:
        return content.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        number = content.count(b'\n', 0, error.start) + 1
        raise UserError(
            f'{where}: line {number} is not UTF-8 ({error.reason}, byte {error.start + 1}); save '
            'the file as UTF-8.'
        ) from error


def parse_json(text: str, where: str, *, distinct: bool = False) -> Any:
    """Parses JSON.

    Args:
      text: one JSON value.
      where: what errors begin with, such as 'train.jsonl:17'.
      distinct: refuse an object that has a name twice, with other values: one of them would be
        lost.

    Raises:
      UserError: not JSON, nested too deeply, a number of thousands of digits, or half a character
        (a lone surrogate).
    """
    try:
        value = json.loads(text, object_pairs_hook=_distinct if distinct else None)
    except json.JSONDecodeError as error:
        line = f'line {error.lineno}, ' if error.lineno > 1 else ''
        raise UserError(
            f'{where}: not valid JSON ({error.msg}, {line}column {error.colno}).'
        ) from error
    except RecursionError as error:
        raise UserError(f'{where}: not usable JSON (nested too deeply).') from error
    except ValueError as error:  # Python's limit on the digits of an integer
        raise UserError(f'{where}: not usable JSON ({str(error).partition(";")[0]}).') from error
    if _HALF.search(text) and (half := half_character(value)):
        raise UserError(
            f'{where}: holds half a character ({half}, a lone surrogate), which no text can hold; '
            'mend or drop it.'
        )
    return value


def half_character(value: Any) -> str:
    """Looks for half a character (a lone surrogate) in the texts of a value of any depth; returns
    it as an escape, '' for none."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            waiting += item
        elif isinstance(item, str) and not item.isascii() and (half := _SURROGATE.search(item)):
            return f'\\u{ord(half[0]):04x}'
    return ''


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        for name, value in pairs:
            if entries[name] != value:
                raise ValueError(f'"{one_line(name, 80)}" is given twice, with other values')
    return entries


def read_json(file: str | os.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(file), str(file))


def json_object(file: str | os.PathLike) -> dict[str, Any]:
    """Reads a file that holds a JSON object.

    Raises:
      UserError: as `read_json`, or JSON of another kind.
    """
    value = read_json(file)
    if not isinstance(value, dict):
        raise UserError(f'{file}: expected a JSON object, found {type(value).__name__}.')
    return value


def write_text(file: str | os.PathLike, text: str) -> None:
    """Writes a text whole; see `open_whole`."""
    with open_whole(file) as opened:
        opened.write(text.encode('utf-8'))


@contextlib.contextmanager
def open_whole(file: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a file that is to be written whole: a reader, or a kill, never sees half of it, and it
    is on disk when the block ends.

    Raises:
      UserError: a folder has that name.
    """
    file = pathlib.Path(file)
    if file.is_dir():
        raise UserError(f'{file}: cannot be written (it is a folder).')
    temporary = file.with_name(f'{file.name}.tmp')
    # what a kill has left, or a link, whose target is not ours to overwrite
    temporary.unlink(missing_ok=True)
    with temporary.open('wb') as opened:
        yield opened
        opened.flush()
        os.fsync(opened.fileno())
    temporary.replace(file)


def nearest_name(file: pathlib.Path) -> str:
    """Returns the hint towards a file of a similar name in the same folder, or ''."""
    try:
        return nearest(file.name, [entry.name for entry in file.parent.iterdir()])
    except OSError:
        return ''


def put_aside(path: pathlib.Path, suffix: str = DAMAGED) -> pathlib.Path:
    """Renames what is damaged, or in the way, so that nothing is lost and nothing takes it for a
    good one. Returns its new path."""
    number, target = 1, path.with_name(f'{path.name}{suffix}')
    while target.exists():
        number += 1
        target = path.with_name(f'{path.name}{suffix}-{number}')
    return path.rename(target)
