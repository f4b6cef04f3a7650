"""The shape of a decoder."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from reasonjax import bounds
from reasonjax import config as configs
from reasonjax.bounds import (
    AtLeast,
    Between,
    Finite,
    NonNegative,
    OneOf,
    Positive,
    PositiveFraction,
    Real,
)
from reasonjax.errors import UserError, check_choice, divisor
from reasonjax.model import remat, rope
from reasonjax.model.dtypes import DTYPES

ACTIVATIONS = ('gelu', 'gelu_tanh', 'silu')
NORMS = ('before', 'after', 'around')
QK_NORMS = ('none', 'head', 'row')
LAYER_KINDS = ('global', 'local', 'global_nope', 'local_nope')
# Below, all scores would be alike; 0 is off.
Softcap = Real(1e-3, 1e6, beside=(0,))
ATTENTION_KERNELS = ('xla', 'cudnn', 'flash', 'splash')


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder: RMSNorm, rotary positions, grouped-query attention, an MLP or a mixture of them.

    Attributes:
      vocab_size: rows of the embedding, at least the tokenizer's size.
      dim: width of the residual stream.
      layers: number of blocks.
      heads: query heads.
      kv_heads: key and value heads; divides `heads`.
      head_dim: width of one head; heads * head_dim need not equal dim.
      mlp_dim: hidden width of the MLP, or of one expert.
      activation: 'silu', 'gelu' (exact) or 'gelu_tanh'.
      gated: act(x G) * (x U) D, SwiGLU with 'silu'; otherwise act(x U) D.
      experts: MLPs per layer, of which a router picks some for each token; 0 for one MLP and no
        router.
      experts_per_token: how many it picks.
      normalise_router: the weights of those picked sum to 1; otherwise they are their share of all.
      router_balance_weight: factor of the load-balancing loss in the training loss; 0 only reports
        it.
      router_z_weight: factor of the squared log-normaliser of the router in the training loss; 0
        only reports it.
      norms: where a block is normalised: its input ('before'), its output ('after'), or both
        ('around').
      norm_offset: added to the scale of every norm; 1 where scales are stored as differences from
        one (Gemma).
      norm_eps: added to the mean square.
      qk_norm: RMSNorm of queries and keys before the rotation, of each 'head' (Qwen3), of the whole
        'row' of heads (OLMo 2), or 'none'.
      qkv_bias: bias on the query, key and value projections (Qwen2).
      o_bias: bias on the attention's output projection.
      mlp_bias: bias on the MLP's projections.
      tied: the head is the embedding, transposed.
      embed_scale: factor of the embedding rows; sqrt(dim) in Gemma.
      query_scale: factor of attention scores; 0 for head_dim ** -0.5.
      attention_softcap: c tanh(score / c); 0 for none.
      logit_softcap: the same for the logits; 0 for none.
      attention_pattern: kinds of the layers, repeated over the depth: 'global', 'local' (sees
        `window` positions), either with '_nope' behind it for layers without rotary positions.
      window: a local layer sees this many positions, its own included; 0 where no layer is local.
      rope_theta: base of the rotary frequencies.
      rope_scaling: a function of `model.rope` with its knobs.
      rope_local_theta: base of the local layers' own, unscaled frequencies; 0 where they share the
        global ones.
      rope_fraction: share of a head's width that is rotated.
      max_positions: longest sequence the positions are good for; 0 for no limit.
      embed_std: standard deviation of fresh embedding rows.
      pad_id: this id gets logit -1e9 in the sampler and in the loss, so PAD can never be sampled;
        -1 forbids none.
      param_dtype: dtype parameters are stored in.
      compute_dtype: dtype of activations and products; softmax, norms, log-probs and losses are
        float32.
      scan: loop over layers with `lax.scan` (compiles once per layer shape) instead of unrolling
        (faster for few layers).
      remat: what the backward pass recomputes; see `model.remat`.
      attention_chunk: queries per chunk of the attention in training and prefill; 0 takes blocks of
        a quarter, each with the keys that it may see.
      attention_kernel: what computes attention in training, scoring and prefill: 'xla' anywhere,
        'cudnn' or 'flash' on GPUs, 'splash' on TPUs; see `model.kernels`.
      logprob_chunk: positions per chunk of the vocabulary projection; 0 takes all at once.
    """

    vocab_size: AtLeast(1)
    dim: AtLeast(1)
    layers: Between(1, 2**17)
    heads: AtLeast(1)
    kv_heads: AtLeast(1)
    head_dim: AtLeast(1)
    mlp_dim: AtLeast(1)
    activation: OneOf(*ACTIVATIONS) = 'silu'
    gated: bool = True
    experts: AtLeast(0) = 0
    experts_per_token: AtLeast(1) = 2
    normalise_router: bool = True
    router_balance_weight: NonNegative = 0.0
    router_z_weight: NonNegative = 0.0
    norms: OneOf(*NORMS) = 'before'
    norm_offset: Finite = 0.0
    norm_eps: PositiveFraction = 1e-6
    qk_norm: OneOf(*QK_NORMS) = 'none'
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False
    embed_scale: Real(0, 1e6, above=True) = 1.0
    query_scale: Real(0, 1e6) = 0.0
    attention_softcap: Softcap = 0.0
    logit_softcap: Softcap = 0.0
    attention_pattern: tuple[OneOf(*LAYER_KINDS), ...] = ('global',)
    window: AtLeast(0) = 0
    rope_theta: Positive = 1e4
    rope_scaling: tuple[tuple[str, Any], ...] = (('name', 'none'),)
    rope_local_theta: NonNegative = 0.0
    rope_fraction: PositiveFraction = 1.0
    max_positions: AtLeast(0) = 0
    embed_std: Real(0, 1e4) = 0.02
    pad_id: AtLeast(-1) = -1
    param_dtype: OneOf(*DTYPES) = 'float32'
    compute_dtype: OneOf(*DTYPES) = 'float32'
    scan: bool = False
    remat: str = 'none'
    attention_chunk: AtLeast(0) = 0
    attention_kernel: OneOf(*ATTENTION_KERNELS) = 'xla'
    logprob_chunk: AtLeast(0) = 0

    @property
    def rotated(self) -> int:
        """Width of a head's rotated part."""
        return int(self.head_dim * self.rope_fraction)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of every layer."""
        return tuple(
            self.attention_pattern[i % len(self.attention_pattern)] for i in range(self.layers)
        )

    @property
    def local(self) -> tuple[bool, ...]:
        """Which layers see a window."""
        return tuple(kind.startswith('local') for kind in self.kinds)

    @property
    def rope_of_layer(self) -> tuple[str, ...]:
        """Which rotary table each layer reads."""
        own = 'local' if self.rope_local_theta else 'global'
        return tuple(
            'nope' if kind.endswith('nope') else own if kind == 'local' else 'global'
            for kind in self.kinds
        )

    @property
    def rope_tables(self) -> tuple[str, ...]:
        """The rotary tables that some layer reads, each once."""
        return tuple(dict.fromkeys(self.rope_of_layer))


# What a run may choose for a model whose shape is given: everything else is the shape.
CHOSEN = (
    'pad_id',
    'param_dtype',
    'compute_dtype',
    'scan',
    'remat',
    'attention_chunk',
    'attention_kernel',
    'logprob_chunk',
    'embed_std',
    'router_balance_weight',
    'router_z_weight',
    'max_positions',
)


def from_config(model: Mapping[str, Any], *, vocab_size: int, pad_id: int) -> ModelConfig:
    """Builds the model's shape from `config.model`.

    Args:
      model: fields of `ModelConfig`; `vocab_size` 0 takes the tokenizer's.
      vocab_size: ids the tokenizer produces, the mask id included.
      pad_id: the tokenizer's padding id.

    Raises:
      UserError: unknown field, impossible value, or a vocabulary smaller than the tokenizer's.
    """
    check_fields(model)
    given = dict(model)
    given['vocab_size'] = given.get('vocab_size') or vocab_size
    given['pad_id'] = pad_id
    if 'attention_pattern' in given:
        given['attention_pattern'] = tuple(given['attention_pattern'])
    if 'rope_scaling' in given:
        given['rope_scaling'] = frozen(given['rope_scaling'])
    config = ModelConfig(**given)
    check(config, vocab_size)
    return config


def check_fields(model: Mapping[str, Any]) -> None:
    """Raises UserError where `config.model` lacks a field, has one that is none, or a value that is
    not within the field's bound."""
    fields = {f.name: f for f in dataclasses.fields(ModelConfig)}
    for name, field in fields.items():
        if field.default is dataclasses.MISSING and name not in model and name != 'vocab_size':
            raise UserError(f'config.model.{name}: missing; it has no default.')
    for name in model:
        check_choice(f'config.model.{name}: no such field', name, fields, 'Fields')
        default = (
            bounds.NOTHING if fields[name].default is dataclasses.MISSING else fields[name].default
        )
        if name != 'rope_scaling':  # a function, whose knobs are checked as such
            kind = AtLeast(0) if name == 'vocab_size' else fields[name].type
            bounds.check(model[name], kind, f'config.model.{name}', default)


def frozen(scaling: Mapping[str, Any] | tuple) -> tuple[tuple[str, Any], ...]:
    """Converts the name and the knobs of a function to a hashable tuple of pairs."""
    return tuple(
        (name, tuple(value) if isinstance(value, list) else value)
        for name, value in sorted(dict(scaling).items())
    )


def check(config: ModelConfig, tokenizer_vocab: int) -> None:
    """Raises UserError where the numbers cannot be a model."""
    if config.vocab_size < tokenizer_vocab:
        raise UserError(
            f'config.model.vocab_size={config.vocab_size}: the tokenizer produces ids up to '
            f'{tokenizer_vocab - 1}; '
            f'set it to at least {tokenizer_vocab}, or 0 to take the size from the tokenizer.'
        )
    if config.heads % config.kv_heads:
        best = divisor(config.heads, config.kv_heads)
        raise UserError(
            f'config.model.kv_heads={config.kv_heads}: must divide heads={config.heads}; nearest: '
            f'{best}.'
        )
    if config.rotated < 2 or config.rotated % 2:
        raise UserError(
            f'config.model.head_dim={config.head_dim}, rope_fraction={config.rope_fraction}: '
            'rotary positions need an even width.'
        )
    if config.experts and config.experts_per_token > config.experts:
        raise UserError(
            f'config.model.experts_per_token={config.experts_per_token}: there are '
            f'{config.experts} experts.'
        )
    if config.experts and (config.mlp_bias or not config.gated):
        raise UserError(
            'config.model.experts: experts are gated MLPs without bias; set gated=True and '
            'mlp_bias=False.'
        )
    remat.check(config.remat)
    _check_layers(config)
    # Made here, so that a wrong scaling is an error before anything is built.
    for table in config.rope_tables:
        frequencies(config, table)


def frequencies(config: ModelConfig, table: str) -> rope.Frequencies:
    """Radians per position [rotated / 2], float64, and the factor of cosines and sines.

    Args:
      config: the model's shape.
      table: 'global', 'local' (its own base, unscaled) or 'nope' (no rotation: the identity).

    Raises:
      UserError: an unknown scaling, or one that does not give finite numbers.
    """
    width = config.rotated
    if table == 'nope':
        return np.zeros(width // 2), 1.0
    theta, scaling, key = config.rope_theta, dict(config.rope_scaling), 'model.rope_scaling'
    if table == 'local':
        theta, scaling, key = config.rope_local_theta, {'name': 'none'}, 'model.rope_local_theta'
    where = f'config.{key}: the {table} rotary table of base {theta:g} and {scaling}'
    with np.errstate(all='ignore'):
        try:
            frequency, factor = configs.resolve(scaling, 'rope_scaling', key)(theta, width)
        except (ArithmeticError, ValueError) as error:
            raise (
                error
                if isinstance(error, UserError)
                else UserError(f'{where} cannot be worked out ({error}).')
            ) from error
        # In float32, in which angles are computed.
        wrong = np.flatnonzero(
            ~(np.isfinite(np.asarray(frequency, np.float32)) & (np.asarray(frequency) >= 0))
        )
    if len(wrong):
        raise UserError(
            f'{where}: {len(wrong)} of {width // 2} frequencies (first: dimension {wrong[0]}) are '
            'not finite numbers.'
        )
    if not 0 < factor < np.inf:
        raise UserError(f'{where} has the factor {factor:g}; it must be finite, above 0.')
    return frequency, factor


def _check_layers(config: ModelConfig) -> None:
    if not config.attention_pattern:
        raise UserError(
            'config.model.attention_pattern: names no kind of layer; ("global",) makes all alike.'
        )
    if any(config.local) and not config.window:
        raise UserError(
            'config.model.window=0: attention_pattern has local layers, which need a window.'
        )


def to_dict(config: ModelConfig) -> dict[str, Any]:
    """Returns the fields in the form JSON takes, for checkpoints and configs; `from_config` reads
    them back."""
    return dataclasses.asdict(config) | {'rope_scaling': dict(config.rope_scaling)}
