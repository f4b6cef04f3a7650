"""Gemma 2 and Gemma 3 (text): scales kept as differences from one, norms around blocks, scaled
embeddings, soft-caps, local layers."""

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
    if c.use_bidirectional_attention:
        raise UserError('use_bidirectional_attention: this model is an encoder, not a decoder.')
    return (
        read_common(c)
        | read_layers(c.layer_types, c.sliding_window)
        | {
            'norms': 'around',
            'norm_offset': 1.0,
            'embed_scale': c.hidden_size**0.5,
            'query_scale': c.query_pre_attn_scalar**-0.5,
            'qkv_bias': c.attention_bias,
            'o_bias': c.attention_bias,
            'attention_softcap': c.attn_logit_softcapping or 0.0,
            'logit_softcap': c.final_logit_softcapping or 0.0,
        }
    )


def _write_shared(m: ModelConfig) -> dict:
    common = write_common(m)
    return (
        common
        | write_layers(m)
        | {
            'hidden_activation': common.pop('hidden_act'),
            'query_pre_attn_scalar': _whole(m.query_scale**-2) if m.query_scale else m.head_dim,
            'attention_bias': m.qkv_bias,
            'attn_logit_softcapping': m.attention_softcap or None,
            'final_logit_softcapping': m.logit_softcap or None,
        }
    )


def _whole(x: float) -> float | int:
    """Rounds a number that is whole but for the error of a square root."""
    return round(x) if abs(x - round(x)) < 1e-6 * x else x


def _read_gemma2(c: Any) -> dict:
    return _read_shared(c) | read_rope(c.rope_parameters, c.max_position_embeddings)


def _write_gemma2(m: ModelConfig) -> dict:
    return _write_shared(m) | {'rope_parameters': write_rope(m)}


def _read_gemma3(c: Any) -> dict:
    local = c.rope_parameters['sliding_attention']
    if local.get('rope_type', 'default') != 'default':
        raise UserError(f'local layers with RoPE scaling "{local["rope_type"]}" are not supported.')
    tables = read_rope(c.rope_parameters['full_attention'], c.max_position_embeddings)
    return (
        _read_shared(c)
        | tables
        | {'rope_local_theta': float(local['rope_theta']), 'qk_norm': 'head'}
    )


def _write_gemma3(m: ModelConfig) -> dict:
    local = {'rope_type': 'default', 'rope_theta': m.rope_local_theta or m.rope_theta}
    return _write_shared(m) | {
        'rope_parameters': {'full_attention': write_rope(m), 'sliding_attention': local}
    }


GEMMA_NAMES = {
    **NAMES,
    'layers/attention/post_norm': f'{LAYER}post_attention_layernorm.weight',
    'layers/mlp/norm': f'{LAYER}pre_feedforward_layernorm.weight',
    'layers/mlp/post_norm': f'{LAYER}post_feedforward_layernorm.weight',
}
GEMMA2 = Family(
    'gemma2', 'Gemma2ForCausalLM', 'Gemma2Config', _read_gemma2, _write_gemma2, GEMMA_NAMES
)
GEMMA3 = Family(
    'gemma3_text', 'Gemma3ForCausalLM', 'Gemma3TextConfig', _read_gemma3, _write_gemma3, GEMMA_NAMES
)
