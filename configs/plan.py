r"""GRPO at sizes that need a pod, to be planned before one is rented; nothing is downloaded,
nothing is run.

    python -m reasonjax.plan --config configs/plan.py:qwen3_8b --topology v5e:16x16
    python -m reasonjax.plan --config configs/plan.py:llama3_70b --topology '2*v5p:4x4x8' \
        --config.mesh.data=2 --config.mesh.tensor=8

2048 completions of up to 3072 tokens a step, 8 to a prompt of up to 1024; float32 parameters and
moments, bfloat16 arithmetic; every weight trains, no reference model. What these plans say is in
docs/PLAN.md. To train such a model, start from configs/hf.py: it brings data and tokenizer.
"""

import importlib

import ml_collections

from configs import base
from reasonjax.errors import UserError, listing, nearest

SIZES = ('qwen3_0_6b', 'qwen3_1_7b', 'qwen3_8b', 'qwen3_32b', 'llama3_70b')


def get_config(size: str = 'qwen3_8b') -> ml_collections.ConfigDict:
    if size not in SIZES:
        raise UserError(
            f'configs/plan.py:{size}: no such model.{nearest(size, SIZES)} Models: '
            f'{listing(SIZES)}.'
        )
    c = base.common()
    c.model = importlib.import_module(f'configs.models.{size}').get_config()
    c.model.attention_chunk = 512
    c.mesh.data, c.mesh.fsdp = 1, -1
    c.grpo = base.online(c)
    c.grpo.update(num_prompts=256, num_generations=8, max_completion_length=3072, accumulation=8)
    c.grpo.data.max_prompt_length = 1024
    c.grpo.filter = dict(name='all')
    c.grpo.advantage = dict(name='group_relative', scale_rewards='group')
    c.grpo.objective = dict(
        name='clipped_policy_gradient', loss_type='dapo', epsilon=0.2, epsilon_high=None, beta=0.0
    )
    c.grpo.learning_rate = dict(name='constant', peak=1e-6, warmup_steps=10)
    c.grpo.optimizer = dict(name='adamw', b1=0.9, b2=0.98, weight_decay=0.0, clip_norm=1.0)
    c.stages = ('grpo',)
    return c
