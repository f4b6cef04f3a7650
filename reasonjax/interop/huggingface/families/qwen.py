"""Qwen2 and 2.5 (biases on queries, keys and values), Qwen3 (norms of heads), Qwen3-MoE."""

from typing import Any

from reasonjax.errors import UserError
from reasonjax.interop.huggingface.families.base import (
    LAYER,
    NAMES,
    Family,
    read_common,
    read_layers,
    read_rope,
    write_common,
    write_layers,
    write_rope,
)
from reasonjax.model.config import ModelConfig


def _read_shared(c: Any) -> dict:
    return read_common(c) | read_rope(c.rope_parameters, c.max_position_embeddings)


def _write_shared(m: ModelConfig) -> dict:
    return write_common(m) | {'rope_parameters': write_rope(m), 'use_sliding_window': any(m.local)}


def _read_qwen2(c: Any) -> dict:
    return _read_shared(c) | read_layers(c.layer_types, c.sliding_window) | {'qkv_bias': True}


def _write_qwen2(m: ModelConfig) -> dict:
    return _write_shared(m) | write_layers(m)


def _read_qwen3(c: Any) -> dict:
    biases = {'qkv_bias': c.attention_bias, 'o_bias': c.attention_bias}
    return (
        _read_shared(c)
        | read_layers(c.layer_types, c.sliding_window)
        | biases
        | {'qk_norm': 'head'}
    )


def _write_qwen3(m: ModelConfig) -> dict:
    return _write_shared(m) | write_layers(m) | {'attention_bias': m.qkv_bias}


def _read_qwen3_moe(c: Any) -> dict:
    if c.mlp_only_layers or c.decoder_sparse_step != 1:
        raise UserError(
            'mixtures in some layers only (mlp_only_layers, decoder_sparse_step) are not supported.'
        )
    biases = {'qkv_bias': c.attention_bias, 'o_bias': c.attention_bias}
    experts = {
        'experts': c.num_experts,
        'experts_per_token': c.num_experts_per_tok,
        'normalise_router': c.norm_topk_prob,
    }
    widths = {'mlp_dim': c.moe_intermediate_size}
    return (
        _read_shared(c)
        | read_layers(None, c.sliding_window)
        | biases
        | experts
        | widths
        | {'qk_norm': 'head'}
    )


def _write_qwen3_moe(m: ModelConfig) -> dict:
    experts = {
        'num_experts': m.experts,
        'num_experts_per_tok': m.experts_per_token,
        'norm_topk_prob': m.normalise_router,
    }
    widths = {
        'moe_intermediate_size': m.mlp_dim,
        'sliding_window': m.window or None,
        'attention_bias': m.qkv_bias,
    }
    shared = _write_shared(m)
    # The width of an MLP that is no expert: there is none.
    shared.pop('intermediate_size')
    return shared | experts | widths | {'mlp_only_layers': [], 'decoder_sparse_step': 1}


MOE_NAMES = {
    **NAMES,
    'layers/mlp/router': f'{LAYER}mlp.gate.weight',
    **{
        f'layers/mlp/{n}': f'{LAYER}mlp.experts.{{}}.{n}_proj.weight'
        for n in ('gate', 'up', 'down')
    },
}
QWEN2 = Family('qwen2', 'Qwen2ForCausalLM', 'Qwen2Config', _read_qwen2, _write_qwen2)
QWEN3 = Family('qwen3', 'Qwen3ForCausalLM', 'Qwen3Config', _read_qwen3, _write_qwen3)
QWEN3_MOE = Family(
    'qwen3_moe',
    'Qwen3MoeForCausalLM',
    'Qwen3MoeConfig',
    _read_qwen3_moe,
    _write_qwen3_moe,
    MOE_NAMES,
)
