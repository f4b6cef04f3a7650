"""Llama 2 and 3, Mistral (sliding window), SmolLM3 (layers without positions)."""

from typing import Any

from reasonjax.interop.huggingface.families.base import (
    Family,
    read_common,
    read_layers,
    read_rope,
    shortest,
    write_common,
    write_layers,
    write_rope,
)
from reasonjax.model.config import ModelConfig


def _read_llama(c: Any) -> dict:
    biases = {'qkv_bias': c.attention_bias, 'o_bias': c.attention_bias, 'mlp_bias': c.mlp_bias}
    return read_common(c) | read_rope(c.rope_parameters, c.max_position_embeddings) | biases


def _write_llama(m: ModelConfig) -> dict:
    return write_common(m) | {
        'rope_parameters': write_rope(m),
        'attention_bias': m.qkv_bias,
        'mlp_bias': m.mlp_bias,
    }


def _read_mistral(c: Any) -> dict:
    return (
        read_common(c)
        | read_rope(c.rope_parameters, c.max_position_embeddings)
        | read_layers(None, c.sliding_window)
    )


def _write_mistral(m: ModelConfig) -> dict:
    return write_common(m) | {'rope_parameters': write_rope(m), 'sliding_window': m.window or None}


def _read_smollm3(c: Any) -> dict:
    kinds = read_layers(c.layer_types, c.sliding_window)
    pattern = kinds['attention_pattern']
    every = (
        pattern[i % len(pattern)] + ('' if rotated else '_nope')
        for i, rotated in enumerate(c.no_rope_layers)
    )
    return _read_llama(c) | kinds | {'attention_pattern': shortest(tuple(every))}


def _write_smollm3(m: ModelConfig) -> dict:
    layers = {
        'no_rope_layers': [int(not kind.endswith('nope')) for kind in m.kinds],
        'use_sliding_window': any(m.local),
    }
    return _write_llama(m) | write_layers(m) | layers


LLAMA = Family('llama', 'LlamaForCausalLM', 'LlamaConfig', _read_llama, _write_llama)
MISTRAL = Family('mistral', 'MistralForCausalLM', 'MistralConfig', _read_mistral, _write_mistral)
SMOLLM3 = Family('smollm3', 'SmolLM3ForCausalLM', 'SmolLM3Config', _read_smollm3, _write_smollm3)
