"""PEFT's LoRA folders and low-rank leaves, two spellings of one thing: reading (`put` puts
them over parameters, `write` writes).

PEFT keeps a pair for every module of every layer, `lora_A` [r, in] and `lora_B` [out, r]; we keep
one pair for a whole stack of layers. A layer (or rank) that the other side does not have is a pair
of zeros here: it adds nothing and, as each factor's gradient is a multiple of the other, it never
moves.
"""

import collections
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import regex
import safetensors.numpy

from reasonjax import bounds
from reasonjax.errors import UserError, listing, one_line
from reasonjax.files import expanded, json_object, nearest_name
from reasonjax.interop.huggingface.folder_config import is_number
from reasonjax.interop.huggingface.stored import tensors_of
from reasonjax.weights import finite

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
PREFIX = 'base_model.model.'
FACTORS = {
    '.lora_A.weight': 'a',
    '.lora_B.weight': 'b',
    '.lora_embedding_A': 'a',
    '.lora_embedding_B': 'b',
}
COPY = '.base_layer.weight'
# Settings that say where pairs lie, how they came to be, or nothing about what they compute.
UNDERSTOOD = (
    'peft_type',
    'task_type',
    'peft_version',
    'auto_mapping',
    'base_model_name_or_path',
    'revision',
    'inference_mode',
    'r',
    'lora_alpha',
    'target_modules',
    'exclude_modules',
    'lora_dropout',
    'use_rslora',
    'bias',
    'init_lora_weights',
    'layers_to_transform',
    'layers_pattern',
    'rank_pattern',
    'alpha_pattern',
    'megatron_core',
    'loftq_config',
    'eva_config',
    'corda_config',
    'lora_ga_config',
    'velora_config',
    'qalora_group_size',
    'ensure_weight_tying',
    'runtime_config',
)
NAMES, PATTERNS = 'a name or a list of names', 'an object of patterns'
# What settings must be, in words; null is a default.
TYPES = {
    'r': 'an integer of at least 1',
    'lora_alpha': 'a number',
    'use_rslora': 'true or false',
    'base_model_name_or_path': 'a name',
    'target_modules': NAMES,
    'exclude_modules': NAMES,
    'bias': 'a name',
    'rank_pattern': PATTERNS,
    'alpha_pattern': PATTERNS,
}
SECONDS = 1.0  # that one pattern may take to be compared with a name
REPEATS = 10_000  # in a pattern, the product of all counts: it is compiled with as many copies
# Ways to start A and B that leave the base as it is.
NEUTRAL_STARTS = (True, False, None, 'gaussian', 'eva', 'orthogonal', 'mica')
LISTED = 12


class Pair(NamedTuple):
    """What an adapter adds to a module's weight [out, in]: scale B A.

    Attributes:
      a: [r, in].
      b: [out, r].
      scale: alpha / r, or alpha / sqrt(r).
    """

    a: np.ndarray
    b: np.ndarray
    scale: float


class Adapter(NamedTuple):
    """A PEFT LoRA folder.

    Attributes:
      path: of the folder.
      base: name of the model it was made for, as its config tells.
      pairs: by module, such as 'model.layers.0.self_attn.q_proj'.
      copies: weights of the base that the file repeats, by module, [out, in].
    """

    path: pathlib.Path
    base: str
    pairs: dict[str, Pair]
    copies: dict[str, np.ndarray]


def read_adapter(path: str | pathlib.Path) -> Adapter:
    """Reads a LoRA adapter that PEFT (or `save_adapter`) wrote.

    Dropout of the adapter's inputs is a setting of its training and is not taken over.

    Raises:
      UserError: no such folder, pickled weights, another kind of adapter, or a setting or tensor
        that a low-rank pair cannot express.
    """
    path = expanded(path)
    settings = _settings(path)
    pairs, copies, unknown = collections.defaultdict(dict), {}, []
    for name, value in _tensors(path).items():
        suffix = next((s for s in (*FACTORS, COPY) if name.endswith(s)), None)
        module = name.removeprefix(PREFIX).removesuffix(suffix or '')
        if suffix is None:
            unknown.append(one_line(name, 120))
        elif suffix == COPY:
            copies[module] = value
        elif FACTORS[suffix] in pairs[module]:
            unknown.append(f'{one_line(name, 120)} for the second time')
        else:
            pairs[module][FACTORS[suffix]] = value
    unknown += [
        f'{one_line(module, 120)} without its other factor'
        for module, halves in pairs.items()
        if len(halves) < 2
    ]
    if unknown or not pairs:
        raise UserError(
            f'{path / WEIGHTS}: expected pairs of lora_A and lora_B; found '
            f'{_first(unknown) or "none"}.'
        )
    read = {module: _pair(path, settings, module, **halves) for module, halves in pairs.items()}
    _check_finite(path, read, copies)
    return Adapter(path, str(settings.get('base_model_name_or_path') or ''), read, copies)


def _settings(path: pathlib.Path) -> dict:
    file = path / CONFIG
    if not os.path.lexists(file):
        raise UserError(f'{path}: no PEFT adapter there (no {CONFIG}).{nearest_name(path)}')
    settings = json_object(file)
    for name, wanted in TYPES.items():
        if settings.get(name) is not None and not _is(wanted, settings[name]):
            raise UserError(
                f'{file}: {name}: expected {wanted}, found {one_line(repr(settings[name]), 80)}.'
            )
    for name in ('rank_pattern', 'alpha_pattern'):
        wanted = TYPES['r' if name == 'rank_pattern' else 'lora_alpha']
        for pattern, value in (settings.get(name) or {}).items():
            if not _is(wanted, value):
                raise UserError(
                    f'{file}: {name}: {one_line(pattern, 80)}: expected {wanted}, found '
                    f'{one_line(repr(value), 80)}.'
                )
    kind = settings.get('peft_type')
    if kind != 'LORA':
        raise UserError(
            f'{file}: an adapter of type {one_line(str(kind), 80)}; only LORA is supported.'
        )
    bias, start = settings.get('bias', 'none'), settings.get('init_lora_weights', True)
    refused = [
        one_line(f'{name}={value}', 80)
        for name, value in settings.items()
        if value and name not in UNDERSTOOD
    ]
    refused += [] if bias == 'none' else [f'bias={one_line(str(bias), 80)}']
    other_start = f'init_lora_weights={one_line(str(start), 80)} (which changes the base; convert it to plain LoRA in PEFT)'
    refused += [] if start in NEUTRAL_STARTS else [other_start]
    if refused:
        raise UserError(
            f'{file}: not supported, because a low-rank pair over the base is not all of it: '
            f'{listing(refused)}.'
        )
    return settings


def _is(wanted: str, value: Any) -> bool:
    """Checks whether a setting is what `TYPES` says in words."""
    names = value if isinstance(value, list) else [value]
    return {
        TYPES['r']: type(value) is int and value >= 1,
        TYPES['lora_alpha']: is_number(value),
        TYPES['use_rslora']: isinstance(value, bool),
        TYPES['bias']: isinstance(value, str),
        NAMES: all(isinstance(name, str) for name in names),
        PATTERNS: isinstance(value, dict),
    }[wanted]


def _tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    file = path / WEIGHTS
    if not os.path.lexists(file):
        pickled = listing(p.name for p in path.glob('*.bin'))
        others = (
            f'found {pickled}, which is pickled and can run code when it is read'
            if pickled
            else 'it is not there'
        )
        raise UserError(
            f'{path}: the weights of an adapter are read from {WEIGHTS} only; {others}.'
        )
    tensors_of(file)  # says what is wrong with it
    return safetensors.numpy.load_file(file)


def _pair(path: pathlib.Path, settings: dict, module: str, *, a: np.ndarray, b: np.ndarray) -> Pair:
    rank = _by_pattern(path, settings, 'rank_pattern', module, settings.get('r', 8))
    alpha = _by_pattern(path, settings, 'alpha_pattern', module, settings.get('lora_alpha', 8))
    if a.ndim != 2 or b.ndim != 2 or not a.shape[0] == b.shape[1] == rank:
        raise UserError(
            f'{path}: {one_line(module, 120)}: factors {list(a.shape)} and {list(b.shape)} are not '
            f'of rank r={rank}.'
        )
    if fault := bounds.fault(alpha, bounds.Finite):
        raise UserError(
            f'{path / CONFIG}: lora_alpha={bounds.shown(alpha)} of {one_line(module, 120)}: {fault}'
        )
    return Pair(a, b, alpha / (math.sqrt(rank) if settings.get('use_rslora') else rank))


def _check_finite(
    path: pathlib.Path, pairs: Mapping[str, Pair], copies: Mapping[str, np.ndarray]
) -> None:
    """Raises UserError where a number of an adapter is not finite in float32, in which its factors
    are kept; names the tensors."""
    tensors = {f'{module}{COPY}': value for module, value in copies.items()}
    for module, pair in pairs.items():
        tensors |= {f'{module}.lora_A': pair.a, f'{module}.lora_B': pair.b}
    with np.errstate(over='ignore'):
        counts = {
            name: np.sum(~np.isfinite(np.asarray(value, np.float32)))
            for name, value in tensors.items()
        }
    wrong = [
        f'{name} ({number:,} of {tensors[name].size:,})'
        for name, number in counts.items()
        if number
    ]
    if wrong:
        raise UserError(
            f'{path / WEIGHTS}: elements that are not finite numbers: {finite.listed(wrong)}.'
        )


def _by_pattern(path: pathlib.Path, settings: dict, name: str, module: str, otherwise: Any) -> Any:
    """Returns the value of the first pattern that matches a module's name, as PEFT picks it."""
    for pattern, value in (settings.get(name) or {}).items():
        counts = [
            int(count[:9])
            for braces in re.findall(r'\{([\d,\s]*)\}', pattern)
            for count in re.findall(r'\d+', braces)
        ]
        if math.prod(max(1, count) for count in counts) > REPEATS:
            raise UserError(
                f'{path / CONFIG}: {name}: "{one_line(pattern, 80)}" repeats a part more than '
                f'{REPEATS:,} times.'
            )
        try:
            if regex.match(rf'(.*\.)?({pattern})$', module, timeout=SECONDS):
                return value
        except regex.error as error:
            raise UserError(
                f'{path / CONFIG}: {name}: "{one_line(pattern, 80)}" is not a regular expression '
                f'({error}).'
            ) from error
        except TimeoutError as error:
            raise UserError(
                f'{path / CONFIG}: {name}: "{one_line(pattern, 80)}" takes more than {SECONDS:g} s '
                'to compare.'
            ) from error
    return otherwise


def _first(entries: list[str]) -> str:
    return ', '.join(shortened(entries))


def shortened(entries: list[str]) -> list[str]:
    """Returns the first entries, and how many more there are."""
    return entries[:LISTED] + (
        [f'and {len(entries) - LISTED} more'] if len(entries) > LISTED else []
    )
