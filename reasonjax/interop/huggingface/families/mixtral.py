"""Mixtral: a mixture of experts in every layer, the weights of those picked normalised."""

from typing import Any

from reasonjax.interop.huggingface.families.base import (
    LAYER,
    NAMES,
    Family,
    read_common,
    read_layers,
    read_rope,
    write_common,
    write_rope,
)
from reasonjax.model.config import ModelConfig


def _read(c: Any) -> dict:
    experts = {
        'experts': c.num_local_experts,
        'experts_per_token': c.num_experts_per_tok,
        'normalise_router': True,
    }
    return (
        read_common(c)
        | read_rope(c.rope_parameters, c.max_position_embeddings)
        | read_layers(None, c.sliding_window)
        | experts
    )


def _write(m: ModelConfig) -> dict:
    experts = {'num_local_experts': m.experts, 'num_experts_per_tok': m.experts_per_token}
    return (
        write_common(m)
        | {'rope_parameters': write_rope(m), 'sliding_window': m.window or None}
        | experts
    )


EXPERT = f'{LAYER}block_sparse_moe.experts.{{}}.'
MIXTRAL_NAMES = {
    **NAMES,
    'layers/mlp/router': f'{LAYER}block_sparse_moe.gate.weight',
    'layers/mlp/gate': f'{EXPERT}w1.weight',
    'layers/mlp/down': f'{EXPERT}w2.weight',
    'layers/mlp/up': f'{EXPERT}w3.weight',
}
MIXTRAL = Family('mixtral', 'MixtralForCausalLM', 'MixtralConfig', _read, _write, MIXTRAL_NAMES)
