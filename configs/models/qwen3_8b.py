"""Qwen3 8B: 8.19 billion parameters."""

import ml_collections

from configs.models import qwen3_0_6b


def get_config() -> ml_collections.ConfigDict:
    c = qwen3_0_6b.get_config()
    c.update(dim=4096, layers=36, heads=32, mlp_dim=12_288, tied=False)
    return c
