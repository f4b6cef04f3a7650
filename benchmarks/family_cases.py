"""The models of `benchmarks.families`: every family of transformers that is read, with its quirks,
at a tiny size."""

import dataclasses
from collections.abc import Mapping
from typing import Any

# Tokens of the longest prompt, of a completion, and of a row of the batch.
PROMPT, NEW = 8, 32
LENGTH = PROMPT + NEW
SHAPE = dict(
    vocab_size=29,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=40,
    max_position_embeddings=64,
    attn_implementation='eager',
    pad_token_id=None,
    bos_token_id=None,
    eos_token_id=None,
)


def _rope(kind: str, theta: float = 1e4, **knobs: Any) -> dict:
    return {'rope_parameters': {'rope_type': kind, 'rope_theta': theta, **knobs}}


def _longrope(original: int) -> dict:
    factors = dict(
        short_factor=[1.0, 1.1, 1.3], long_factor=[2.0, 3.0, 4.0], partial_rotary_factor=0.75
    )
    return _rope('longrope', **factors) | {'original_max_position_embeddings': original}


def _gemma3(**scaling: Any) -> dict:
    full = {'rope_type': 'default', 'rope_theta': 1e6} | scaling
    return {
        'rope_parameters': {
            'full_attention': full,
            'sliding_attention': {'rope_type': 'default', 'rope_theta': 1e4},
        }
    }


@dataclasses.dataclass(frozen=True)
class Case:
    """A family with some of its quirks.

    Attributes:
      name: of the row.
      family: name of its config class in transformers, without 'Config'.
      about: the quirks.
      fields: of the config class, beside `SHAPE`.
      length: `rope_scaling.length` of the run; 0 where the frequencies do not depend on it.
      seed: of the weights; chosen where another's greedy tokens come near a tie.
    """

    name: str
    family: str
    about: str
    fields: Mapping[str, Any]
    length: int = 0
    seed: int = 0

    @property
    def mixture(self) -> bool:
        """Whether a router picks experts."""
        return self.family in ('Mixtral', 'Qwen3Moe')


_WIDE = dict(head_dim=12)
_LLAMA3 = _rope(
    'llama3',
    5e5,
    factor=4.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)
_MOE = dict(_WIDE, num_experts=5, moe_intermediate_size=24)
_GEMMA = dict(_WIDE, sliding_window=5, query_pre_attn_scalar=24)
CASES = (
    Case('llama-2', 'Llama', 'one key head per query head', dict(num_key_value_heads=4)),
    Case('llama-3.1', 'Llama', 'grouped queries, llama3 RoPE', _LLAMA3),
    Case('llama-3.2', 'Llama', 'llama3 RoPE, tied head', dict(_LLAMA3, tie_word_embeddings=True)),
    Case(
        'llama-bias',
        'Llama',
        'biases in attention and MLP, exact GELU',
        dict(attention_bias=True, mlp_bias=True, hidden_act='gelu'),
    ),
    Case('llama-linear', 'Llama', 'linear RoPE', _rope('linear', factor=4.0)),
    Case(
        'llama-dynamic',
        'Llama',
        'dynamic RoPE, run longer than the original',
        _rope('dynamic', factor=4.0) | dict(max_position_embeddings=16),
        LENGTH,
    ),
    Case('mistral', 'Mistral', 'sliding window, wide heads', dict(_WIDE, sliding_window=5)),
    Case('qwen-2.5', 'Qwen2', 'biases on queries, keys, values', dict(num_key_value_heads=1)),
    Case(
        'qwen-2.5-window',
        'Qwen2',
        'sliding window in the upper layer',
        dict(use_sliding_window=True, sliding_window=5, max_window_layers=1),
    ),
    Case(
        'qwen-2.5-yarn',
        'Qwen2',
        'YaRN',
        _rope('yarn', 1e6, factor=4.0, original_max_position_embeddings=16),
    ),
    Case('qwen-3', 'Qwen3', 'per-head norms, wide heads', _WIDE),
    Case(
        'qwen-3-tied',
        'Qwen3',
        'tied head, biases in attention',
        dict(_WIDE, tie_word_embeddings=True, attention_bias=True),
    ),
    Case(
        'qwen-3-moe',
        'Qwen3Moe',
        '3 of 5 experts, weights normalised',
        dict(_MOE, num_experts_per_tok=3, norm_topk_prob=True),
    ),
    Case(
        'qwen-3-moe-raw',
        'Qwen3Moe',
        '2 of 5 experts, weights not normalised',
        dict(_MOE, num_experts_per_tok=2, norm_topk_prob=False),
    ),
    Case(
        'mixtral',
        'Mixtral',
        '2 of 4 experts, sliding window',
        dict(num_local_experts=4, sliding_window=5),
    ),
    Case(
        'gemma-2',
        'Gemma2',
        'norms around blocks, soft-caps, alternating window',
        dict(_GEMMA, attn_logit_softcapping=2.0, final_logit_softcapping=4.0),
    ),
    Case(
        'gemma-3',
        'Gemma3Text',
        'two windowed layers, then a global one, two RoPE bases',
        dict(_GEMMA, **_gemma3(), num_hidden_layers=4, sliding_window_pattern=3),
    ),
    Case(
        'gemma-3-linear',
        'Gemma3Text',
        'linear RoPE on the global layer',
        dict(_GEMMA, **_gemma3(rope_type='linear', factor=8.0), sliding_window_pattern=2),
    ),
    Case('olmo-2', 'Olmo2', 'norms after blocks, norms over whole query and key rows', {}, seed=1),
    Case(
        'phi-3',
        'Phi3',
        'fused projections, sliding window',
        dict(_rope('default'), sliding_window=5),
    ),
    Case('phi-3-short', 'Phi3', 'LongRoPE, run within the original length', _longrope(48), LENGTH),
    Case(
        'phi-3-long',
        'Phi3',
        'LongRoPE, run beyond the original length',
        _longrope(16),
        LENGTH,
        seed=1,
    ),
    Case(
        'phi-4-mini',
        'Phi3',
        'three quarters of a head rotated, tied head',
        dict(_rope('default', partial_rotary_factor=0.75), tie_word_embeddings=True),
    ),
    Case(
        'smollm-3',
        'SmolLM3',
        'every other layer without positions, tied head',
        dict(no_rope_layer_interval=2),
    ),
    Case(
        'smollm-3-window',
        'SmolLM3',
        'windowed layer without positions',
        dict(
            no_rope_layers=[1, 0],
            use_sliding_window=True,
            sliding_window=5,
            tie_word_embeddings=False,
        ),
    ),
)
