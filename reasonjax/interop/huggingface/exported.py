"""Parameters as a Hugging Face folder holds them: the inverse of `pretrained`."""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from reasonjax.errors import UserError
from reasonjax.interop.huggingface.families import FAMILIES, Family
from reasonjax.interop.huggingface.pretrained import Folder, Wanted, check_tensors, wanted_tensors
from reasonjax.interop.huggingface.stored import stored_tensors
from reasonjax.model.config import CHOSEN, ModelConfig, frozen
from reasonjax.weights.linear import is_weight, merge
from reasonjax.weights.partition import path_name
from reasonjax.weights.quantised import Quantised

# Entries of a config that are written anew, or name code that an exported folder does not bring
# along.
REPLACED = ('rope_parameters', 'layer_types', 'dtype', 'transformers_version', 'auto_map')


def save_tensors(
    path: pathlib.Path,
    family: Family,
    config: ModelConfig,
    params: Any,
    *,
    dtype: str,
    shard_bytes: int = 4 * 2**30,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Writes `model.safetensors`, or shards with an index, as transformers does.

    Args:
      path: folder, which exists.
      family: whose names and layout are written.
      config: the model's shape; rows that an embedding has beyond its `vocab_size` are left out.
      params: a tree of arrays and adapters; these are merged, one matrix at a time.
      dtype: of the file's tensors.
      shard_bytes: most bytes of a file.
      report: called with bytes written and bytes in all.

    Raises:
      UserError: a value that is not a finite number in `dtype`.
    """
    from safetensors.numpy import save_file

    leaves = {
        path_name(p): leaf
        for p, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_weight)
    }
    wanted = wanted_tensors(family, config)
    width = jnp.dtype(dtype).itemsize
    sizes = {name: math.prod(tensor.shape) * width for name, (tensor, _) in wanted.items()}
    shards, room = [[]], shard_bytes
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    number = len(shards)
    files = (
        ['model.safetensors']
        if number == 1
        else [f'model-{i:05d}-of-{number:05d}.safetensors' for i in range(1, number + 1)]
    )
    done = 0
    for file, names in zip(files, shards, strict=True):
        content = {}
        for name in names:
            content[name] = _as_stored(wanted[name], leaves, dtype)
            if not np.all(np.isfinite(content[name])):
                raise UserError(f'{name} holds values that are not finite numbers in {dtype}.')
            done += sizes[name]
            report(done, sum(sizes.values()))
        save_file(content, path / file, metadata={'format': 'pt'})
    if number > 1:
        where = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {'metadata': {'total_size': sum(sizes.values())}, 'weight_map': where}
        (path / 'model.safetensors.index.json').write_text(
            json.dumps(index, indent=2, sort_keys=True) + '\n'
        )


def _as_stored(wanted: Wanted, leaves: dict[str, Any], dtype: str) -> np.ndarray:
    parts = [np.asarray(_at(leaves[part], wanted.index, dtype)) for part in wanted.tensor.parts]
    parts = [part.T if wanted.tensor.transposed else part for part in parts]
    # Beyond the shape asked for are only rows of an embedding that was grown.
    parts = [part[: shape[0]] for part, shape in zip(parts, wanted.tensor.shapes, strict=True)]
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))


@functools.partial(jax.jit, static_argnames='dtype')
def _at(leaf: Any, index: tuple[int, ...], dtype: str) -> jax.Array:
    """Merges one layer (and expert) of a leaf. Compiled once per leaf: plain indexing would compile
    once per index."""
    return merge(jax.tree.map(lambda x: x[index], leaf)).astype(dtype)


def differing(
    folder: Folder,
    config: ModelConfig,
    params: Any,
    report: Callable[[int, int], None] = lambda done, of: None,
) -> list[str]:
    """Lists the names of a folder's tensors whose values differ from the parameters.

    Args:
      folder: see `pretrained.read_folder`.
      config: the model's shape; rows that an embedding has beyond its `vocab_size` are not looked
        at.
      params: a tree of arrays and quantised weights; the folder's values are compared in its dtype,
        and quantised likewise.
      report: called with tensors compared and tensors in all.
    """
    leaves = {
        path_name(p): leaf
        for p, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_weight)
    }
    stored = stored_tensors(folder.path)
    wanted = check_tensors(folder, config, stored)
    names = []
    for done, name in enumerate(wanted, 1):
        with safetensors.safe_open(stored[name].file, framework='numpy') as content:
            written = content.get_tensor(name)
        tensor = wanted[name].tensor
        leaf = leaves[tensor.parts[0]]
        dtype = jax.eval_shape(merge, leaf).dtype
        expected, written = _as_stored(wanted[name], leaves, dtype), written.astype(dtype)
        if isinstance(leaf, Quantised):
            # Columns are quantised each for itself, so parts that are fused in the file need not be
            # taken apart.
            written = (
                np.asarray(leaf.rounded(written.T)).T
                if tensor.transposed
                else np.asarray(leaf.rounded(written))
            )
        names += [] if np.array_equal(expected, written) else [name]
        report(done, len(wanted))
    return names


def transformers_config(family: Family, config: ModelConfig, like: dict | None = None) -> Any:
    """Builds the transformers config of a model, which reads back as the same shape.

    Args:
      family: that is to hold it.
      config: the model's shape.
      like: the `config.json` the model came from, whose further entries are kept.

    Raises:
      UserError: the family cannot hold this model; lists the fields in which it would differ.
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    kind = getattr(transformers, family.config_class)
    # Through the class, so that older spellings do not stand beside the new ones.
    kept = kind(**like).to_dict() if like else {}
    kept = {name: value for name, value in kept.items() if name not in REPLACED}
    # The classes' own defaults are ids of one vocabulary in particular.
    ids = dict.fromkeys(('bos_token_id', 'eos_token_id', 'pad_token_id'))
    try:
        written = kind(
            **ids | kept | family.write(config) | {'architectures': [family.architecture]}
        )
    except StrictDataclassError as error:
        raise UserError(f'{family.architecture} cannot hold this model: {error}') from error
    fields = family.read(written)
    chosen = {name: getattr(config, name) for name in CHOSEN}
    back = ModelConfig(**fields | {'rope_scaling': frozen(fields['rope_scaling'])} | chosen)
    differ = [
        f'{f.name}={getattr(config, f.name)!r} would become {getattr(back, f.name)!r}'
        for f in dataclasses.fields(config)
        if f.name not in ('attention_pattern', 'rope_scaling')
        and not _same(getattr(config, f.name), getattr(back, f.name))
    ]
    differ += (
        []
        if config.kinds == back.kinds
        else [f'attention_pattern={config.kinds} would become {back.kinds}']
    )
    scaling, read = (dict(c.rope_scaling) | {'length': 0} for c in (config, back))
    differ += [] if scaling == read else [f'rope_scaling={scaling} would become {read}']
    if differ:
        raise UserError(f'{family.architecture} cannot hold this model: ' + '; '.join(differ))
    return written


def _same(a: Any, b: Any) -> bool:
    return (
        math.isclose(a, b, rel_tol=1e-6)
        if isinstance(a, float) and isinstance(b, int | float)
        else a == b
    )


def family_of(config: ModelConfig) -> Family:
    """Returns the first family that can hold a model exactly.

    Raises:
      UserError: no family can; the message says why of each.
    """
    reasons = []
    for family in FAMILIES:
        try:
            transformers_config(family, config)
        except UserError as error:
            reasons.append(str(error))
        else:
            return family
    raise UserError('no Hugging Face architecture can hold this model:\n  ' + '\n  '.join(reasons))
