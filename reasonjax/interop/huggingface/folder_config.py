"""What `config.json` of a Hugging Face folder must hold before transformers reads it, and what its
reading must give."""

import pathlib
from collections.abc import Mapping
from typing import Any

from reasonjax import config as configs
from reasonjax.errors import UserError, one_line
from reasonjax.interop.huggingface.stored import layers_of, stored_tensors
from reasonjax.model import config as model_config
from reasonjax.model.config import ModelConfig

# The largest sizes that are read: far above any model's, and small enough to be compared with the
# tensors.
SIZES = {
    'vocab_size': 2**27,
    'hidden_size': 2**24,
    'intermediate_size': 2**24,
    'moe_intermediate_size': 2**24,
    'head_dim': 2**20,
    'num_attention_heads': 2**20,
    'num_key_value_heads': 2**20,
    'num_hidden_layers': 10_000,
    'num_experts': 2**16,
    'num_local_experts': 2**16,
    'num_experts_per_tok': 2**16,
    'max_position_embeddings': 2**40,
    'sliding_window': 2**40,
    # transformers makes a name for each label
    'original_max_position_embeddings': 2**40,
    'num_labels': 2**16,
}
NUMBERS = (
    'rms_norm_eps',
    'rope_theta',
    'rope_local_base_freq',
    'partial_rotary_factor',
    'query_pre_attn_scalar',
    'attn_logit_softcapping',
    'final_logit_softcapping',
)
ROPE = ('rope_parameters', 'rope_scaling')
OF_LAYERS = ('layer_types', 'no_rope_layers', 'mlp_only_layers')
# From this depth on, the tensors are counted before a list with an entry for every layer is made.
DEEP = 500


def check_entries(path: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Checks entries of `config.json` that all families share; null stands for a default.

    Raises:
      UserError: names the entry: a size that is no integer or is out of range, a number that is
        none, or more layers than there are tensors of.
    """
    file = path / 'config.json'
    architectures = config.get('architectures')
    if architectures is not None and not (
        isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)
    ):
        raise UserError(
            f'{file}: architectures: expected a list of names, found {_shown(architectures)}.'
        )
    for name, most in SIZES.items():
        least = 0 if name == 'sliding_window' else 1
        value = config.get(name)
        if value is not None and (type(value) is not int or not least <= value <= most):
            raise UserError(
                f'{file}: {name}: expected an integer from {least} to {most}, found '
                f'{_shown(value)}.'
            )
    for name in NUMBERS:
        _check_number(file, name, config.get(name))
    for name in ROPE:
        _check_rope(file, name, config.get(name))
    for name in OF_LAYERS:
        value = config.get(name)
        if value is not None and not (
            isinstance(value, list) and len(value) <= SIZES['num_hidden_layers']
        ):
            raise UserError(
                f'{file}: {name}: expected a list with an entry for each layer, found '
                f'{_shown(value)}.'
            )
    layers = config.get('num_hidden_layers') or 0
    if layers > DEEP and (there := layers_of(stored_tensors(path))) < layers:
        raise UserError(
            f'{file}: num_hidden_layers: {layers}, but the folder holds the tensors of {there} '
            'layers.'
        )


def _check_rope(file: pathlib.Path, name: str, value: Any) -> None:
    if value is not None and not isinstance(value, Mapping):
        raise UserError(f'{file}: {name}: expected an object, found {_shown(value)}.')
    for key, entry in (value or {}).items():
        # Gemma 3 has a table for each kind of layer.
        if isinstance(entry, Mapping):
            _check_rope(file, f'{name}.{key}', entry)
        elif isinstance(entry, list):
            for number in entry:
                _check_number(file, f'{name}.{key}', number)
        elif key not in ('rope_type', 'type') and not isinstance(entry, bool):
            _check_number(file, f'{name}.{key}', entry)


def _check_number(file: pathlib.Path, name: str, value: Any) -> None:
    if value is not None and not is_number(value):
        raise UserError(f'{file}: {name}: expected a number, found {_shown(value)}.')


def is_number(value: Any) -> bool:
    """Checks whether a JSON value is a number to compute with: no bool, not infinite, not nan."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def check_fields(path: pathlib.Path, fields: Mapping[str, Any]) -> None:
    """Checks fields of `ModelConfig` that were read from a folder's config.

    Raises:
      UserError: a value that is not within its bound, or numbers that cannot be a model.
    """
    try:
        model_config.check_fields(fields)
        configs.resolve(fields['rope_scaling'], 'rope_scaling', 'model.rope_scaling')
        # A scaling may need what only the run says.
        model_config.check(ModelConfig(**{**fields, 'rope_scaling': (('name', 'none'),)}), 0)
    except UserError as error:
        raise UserError(f'{path / "config.json"}: {error}') from error


def _shown(value: Any) -> str:
    return (
        f'a list of {len(value)}'
        if isinstance(value, list) and len(value) > 9
        else one_line(repr(value), 80)
    )
