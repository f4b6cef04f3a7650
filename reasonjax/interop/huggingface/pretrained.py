"""Hugging Face folders: their shape, and their tensors streamed one by one into sharded arrays."""

import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reasonjax.errors import UserError, listing, nearest, one_line
from reasonjax.files import expanded, json_object, nearest_name
from reasonjax.interop.huggingface.families import FAMILIES, Family, Tensor, tensors
from reasonjax.interop.huggingface.folder_config import check_entries, check_fields
from reasonjax.interop.huggingface.stored import Stored, layers_of, read_rows, stored_tensors
from reasonjax.model import spec
from reasonjax.model.config import ModelConfig
from reasonjax.model.placement import shardings
from reasonjax.parallel import mesh as meshes
from reasonjax.weights import finite
from reasonjax.weights.partition import path_name

LISTED = 12
MANY = 1_000_000  # tensors; so many more than a folder holds are not named one by one
# Bytes read at once: what the host holds of a folder's tensors at any time, a few times over (read,
# placed, converted).
CHUNK = 2**24
# Buffers that old versions of transformers saved beside the weights; they follow from the config.
DERIVED = ('.rotary_emb.inv_freq',)


class Folder(NamedTuple):
    """A Hugging Face model folder that can be imported.

    Attributes:
      path: of the folder.
      family: its table.
      fields: of `ModelConfig`.
      config: `config.json` as it is.
    """

    path: pathlib.Path
    family: Family
    fields: dict
    config: dict


def read_folder(path: str | pathlib.Path) -> Folder:
    """Reads `config.json` of a local folder; transformers brings older spellings up to date.

    Raises:
      UserError: no folder or config, an entry of the wrong type or size, code of its own, quantised
        weights, an unknown architecture or a feature that is not supported.
    """
    path = expanded(path)
    if not path.is_dir():
        raise UserError(f'hf:{path}: no such folder.{nearest_name(path)}')
    config = read_json(path / 'config.json')
    # Phi-3 and Phi-4-mini still name the code they first came with, which is not needed:
    # transformers has them, and so do we.
    known = any(
        (config.get('architectures'), config.get('model_type')) == ([f.architecture], f.model_type)
        for f in FAMILIES
    )
    if 'auto_map' in config and not known:
        raise UserError(
            f'{path}: this model brings its own code (trust_remote_code), which is never run here. '
            f'{_known()}'
        )
    if config.get('quantization_config'):
        raise UserError(
            f'{path}: quantised weights (quantization_config) cannot be imported; use the '
            'unquantised model.'
        )
    check_entries(path, config)
    family = _family(path, config)
    from transformers import AutoConfig

    try:
        fields = family.read(AutoConfig.from_pretrained(path, trust_remote_code=False))
    # transformers' own checks, and whatever its classes do with a value that they did not expect
    except Exception as error:
        kind = '' if isinstance(error, ValueError) else f'{type(error).__name__}: '
        raise UserError(f'{path}/config.json: {kind}{one_line(str(error))}') from error
    check_fields(path, fields)
    return Folder(path, family, fields, config)


def read_json(file: pathlib.Path) -> dict:
    """Reads the JSON object in a file of a model folder."""
    if not os.path.lexists(file):
        raise UserError(
            f'{file.parent}: no {file.name}; a Hugging Face model folder has config.json, '
            '*.safetensors and tokenizer files.'
        )
    return json_object(file)


def _known() -> str:
    return f'Known architectures: {listing(f.architecture for f in FAMILIES)}.'


def _family(path: pathlib.Path, config: dict) -> Family:
    named = one_line((config.get('architectures') or [''])[0], 80)
    for family in FAMILIES:
        if named == family.architecture or (
            not named and config.get('model_type') == family.model_type
        ):
            return family
    hint = nearest(named, [f.architecture for f in FAMILIES])
    raise UserError(
        f'{path}/config.json: unknown architecture '
        f'"{named or one_line(str(config.get("model_type")), 80)}".{hint} {_known()}'
    )


class Wanted(NamedTuple):
    """One tensor of a folder, and where in our stacked leaves it belongs."""

    tensor: Tensor
    index: tuple[int, ...]


def wanted_tensors(family: Family, config: ModelConfig) -> dict[str, Wanted]:
    """Returns every tensor that a folder of this model holds, by name."""
    return {
        tensor.name.format(*index): Wanted(tensor, index)
        for tensor in tensors(family, config)
        for index in np.ndindex(*tensor.stacked)
    }


def check_tensors(
    folder: Folder, config: ModelConfig, stored: dict[str, Stored]
) -> dict[str, Wanted]:
    """Compares names and shapes with what the model needs, before anything is read.

    Returns:
      The tensors to read.

    Raises:
      UserError: lists tensors that are missing, left over, or of another shape.
    """
    number = sum(math.prod(tensor.stacked) for tensor in tensors(folder.family, config))
    if number > MANY + len(stored):
        ours, theirs = (
            f'{number:,} tensors ({config.layers} layers)',
            f'{len(stored):,} ({layers_of(stored)} layers)',
        )
        raise UserError(f'{folder.path}: config.model has {ours}, the folder {theirs}.')
    wanted = wanted_tensors(folder.family, config)
    tied_head = {folder.family.names['head']} if config.tied else set()
    extra = [
        n for n in stored if n not in wanted and n not in tied_head and not n.endswith(DERIVED)
    ]
    missing = [name for name in wanted if name not in stored]
    rows, shapes = folder.fields['vocab_size'], []
    if config.vocab_size < rows:
        raise UserError(
            f'config.model.vocab_size={config.vocab_size}: {folder.path} has {rows} embedding '
            'rows; use at least as many.'
        )
    for name, (tensor, _) in wanted.items():
        # Rows that the embedding is grown by are not in the folder.
        expected = tuple(
            rows if grows(tensor) and i == 0 else size for i, size in enumerate(tensor.shape)
        )
        if name in stored and stored[name].shape != expected:
            shapes.append(f'{name}: expected {list(expected)}, found {list(stored[name].shape)}')
    lines = (
        _section('missing', missing)
        + _section('not known to this architecture', extra)
        + _section('of another shape', shapes)
    )
    if lines:
        raise UserError(
            f'{folder.path}: the tensors are not those of a {folder.family.architecture} of '
            'config.model:\n' + '\n'.join(lines)
        )
    return wanted


def grows(tensor: Tensor) -> bool:
    """Checks whether a tensor has a row for every token of the vocabulary."""
    return tensor.parts[0] in ('embed', 'head')


def _section(title: str, entries: list[str]) -> list[str]:
    more = [f'    and {len(entries) - LISTED} more'] if len(entries) > LISTED else []
    return (
        [f'  {title}:', *(f'    {one_line(entry)}' for entry in entries[:LISTED]), *more]
        if entries
        else []
    )


def load(
    folder: Folder,
    config: ModelConfig,
    mesh: jax.sharding.Mesh,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> Any:
    """Reads a folder's tensors into a parameter tree on a mesh.

    Every leaf is allocated where it will live and filled in place, piece by piece of at most
    `CHUNK` bytes: the host never holds more of the folder than one piece.

    Args:
      folder: see `read_folder`.
      config: the model's shape; a `vocab_size` above the folder's adds rows to embedding and head,
        at the mean of the others.
      mesh: of the run.
      report: called with bytes read and bytes in all.

    Returns:
      Parameters in `config.param_dtype`.

    Raises:
      UserError: a weight is not a finite number, in the folder or as `config` keeps and multiplies
        it.
    """
    stored = stored_tensors(folder.path)
    wanted = check_tensors(folder, config, stored)
    tree = spec.specs(config)
    named = {
        path_name(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=spec.is_spec)
    }
    abstract = spec.abstract(tree, config.param_dtype)
    # Leaf by leaf: one program for all would hold its results twice.
    filled = {
        name: _empty(leaf.shape, config.param_dtype, sharding)()
        for (name, leaf), sharding in zip(
            named.items(), jax.tree.leaves(shardings(tree, abstract, mesh)), strict=True
        )
    }

    def put(part: str, rows: np.ndarray, transposed: bool, start: tuple[int, ...]) -> None:
        write = _writer(transposed, filled[part].sharding)
        filled[part] = write(
            filled[part],
            _on_mesh(rows, named[part], transposed, mesh),
            tuple(np.int32(i) for i in start),
        )
        # Dispatch runs ahead of the device: pieces would pile up in memory.
        filled[part].block_until_ready()

    done, total = 0, sum(stored[name].nbytes for name in wanted)
    more, sums = config.vocab_size - folder.fields['vocab_size'], {}
    for name in sorted(wanted, key=lambda name: stored[name].file):
        tensor, index = wanted[name]
        for part, first, rows in _pieces(tensor, stored[name]):
            put(part, rows, tensor.transposed, (*index, first))
            if more and grows(tensor):
                sums[part] = sums.get(part, 0.0) + rows.sum(axis=0, dtype=np.float64)
            done += rows.nbytes
            report(done, total)
    for part, of_rows in sums.items():
        mean = (of_rows / folder.fields['vocab_size']).astype(np.float32)
        put(part, np.tile(mean, (more, 1)), part == 'head', (folder.fields['vocab_size'],))
    _check_finite(folder, config, stored, wanted, filled)
    return jax.tree.unflatten(jax.tree.structure(abstract), list(filled.values()))


def _check_finite(
    folder: Folder,
    config: ModelConfig,
    stored: dict[str, Stored],
    wanted: dict[str, Wanted],
    filled: dict,
) -> None:
    """Raises UserError where a weight is not finite as it is kept and multiplied; names tensors of
    the folder, which is then read again."""
    wrong = finite.unsound(filled, config.compute_dtype)
    problems = []
    for name, (tensor, _) in wanted.items() if wrong else ():
        unsound, large = 0, {}
        for part, _, rows in _pieces(tensor, stored[name]):
            holds = np.isfinite(rows)
            unsound += np.sum(~holds)
            for knob in ('param_dtype', 'compute_dtype') if part in wrong else ():
                with np.errstate(over='ignore'):
                    fits = np.isfinite(rows.astype(jnp.dtype(getattr(config, knob))))
                large[knob] = large.get(knob, 0) + np.sum(holds & ~fits)
        size, knob = (
            math.prod(tensor.shape),
            next((knob for knob, number in large.items() if number), None),
        )
        if unsound:
            problems.append(
                f'{name} in {stored[name].file.name} ({unsound:,} of {size:,} elements are nan or '
                'infinite)'
            )
        elif knob is not None:
            problems.append(
                f'{name} ({large[knob]:,} of {size:,} elements are beyond '
                f'config.model.{knob}={getattr(config, knob)})'
            )
    if wrong:
        raise UserError(
            f'{folder.path}: weights that are not finite numbers: {finite.listed(problems)}.'
        )


def _pieces(tensor: Tensor, stored: Stored) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yields (leaf, first row within it, rows) of one stored tensor, rows counted along its first
    axis."""
    step = max(1, CHUNK // max(1, stored.nbytes // stored.shape[0]))
    sizes = [shape[0] for shape in tensor.shapes] if len(tensor.parts) > 1 else [stored.shape[0]]
    offset = 0
    for part, size in zip(tensor.parts, sizes, strict=True):
        for first in range(0, size, step):
            yield part, first, read_rows(stored, offset + first, offset + min(first + step, size))
        offset += size


def _on_mesh(
    rows: np.ndarray, leaf: spec.Spec, transposed: bool, mesh: jax.sharding.Mesh
) -> jax.Array:
    """Places a piece on the devices that hold its part of the leaf."""
    axes = leaf.axes[-rows.ndim :]
    sharding = meshes.placed(tuple(reversed(axes)) if transposed else axes, rows.shape, mesh)
    return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])


@functools.cache
def _empty(shape: tuple[int, ...], dtype: str, sharding: jax.sharding.Sharding) -> Callable:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


@functools.cache
def _writer(transposed: bool, sharding: jax.sharding.Sharding) -> Callable:
    def write(leaf: jax.Array, rows: jax.Array, start: tuple) -> jax.Array:
        *stacked, first = start
        piece = (rows.T if transposed else rows).astype(leaf.dtype)
        zeros = (np.int32(0),) * (rows.ndim - 1)
        where = (*stacked, *zeros, first) if transposed else (*stacked, first, *zeros)
        return jax.lax.dynamic_update_slice(
            leaf, piece.reshape((1,) * len(stacked) + piece.shape), where
        )

    return jax.jit(write, donate_argnums=0, out_shardings=sharding)
