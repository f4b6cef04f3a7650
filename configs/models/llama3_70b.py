"""Llama 3 70B: 70.6 billion parameters."""

import ml_collections

from configs.models import qwen3_8b


def get_config() -> ml_collections.ConfigDict:
    c = qwen3_8b.get_config()
    c.update(vocab_size=128_256, dim=8192, layers=80, heads=64, mlp_dim=28_672)
    c.update(qk_norm='none', norm_eps=1e-5, rope_theta=5e5)
    return c
