"""Qwen3 1.7B: 1.72 billion parameters."""

import ml_collections

from configs.models import qwen3_0_6b


def get_config() -> ml_collections.ConfigDict:
    c = qwen3_0_6b.get_config()
    c.update(dim=2048, mlp_dim=6144)
    return c
