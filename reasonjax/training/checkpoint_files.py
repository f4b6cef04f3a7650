"""The files of a checkpoint: a checksum of each, what is wrong with a damaged folder, and
which steps are sound.

A folder is named by its step alone (`120`) once it is whole. Other names are not checkpoints:
`120.orbax-checkpoint-tmp` is being written, `120.damaged` was renamed.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import jax

from reasonjax import files
from reasonjax.errors import UserError
from reasonjax.parallel import processes

LISTED = 12  # how many files or leaves an error lists by name
SUMS = 'checksums.json'
RECORD = 'meta/metadata'
STRAY = '.stray'
STAMPS = '_CHECKPOINT_METADATA'  # times, of which Orbax writes the last when all is done
_STEP = re.compile('0|[1-9][0-9]*')
_WRITING = '.orbax-checkpoint-tmp'
# Hashing a file lets other threads run; more than this many wait for the disk.
_THREADS = min(8, os.cpu_count() or 1)


def steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps that have a folder, in order. Files and other names ('007', '12.old') are
    ignored."""
    return sorted(
        int(path.name) for path in folder.iterdir() if _STEP.fullmatch(path.name) and path.is_dir()
    )


def strays(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns paths that are named like a step but are not folders. A checkpoint of such a step
    cannot be written."""
    return sorted(
        path for path in folder.iterdir() if _STEP.fullmatch(path.name) and not path.is_dir()
    )


def writing(folder: pathlib.Path, step: int) -> pathlib.Path:
    """Returns the folder in which a step is while it is being written."""
    temporary = folder / f'{step}{_WRITING}'
    # Where the file system cannot rename a folder, Orbax writes in place.
    return temporary if temporary.is_dir() else folder / str(step)


def sweep(folder: pathlib.Path) -> None:
    """Removes what a save that failed has left."""
    for path in folder.glob(f'*{_WRITING}*'):
        shutil.rmtree(path, ignore_errors=True)


def write_sums(folder: pathlib.Path) -> None:
    """Writes `checksums.json`: length in bytes and SHA-256 of every file in the folder as it is
    now."""
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob('*')
        if path.is_file() and path.name not in (STAMPS, SUMS)
    )
    with ThreadPoolExecutor(_THREADS) as pool:
        sums = pool.map(lambda name: _sha256(folder / name), names)
        entries = {
            name: {'bytes': (folder / name).stat().st_size, 'sha256': digest}
            for name, digest in zip(names, sums, strict=True)
        }
    with (folder / SUMS).open('w', encoding='utf-8') as file:
        json.dump({'files': entries}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def damage(folder: pathlib.Path, *, read: bool, share: tuple[int, int] = (0, 1)) -> list[str]:
    """Returns what is wrong with a checkpoint: one text per file, none where all is well.

    Args:
      folder: of one step.
      read: whether to read every file and compare its checksum; otherwise only the record is
        read, and the others are compared by length.
      share: (index, number) of the process, where several divide the files.

    Returns:
      Texts such as 'params/manifest.ocdbt: missing'.
    """
    if not (folder / SUMS).is_file():
        return [f'{SUMS}: missing']
    try:
        sums = json.loads((folder / SUMS).read_text(encoding='utf-8'))['files']
        entries = [
            (name, int(sums[name]['bytes']), str(sums[name]['sha256']))
            for name in sorted(sums)[share[0] :: share[1]]
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return [f'{SUMS}: cannot be read ({error})']

    def check(entry: tuple[str, int, str]) -> str:
        name, expected, digest = entry
        path = folder / name
        if not path.is_file():
            return f'{name}: missing'
        if (length := path.stat().st_size) != expected:
            kind = 'truncated' if length < expected else 'too long'
            return f'{name}: {kind}: {length} bytes of {expected}'
        try:
            if (read or name == RECORD) and _sha256(path) != digest:
                return f'{name}: its bytes have changed (another SHA-256)'
        except OSError as error:
            return f'{name}: cannot be read ({reason(error)})'
        return ''

    with ThreadPoolExecutor(_THREADS) as pool:
        return [text for text in pool.map(check, entries) if text]


def damage_all(folder: pathlib.Path) -> list[str]:
    """Runs `damage` on every file of a checkpoint, each process on a part; joins the results."""
    lists = processes.gather(
        damage(folder, read=True, share=(jax.process_index(), jax.process_count()))
    )
    return sorted({text for texts in lists for text in texts})


def damaged(folder: pathlib.Path, wrong: list[str]) -> str:
    """Returns the sentence that names a damaged checkpoint and what is wrong with it."""
    more = f' and {len(wrong) - LISTED} files more' if len(wrong) > LISTED else ''
    return f'checkpoint {folder} is damaged: {"; ".join(wrong[:LISTED])}{more}.'


def refuse(folder: pathlib.Path, wrong: list[str]) -> None:
    """Raises a UserError where something is wrong."""
    if wrong:
        raise UserError(damaged(folder, wrong))


def reason(error: Exception) -> str:
    """Returns why a file could not be written, in the words of the system where it says why."""
    code = error.errno if isinstance(error, OSError) else None
    if code is None:
        match = re.search(r"os_error_code='(\d+)'", str(error))  # tensorstore's way
        code = int(match[1]) if match else None
    return os.strerror(code) if code else str(error).splitlines()[0]


def read_record(folder: pathlib.Path) -> dict:
    """Reads the JSON record of a checkpoint whose checksums have been compared."""
    return files.json_object(folder / RECORD)


def aside(folder: pathlib.Path) -> list[str]:
    """Returns the names under which damaged checkpoints of a folder are kept."""
    return sorted(path.name for path in folder.glob(f'*{files.DAMAGED}*'))


def _sha256(path: pathlib.Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def newest_step(folder: pathlib.Path) -> int:
    """Returns the newest step that is not damaged; names those that are passed over on standard
    error.

    Raises:
      UserError: there is none.
    """
    steps = existing_steps(folder)
    if not steps:
        choose_step(folder, steps, None)
    for step in reversed(steps):
        wrong = damage_all(folder / str(step))
        if not wrong:
            return step
        if processes.is_main():
            print(
                f'warning: {damaged(folder / str(step), wrong)} Looking for an earlier one.',
                file=sys.stderr,
            )
    raise UserError(f'every checkpoint in {folder} is damaged: {", ".join(map(str, steps))}.')


def existing_steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps of a folder; raises UserError where there is no such folder."""

    def listed() -> list[int]:
        if not folder.is_dir():
            raise UserError(f'no checkpoint: there is not a folder {folder}.')
        return steps(folder)

    return processes.on_main(listed)


def choose_step(folder: pathlib.Path, steps: list[int], step: int | None) -> int:
    """Returns `step`; raises UserError where it is none of `steps`, and says which there are."""
    if not steps:
        names = sorted(path.name for path in folder.iterdir())
        there = (
            ', '.join(names[:LISTED]) + (', ...' if len(names) > LISTED else '')
            if names
            else 'nothing'
        )
        raise UserError(f'no complete checkpoint in {folder}; there is: {there}.')
    if step not in steps:
        raise UserError(
            f'no checkpoint of step {step} in {folder}; there are: {", ".join(map(str, steps))}.'
        )
    return step
