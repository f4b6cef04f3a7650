"""OLMo 2: norms of what a block adds instead of what it reads, and of whole rows of query and key
heads."""

from typing import Any

from reasonjax.interop.huggingface.families.base import (
    LAYER,
    NAMES,
    Family,
    read_common,
    read_rope,
    write_common,
    write_rope,
)
from reasonjax.model.config import ModelConfig


def _read(c: Any) -> dict:
    biases = {'qkv_bias': c.attention_bias, 'o_bias': c.attention_bias}
    return (
        read_common(c)
        | read_rope(c.rope_parameters, c.max_position_embeddings)
        | biases
        | {'norms': 'after', 'qk_norm': 'row'}
    )


def _write(m: ModelConfig) -> dict:
    return write_common(m) | {'rope_parameters': write_rope(m), 'attention_bias': m.qkv_bias}


OLMO_NAMES = {
    **NAMES,
    'layers/attention/post_norm': f'{LAYER}post_attention_layernorm.weight',
    'layers/mlp/post_norm': f'{LAYER}post_feedforward_layernorm.weight',
}
OLMO2 = Family('olmo2', 'Olmo2ForCausalLM', 'Olmo2Config', _read, _write, OLMO_NAMES)
