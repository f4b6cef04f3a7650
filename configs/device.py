"""What `python -m benchmarks.device` measures on an accelerator: SFT and drawing of a Qwen3 1.7B
shape, GRPO with LoRA of Qwen3 8B's.

    python -m reasonjax.train --config configs/device.py --workdir runs/device
    python -m reasonjax.train --config configs/device.py:grpo --workdir runs/device_grpo

Random weights, random letters as text, a reward that means nothing: it shows how fast a step is.
"""

import ml_collections

from benchmarks.workload import GRPO
from configs import base
from configs.models import qwen3_1_7b, qwen3_8b

VARIANTS = ('', 'decode', 'grpo')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    c = base.common()
    c.model = (qwen3_8b if variant == 'grpo' else qwen3_1_7b).get_config()
    if variant:
        c.model.param_dtype = 'bfloat16'  # nothing of it is trained but the adapter
    c.tokenizer = dict(
        name='benchmarks.device_text.tokenizer', vocab_size=c.model.get_oneway_ref('vocab_size')
    )
    c.evaluation.enabled = False

    c.sft = base.supervised(c)
    c.sft.steps = 10
    c.sft.batch_size = 8
    c.sft.data.max_length = 4096
    c.sft.data.source = dict(
        name='benchmarks.device_text.full_rows',
        size=64,
        length=c.sft.data.get_oneway_ref('max_length'),
    )

    c.grpo = base.online(c)
    c.grpo.steps = 4
    c.grpo.num_prompts, c.grpo.num_generations = 16, 8
    c.grpo.data.max_prompt_length = 512
    c.grpo.max_completion_length = 512
    c.grpo.data.source = dict(
        name='benchmarks.device_text.letters',
        size=256,
        length=c.grpo.data.get_oneway_ref('max_prompt_length'),
    )
    c.grpo.rewards = dict(length=dict(name='benchmarks.workload.reward'))
    c.grpo.reward_workers = 0
    c.grpo.learning_rate = dict(name='constant', peak=1e-5, warmup_steps=0)
    c.grpo.log_completions_every = 0
    if variant == 'grpo':
        c.grpo.advantage = dict(name='group_relative', scale_rewards='group')
        c.grpo.objective = dict(
            name='clipped_policy_gradient',
            loss_type='grpo',  # mean over completions of their means, as in GRPO's paper
            epsilon=GRPO['epsilon'],
            epsilon_high=None,
            beta=GRPO['beta'],  # a KL penalty: the model without the adapter is the reference
        )
        c.grpo.accumulation = 8
        c.grpo.adapter = dict(
            name='lora',
            r=16,
            lora_alpha=32.0,
            target_modules=('layers/attention/*', 'layers/mlp/*'),
        )
        c.grpo.filter = dict(name='lora')
    c.stages = ('grpo',) if variant else ('sft',)
    return c
