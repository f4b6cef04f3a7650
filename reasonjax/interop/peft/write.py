"""Low-rank leaves as PEFT's LoRA folders: the inverse of `peft`."""

import collections
import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from reasonjax.errors import UserError
from reasonjax.interop.huggingface.families import Family, Tensor, tensors
from reasonjax.interop.peft.read import CONFIG, PREFIX, WEIGHTS, Pair
from reasonjax.model.config import ModelConfig
from reasonjax.weights import finite
from reasonjax.weights.linear import LowRank, is_weight
from reasonjax.weights.partition import path_name


def pairs_of(params: Any, family: Family, config: ModelConfig) -> dict[str, Pair]:
    """Converts the low-rank leaves of a tree to the pairs that PEFT has, by module.

    Pairs over pairs become one, of the sum of their ranks. Parts that the family fuses become one
    pair: theirs if they share A (and scale), else with A stacked and B block by block. Both are
    exact where scales agree, and to rounding of B where they do not.

    Args:
      params: parameter tree.
      family: whose modules are named.
      config: the model's shape; tokens of embedding and head beyond its `vocab_size` are left out.

    Raises:
      UserError: no low-rank leaf, or one over a weight that PEFT cannot adapt.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=is_weight)
    adapted = {
        path_name(path): list(_layers_of(leaf))
        for path, leaf in leaves
        if isinstance(leaf, LowRank)
    }
    if not adapted:
        raise UserError('there are no low-rank weights: no stage had an adapter, or it was merged.')
    if 'layers/mlp/router' in adapted:
        raise UserError(
            'the router of a mixture is adapted, which PEFT cannot express; merge the adapter '
            '(--merge).'
        )
    if 'embed' in adapted and config.tied:
        raise UserError(
            'the embedding is adapted and is also the head, which PEFT does not keep together; '
            'merge the adapter (--merge).'
        )
    by_module = {}
    for tensor in tensors(family, config):
        for index in np.ndindex(*tensor.stacked):
            pair = _joined(
                [
                    [_slice(node, index, shape, tensor) for node in adapted.get(part, ())]
                    for part, shape in zip(tensor.parts, tensor.shapes, strict=True)
                ],
                tensor.shapes,
            )
            if pair is not None:
                by_module[tensor.name.format(*index).removesuffix('.weight')] = pair
    if not by_module:
        raise UserError('the low-rank weights are all zero: there is nothing to write.')
    return by_module


def _layers_of(leaf: Any) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields (a, b, scale) of a leaf's nested low-rank nodes, the innermost first."""
    if isinstance(leaf, LowRank):
        yield from _layers_of(leaf.base)
        yield np.asarray(leaf.a), np.asarray(leaf.b), np.asarray(leaf.scale)


def _slice(node: tuple, index: tuple[int, ...], shape: tuple[int, ...], tensor: Tensor) -> Pair:
    a, b, scale = node[0][index].T, node[1][index].T, float(node[2][index])
    out, into = shape if tensor.transposed else reversed(shape)
    a, b = a[:, :into], b[:out]
    moves = (np.any(a != 0, axis=1) | np.any(b != 0, axis=0)) & (scale != 0)
    return Pair(np.ascontiguousarray(a[moves]), np.ascontiguousarray(b[:, moves]), scale)


def _joined(parts: list[list[Pair]], shapes: tuple[tuple[int, ...], ...]) -> Pair | None:
    """Joins pairs of parts that lie side by side along the output axis; None without pairs. Each
    part has any number of pairs."""
    parts = [[pair for pair in part if len(pair.a)] for part in parts]
    pairs = [pair for part in parts for pair in part]
    if not pairs:
        return None
    first = pairs[0]
    if len(parts) == len(pairs) == 1:
        return first
    shared = all(len(part) <= 1 for part in parts) and all(
        pair.scale == first.scale and np.array_equal(pair.a, first.a) for pair in pairs
    )
    rank = len(first.a) if shared else sum(len(pair.a) for pair in pairs)
    sizes = [
        part[0].b.shape[0] if part else shape[0] for part, shape in zip(parts, shapes, strict=True)
    ]
    b = np.zeros((sum(sizes), rank), first.b.dtype)
    row = column = 0
    for part, size in zip(parts, sizes, strict=True):
        for pair in part:
            at = 0 if shared else column
            block = (
                pair.b
                if pair.scale == first.scale
                else pair.b.astype(np.float64) * (pair.scale / first.scale)
            )
            b[row : row + size, at : at + len(pair.a)] = block
            column += len(pair.a)
        row += size
    return Pair(first.a if shared else np.concatenate([pair.a for pair in pairs]), b, first.scale)


def save_adapter(
    path: pathlib.Path, pairs: Mapping[str, Pair], *, base: str, layers: int, dtype: str = ''
) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors` as PEFT does.

    Settings that hold for most modules are the adapter's own, the others go to `rank_pattern` and
    `alpha_pattern`. The largest rank is `r` even where it is not the most common: servers size
    their buffers by it, and some take alpha / r for the scale of every module.

    Args:
      path: folder, which exists.
      pairs: by module.
      base: name or folder of the model the adapter is for.
      layers: of that model.
      dtype: of the tensors; '' for that of the pairs.

    Raises:
      UserError: a value that is not a finite number in `dtype`.
    """
    content = {}
    for module, pair in pairs.items():
        a, b = (
            ('.lora_embedding_A', '.lora_embedding_B')
            if module.endswith('embed_tokens')
            else ('.lora_A.weight', '.lora_B.weight')
        )
        content |= {f'{PREFIX}{module}{a}': pair.a, f'{PREFIX}{module}{b}': pair.b}
    if dtype:
        with np.errstate(over='ignore'):
            content = {name: value.astype(jnp.dtype(dtype)) for name, value in content.items()}
    content = {name: np.ascontiguousarray(value) for name, value in content.items()}
    wrong = [name for name, value in content.items() if not np.all(np.isfinite(value))]
    if wrong:
        raise UserError(
            f'{finite.listed(wrong)}: values that are not finite '
            f'numbers{f" in {dtype}" if dtype else ""}.'
        )
    safetensors.numpy.save_file(content, path / WEIGHTS, metadata={'format': 'pt'})
    (path / CONFIG).write_text(
        json.dumps(_described(pairs, base, layers), indent=2, sort_keys=True) + '\n',
        encoding='utf-8',
    )


def _described(pairs: Mapping[str, Pair], base: str, layers: int) -> dict:
    ranks = {module: len(pair.a) for module, pair in pairs.items()}
    spelled = {
        root: {module: _alpha(pair.scale, root(len(pair.a))) for module, pair in pairs.items()}
        for root in (float, math.sqrt)
    }
    # Either spelling gives the same scales; the one that a person has set gives whole numbers.
    stabilised = _whole(spelled[math.sqrt]) and not _whole(spelled[float])
    alphas = spelled[math.sqrt if stabilised else float]
    r = max(ranks.values())
    scale = collections.Counter(pair.scale for pair in pairs.values()).most_common(1)[0][0]
    lora_alpha = _alpha(scale, math.sqrt(r) if stabilised else float(r))
    return {
        'peft_type': 'LORA',
        'task_type': 'CAUSAL_LM',
        'base_model_name_or_path': base,
        'revision': None,
        'auto_mapping': None,
        'inference_mode': True,
        'r': r,
        'lora_alpha': lora_alpha,
        'use_rslora': stabilised,
        'use_dora': False,
        'lora_dropout': 0.0,
        'fan_in_fan_out': False,
        'bias': 'none',
        'init_lora_weights': True,
        'target_modules': _targets(list(pairs), layers),
        'modules_to_save': None,
        'layers_to_transform': None,
        'layers_pattern': None,
        'rank_pattern': _pattern(ranks, r),
        'alpha_pattern': _pattern(alphas, lora_alpha),
    }


def _alpha(scale: float, root: float) -> int | float:
    """Returns scale * root, in as few digits as give back the same float32 scale."""
    for digits in range(8):
        alpha = round(scale * root, digits)
        if np.float32(alpha / root) == np.float32(scale):
            return int(alpha) if alpha == int(alpha) else alpha
    return scale * root


def _whole(alphas: Mapping[str, int | float]) -> bool:
    return all(isinstance(alpha, int) for alpha in alphas.values())


def _pattern(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """Returns the values that differ from the default, by module. Modules with the same last name
    share an entry under it where they agree."""
    kinds = collections.defaultdict(set)
    for module, value in values.items():
        kinds[_kind(module)].add(value)
    named = {
        _kind(m) if len(kinds[_kind(m)]) == 1 else m: value
        for m, value in values.items()
        if value != default
    }
    return {name if '.' not in name else re.escape(name): value for name, value in named.items()}


def _kind(module: str) -> str:
    return module.rpartition('.')[2]


def _targets(modules: list[str], layers: int) -> list[str]:
    """Returns short module names where every layer has all of them, else every full name."""
    numbers = collections.Counter(
        _kind(module) for module in modules if re.search(r'\.\d+\.', module)
    )
    everywhere = all(number == layers for number in numbers.values())
    return sorted({_kind(module) for module in modules}) if everywhere else sorted(modules)
