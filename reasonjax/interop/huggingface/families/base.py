"""What a family is, and what most of them have in common."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from reasonjax import config as configs
from reasonjax import config_names
from reasonjax.errors import UserError, listing
from reasonjax.model import rope, spec
from reasonjax.model.config import ModelConfig
from reasonjax.weights.partition import path_name

LAYER = 'model.layers.{}.'
# Our leaf -> name of the tensor in most families; a {} for each stacked axis.
NAMES = {
    'embed': 'model.embed_tokens.weight',
    'norm': 'model.norm.weight',
    'head': 'lm_head.weight',
    'layers/attention/norm': LAYER + 'input_layernorm.weight',
    'layers/mlp/norm': LAYER + 'post_attention_layernorm.weight',
    **{f'layers/attention/{n}': f'{LAYER}self_attn.{n}_proj.weight' for n in 'qkvo'},
    **{f'layers/attention/{n}_bias': f'{LAYER}self_attn.{n}_proj.bias' for n in 'qkvo'},
    **{f'layers/attention/{n}_norm': f'{LAYER}self_attn.{n}_norm.weight' for n in 'qk'},
    **{f'layers/mlp/{n}': f'{LAYER}mlp.{n}_proj.weight' for n in ('gate', 'up', 'down')},
    **{f'layers/mlp/{n}_bias': f'{LAYER}mlp.{n}_proj.bias' for n in ('gate', 'up', 'down')},
}
ACTIVATIONS = {'silu': 'silu', 'swish': 'silu', 'gelu': 'gelu', 'gelu_pytorch_tanh': 'gelu_tanh'}
LAYER_TYPES = {'full_attention': 'global', 'sliding_attention': 'local'}
# Written where a model has no limit of its own: the field must hold a number.
POSITIONS = 131_072


@dataclasses.dataclass(frozen=True)
class Family:
    """One architecture of transformers.

    Attributes:
      model_type: as `config.json` names it.
      architecture: its class with a language-model head.
      config_class: its config class in transformers.
      read: a transformers config -> fields of `ModelConfig`.
      write: a `ModelConfig` -> arguments of the config class.
      names: our leaf -> name of its tensor.
      fused: name of a tensor -> our leaves that lie side by side along its output axis.
    """

    model_type: str
    architecture: str
    config_class: str
    read: Callable[[Any], dict]
    write: Callable[[ModelConfig], dict]
    names: Mapping[str, str] = dataclasses.field(default_factory=lambda: NAMES)
    fused: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a folder, for every layer (and expert) at once.

    Attributes:
      name: with a {} for each stacked axis of our leaves.
      parts: our leaves, side by side along the first axis of the tensor.
      stacked: sizes of the stacked axes.
      shapes: of each part as the folder holds it, unstacked.
      transposed: the folder holds [out, in], we hold [in, out].
    """

    name: str
    parts: tuple[str, ...]
    stacked: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    transposed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor, as the folder holds it."""
        return (sum(shape[0] for shape in self.shapes), *self.shapes[0][1:])


def tensors(family: Family, config: ModelConfig) -> list[Tensor]:
    """Lists the tensors of a folder that holds a model, in the order of our tree."""
    leaves = {
        path_name(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            spec.specs(config), is_leaf=spec.is_spec
        )
    }
    first_of = {parts[0]: name for name, parts in family.fused.items()}
    hidden = {part for parts in family.fused.values() for part in parts[1:]}
    tensors = []
    for leaf in leaves:
        if leaf in hidden:
            continue
        name = first_of.get(leaf) or family.names[leaf]
        parts = family.fused.get(name, (leaf,))
        stacked = name.count('{}')
        shapes = [leaves[part].shape[stacked:] for part in parts]
        transposed = len(shapes[0]) == 2 and leaf != 'embed'
        shapes = tuple(tuple(reversed(shape)) if transposed else shape for shape in shapes)
        tensors.append(Tensor(name, parts, leaves[leaf].shape[:stacked], shapes, transposed))
    return tensors


def read_common(c: Any) -> dict:
    """Reads the fields that transformers configs of all families spell alike."""
    return {
        'vocab_size': c.vocab_size,
        'dim': c.hidden_size,
        'layers': c.num_hidden_layers,
        'heads': c.num_attention_heads,
        'kv_heads': c.num_key_value_heads,
        'head_dim': getattr(c, 'head_dim', None) or c.hidden_size // c.num_attention_heads,
        'mlp_dim': c.intermediate_size,
        'activation': read_activation(getattr(c, 'hidden_act', None) or c.hidden_activation),
        'norm_eps': c.rms_norm_eps,
        'tied': c.tie_word_embeddings,
        'max_positions': c.max_position_embeddings,
    }


def write_common(m: ModelConfig) -> dict:
    """Inverts `read_common`."""
    return {
        'vocab_size': m.vocab_size,
        'hidden_size': m.dim,
        'num_hidden_layers': m.layers,
        'num_attention_heads': m.heads,
        'num_key_value_heads': m.kv_heads,
        'head_dim': m.head_dim,
        'intermediate_size': m.mlp_dim,
        'hidden_act': {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}[
            m.activation
        ],
        'rms_norm_eps': m.norm_eps,
        'tie_word_embeddings': m.tied,
        'max_position_embeddings': m.max_positions or POSITIONS,
    }


def read_activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise UserError(f'activation "{name}" is not one of {listing(ACTIVATIONS)}.')
    return ACTIVATIONS[name]


def read_rope(parameters: Mapping[str, Any], positions: int) -> dict:
    """Reads the fields of the global rotary table.

    Args:
      parameters: `rope_parameters` of a transformers config.
      positions: its `max_position_embeddings`, from which some scalings take what they do not say.
    """
    kind = parameters.get('rope_type', 'default')
    name = 'none' if kind == 'default' else kind
    known = config_names.functions(rope)
    if name not in known:
        raise UserError(
            f'RoPE scaling "{kind}" is not one of default, '
            f'{listing(n for n in known if n != "none")}.'
        )
    schema = configs.knobs(known[name])
    knobs = {
        k: tuple(v) if isinstance(v, list) else v
        for k, v in parameters.items()
        if k in schema and v is not None
    }
    if name == 'dynamic':
        knobs['original_max_position_embeddings'] = positions
    if name in ('yarn', 'longrope') and 'factor' not in knobs:
        knobs['factor'] = positions / knobs['original_max_position_embeddings']
    defaults = {k: v for k, v in schema.items() if k not in knobs}
    missing = [k for k, v in defaults.items() if v is configs.REQUIRED]
    if missing:
        raise UserError(f'RoPE scaling "{kind}" lacks {listing(missing)}.')
    return {
        'rope_theta': float(parameters['rope_theta']),
        'rope_scaling': {'name': name, **defaults, **knobs},
    }


def write_rope(m: ModelConfig) -> dict:
    """Inverts `read_rope`: returns `rope_parameters`; `length` is the run's, not the model's."""
    scaling = dict(m.rope_scaling)
    name = scaling.pop('name')
    scaling.pop('length', None)
    if name == 'dynamic':
        # This one has no such entry: its original length is the config's `max_position_embeddings`.
        del scaling['original_max_position_embeddings']
    written = {'rope_type': 'default' if name == 'none' else name, 'rope_theta': m.rope_theta}
    return written | {
        k: list(v) if isinstance(v, tuple) else v for k, v in scaling.items() if v is not None
    }


def read_layers(types: Sequence[str] | None, window: int | None) -> dict:
    """Reads which layers see a window; with `types` None or empty, all do if there is one."""
    types = types or (['sliding_attention'] if window else ['full_attention'])
    for kind in types:
        if kind not in LAYER_TYPES:
            raise UserError(f'layers of type "{kind}" are not among {listing(LAYER_TYPES)}.')
    kinds = tuple(LAYER_TYPES[kind] for kind in types)
    return {
        'attention_pattern': shortest(kinds),
        'window': (window or 0) if 'local' in kinds else 0,
    }


def write_layers(m: ModelConfig) -> dict:
    """Inverts `read_layers`."""
    back = {ours: theirs for theirs, ours in LAYER_TYPES.items()}
    return {
        'layer_types': [back[kind.removesuffix('_nope')] for kind in m.kinds],
        'sliding_window': m.window or None,
    }


def shortest(kinds: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the shortest pattern that repeats to `kinds`."""
    for period in range(1, len(kinds)):
        if kinds[period:] == kinds[:-period]:
            return kinds[:period]
    return kinds
