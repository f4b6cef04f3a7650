"""Qwen3 32B: 32.8 billion parameters."""

import ml_collections

from configs.models import qwen3_8b


def get_config() -> ml_collections.ConfigDict:
    c = qwen3_8b.get_config()
    c.update(dim=5120, layers=64, heads=64, mlp_dim=25_600)
    return c
