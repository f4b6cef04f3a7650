"""Tensors of safetensors files: where each lies, of what shape and dtype, checked before anything
is read."""

import json
import math
import os
import pathlib
import re
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors

from reasonjax.errors import UserError, listing, one_line
from reasonjax.files import POINTER, is_pointer, json_object, open_file, reason

TYPES = {'BF16': jnp.bfloat16, 'F16': np.float16, 'F32': np.float32, 'F64': np.float64}
INDEX = 'model.safetensors.index.json'


class Stored(NamedTuple):
    """A tensor in a file: where its first byte is, and what it holds."""

    file: pathlib.Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def stored_tensors(path: pathlib.Path) -> dict[str, Stored]:
    """Returns the tensors of a folder, from the headers of its safetensors files.

    Raises:
      UserError: no such files, only pickled ones, a broken one, one that the index names and that
        is missing, or a tensor that two files hold.
    """
    index = path / INDEX
    if os.path.lexists(index):
        files = _indexed(index)
    else:
        # Where there is a file of that name, others (consolidated.safetensors, an adapter's) hold
        # something else.
        only = path / 'model.safetensors'
        files = [only] if os.path.lexists(only) else sorted(path.glob('*.safetensors'))
    pickled = sorted(p.name for pattern in ('*.bin', '*.pt', '*.pth') for p in path.glob(pattern))
    if not files:
        others = (
            f'found pickled weights ({listing(pickled)}), which can run code when they are read'
            if pickled
            else 'found none'
        )
        raise UserError(f'{path}: weights are read from safetensors files only; {others}.')
    stored = {}
    for file in files:
        for name, tensor in tensors_of(file).items():
            if name in stored:
                raise UserError(
                    f'{file}: tensor {one_line(name, 120)} is in {stored[name].file.name} too; '
                    'which of the two is meant?'
                )
            stored[name] = tensor
    return stored


def _indexed(index: pathlib.Path) -> list[pathlib.Path]:
    """Lists the files that an index names; raises UserError unless all are in its folder."""
    weight_map = json_object(index).get('weight_map')
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f'{index}: no "weight_map" from tensors to files.')
    for tensor, name in weight_map.items():
        where = f'{index}: weight_map: {one_line(tensor, 120)}'
        if not isinstance(name, str):
            raise UserError(
                f'{where}: expected the name of a file, found {one_line(json.dumps(name), 80)}.'
            )
        if not _is_inside(index.parent, name):
            raise UserError(
                f'{where}: {one_line(name, 120)!r} leads out of the folder; expected the name of a '
                'file in it.'
            )
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    for file in files:
        if not os.path.lexists(file):
            name = one_line(file.name, 120)
            raise UserError(
                f'{index.parent}: {index.name} names {name}, which is not there; was the download '
                'complete?'
            )
    return files


def _is_inside(folder: pathlib.Path, name: str) -> bool:
    """Checks whether a name stays in a folder. The file itself may be a link to elsewhere, as all
    files in the Hub's cache are."""
    parts = pathlib.PurePath(name).parts
    if (
        not parts
        or '..' in parts
        or '\0' in name
        or '\\' in name
        or pathlib.PurePath(name).is_absolute()
    ):
        return False
    return (folder / name).parent.resolve().is_relative_to(folder.resolve())


def tensors_of(file: pathlib.Path) -> dict[str, Stored]:
    """Returns the tensors of a safetensors file, from its header.

    Raises:
      UserError: no file, not readable, damaged, or tensors of another dtype.
    """
    with open_file(file) as opened:
        if is_pointer(opened.peek(64)):
            raise UserError(f'{file} {POINTER}.')
        # The library checks the header, and that the file is as long as it says.
        try:
            with safetensors.safe_open(file, framework='numpy'):
                pass
        except (safetensors.SafetensorError, OSError, MemoryError) as error:
            raise UserError(
                f'{file} is truncated or corrupt ({one_line(str(error))}); download it again.'
            ) from error
        try:
            size = int.from_bytes(opened.read(8), 'little')
            entries = json.loads(
                opened.read(size), object_pairs_hook=lambda pairs: _distinct(pairs, file)
            )
        except (OSError, RecursionError) as error:
            why = reason(error) if isinstance(error, OSError) else 'nested too deeply'
            raise UserError(f'{file}: cannot be read ({why}).') from error
    entries.pop('__metadata__', None)
    for name, entry in entries.items():
        if entry['dtype'] not in TYPES:
            raise UserError(
                f'{file}: tensor {one_line(name, 120)} is {entry["dtype"]}; expected one of '
                f'{listing(TYPES)}.'
            )
    return {
        name: Stored(
            file,
            8 + size + entry['data_offsets'][0],
            tuple(entry['shape']),
            np.dtype(TYPES[entry['dtype']]),
        )
        for name, entry in entries.items()
    }


def _distinct(pairs: list[tuple[str, Any]], file: pathlib.Path) -> dict[str, Any]:
    """Builds an object of a header; raises UserError where a name comes twice. Of such a name the
    library has looked at one entry only."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(
            f'{file} is truncated or corrupt ("{one_line(twice, 120)}" comes twice in its header); '
            'download it again.'
        )
    return entries


def layers_of(names: Any) -> int:
    """Counts the layers that tensors of these names belong to: the highest number plus 1, or 0."""
    numbers = (re.search(r'\.layers\.(\d{1,9})\.', name) for name in names)
    return max((int(number[1]) + 1 for number in numbers if number), default=0)


def read_rows(stored: Stored, first: int, last: int) -> np.ndarray:
    """Reads rows of a stored tensor. The file is not mapped: mapped pages count as memory of the
    process, for as long as the file is open."""
    width = stored.nbytes // stored.shape[0]
    raw = np.fromfile(
        stored.file, np.uint8, (last - first) * width, offset=stored.offset + first * width
    )
    if len(raw) != (last - first) * width:
        raise UserError(f'{stored.file} became shorter while it was read.')
    return raw.view(stored.dtype).reshape(last - first, *stored.shape[1:])
