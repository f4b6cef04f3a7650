"""Phi-3 and Phi-4-mini: projections fused in the folder, a rotated part of each head, LongRoPE."""

from typing import Any

from reasonjax.interop.huggingface.families.base import (
    LAYER,
    Family,
    read_common,
    read_layers,
    read_rope,
    write_common,
    write_rope,
)
from reasonjax.model.config import ModelConfig


def _read(c: Any) -> dict:
    rope = read_rope(c.rope_parameters, c.max_position_embeddings)
    return (
        read_common(c)
        | rope
        | read_layers(None, c.sliding_window)
        | {'rope_fraction': c.rope_parameters['partial_rotary_factor']}
    )


def _write(m: ModelConfig) -> dict:
    rope = write_rope(m) | {'partial_rotary_factor': m.rope_fraction}
    # The class also keeps this one beside the rotary parameters, and lets it win.
    original = rope.get('original_max_position_embeddings', m.max_positions or 4096)
    written = {
        'rope_parameters': rope,
        'sliding_window': m.window or None,
        'original_max_position_embeddings': original,
    }
    return write_common(m) | written


FUSED = {
    f'{LAYER}self_attn.qkv_proj.weight': tuple(f'layers/attention/{n}' for n in 'qkv'),
    f'{LAYER}mlp.gate_up_proj.weight': ('layers/mlp/gate', 'layers/mlp/up'),
}
PHI3 = Family('phi3', 'Phi3ForCausalLM', 'Phi3Config', _read, _write, fused=FUSED)
