"""The shape of a decoder."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

from reasonjax.errors import UserError, listing, nearest

ACTIVATIONS = ('gelu', 'gelu_tanh', 'silu')
DTYPES = ('bfloat16', 'float16', 'float32')
REMAT = ('none', 'full', 'dots')


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A pre-norm decoder: RMSNorm, rotary positions, grouped-query attention, gated or plain MLP.

    Attributes:
      vocab_size: rows of the embedding, at least the tokenizer's size.
      dim: width of the residual stream.
      layers: number of blocks.
      heads: query heads.
      kv_heads: key and value heads; divides `heads`.
      head_dim: width of one head; heads * head_dim need not equal dim.
      mlp_dim: hidden width of the MLP.
      activation: 'silu', 'gelu' (exact) or 'gelu_tanh'.
      gated: act(x G) * (x U) D, SwiGLU with 'silu'; otherwise act(x U) D.
      qk_norm: RMSNorm of each query and key head before the rotation (Qwen3).
      qkv_bias: bias on the query, key and value projections (Qwen2).
      tied: the head is the embedding, transposed.
      norm_eps: added to the mean square.
      rope_theta: base of the rotary frequencies.
      embed_std: standard deviation of fresh embedding rows.
      pad_id: this id gets logit -1e9 in the sampler and in the loss, so PAD can never be sampled; -1 forbids none.
      param_dtype: dtype parameters are stored in.
      compute_dtype: dtype of activations and products; softmax, norms, log-probs and losses are float32.
      scan: loop over layers with `lax.scan` (compiles once per layer shape) instead of unrolling (faster for few layers).
      remat: what the backward pass recomputes: 'none', 'dots' (keeps products with weights), 'full' (keeps only block inputs).
      logprob_chunk: positions per chunk of the vocabulary projection; 0 takes all at once.
    """

    vocab_size: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_dim: int
    activation: str = 'silu'
    gated: bool = True
    qk_norm: bool = False
    qkv_bias: bool = False
    tied: bool = False
    norm_eps: float = 1e-6
    rope_theta: float = 1e4
    embed_std: float = 0.02
    pad_id: int = -1
    param_dtype: str = 'float32'
    compute_dtype: str = 'float32'
    scan: bool = False
    remat: str = 'none'
    logprob_chunk: int = 0


def from_config(model: Mapping[str, Any], *, vocab_size: int, pad_id: int) -> ModelConfig:
    """Builds the model's shape from `config.model`.

    Args:
      model: fields of `ModelConfig`; `vocab_size` 0 takes the tokenizer's.
      vocab_size: ids the tokenizer produces, the mask id included.
      pad_id: the tokenizer's padding id.

    Raises:
      UserError: unknown field, impossible value, or a vocabulary smaller than the tokenizer's.
    """
    fields = {f.name: f.type for f in dataclasses.fields(ModelConfig)}
    given = dict(model)
    for f in dataclasses.fields(ModelConfig):
        if f.default is dataclasses.MISSING and f.name not in given and f.name != 'vocab_size':
            raise UserError(f'config.model.{f.name}: missing; it has no default.')
    for name in given:
        if name not in fields:
            raise UserError(f'config.model.{name}: no such field.{nearest(name, fields)} Fields: {listing(fields)}.')
    given['vocab_size'] = given.get('vocab_size') or vocab_size
    given['pad_id'] = pad_id
    config = ModelConfig(**given)
    check(config, vocab_size)
    return config


def check(config: ModelConfig, tokenizer_vocab: int) -> None:
    """Raises UserError where the numbers cannot be a model."""
    if config.vocab_size < tokenizer_vocab:
        raise UserError(
            f'config.model.vocab_size={config.vocab_size}: the tokenizer produces ids up to {tokenizer_vocab - 1}; '
            f'set it to at least {tokenizer_vocab}, or 0 to take the size from the tokenizer.'
        )
    for name in ('dim', 'layers', 'heads', 'kv_heads', 'head_dim', 'mlp_dim'):
        if getattr(config, name) < 1:
            raise UserError(f'config.model.{name}={getattr(config, name)}: must be at least 1.')
    if config.heads % config.kv_heads:
        divisors = [d for d in range(1, config.heads + 1) if config.heads % d == 0]
        best = min(divisors, key=lambda d: abs(d - config.kv_heads))
        raise UserError(f'config.model.kv_heads={config.kv_heads}: must divide heads={config.heads}; nearest: {best}.')
    if config.head_dim % 2:
        raise UserError(f'config.model.head_dim={config.head_dim}: rotary positions need an even width.')
    positive = {'rope_theta': config.rope_theta > 0, 'norm_eps': config.norm_eps > 0}
    not_negative = {'embed_std': config.embed_std >= 0, 'logprob_chunk': config.logprob_chunk >= 0}
    for name, holds in (positive | not_negative).items():
        if not holds:
            wanted = 'positive' if name in positive else '0 or more'
            raise UserError(f'config.model.{name}={getattr(config, name)}: must be {wanted}.')
    for name, choices in (('param_dtype', DTYPES), ('compute_dtype', DTYPES), ('activation', ACTIVATIONS), ('remat', REMAT)):
        value = getattr(config, name)
        if value not in choices:
            raise UserError(f'config.model.{name}="{value}": unknown.{nearest(value, choices)} Known: {listing(choices)}.')


def to_dict(config: ModelConfig) -> types.MappingProxyType:
    """The fields as a read-only mapping, for checkpoints."""
    return types.MappingProxyType(dataclasses.asdict(config))
