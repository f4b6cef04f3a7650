"""Qwen3 0.6B: 596 million parameters."""

import ml_collections

from configs.models import tiny


def get_config() -> ml_collections.ConfigDict:
    c = tiny.get_config()
    c.update(
        vocab_size=151_936, dim=1024, layers=28, heads=16, kv_heads=8, head_dim=128, mlp_dim=3072
    )
    c.update(
        activation='silu', gated=True, qk_norm='head', tied=True, rope_theta=1e6, embed_std=0.02
    )
    c.update(
        param_dtype='float32', compute_dtype='bfloat16', scan=True, remat='full', logprob_chunk=512
    )
    return c
