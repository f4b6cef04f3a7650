r"""The workload of `benchmarks/workload.py`: a Qwen3-shaped decoder of 8.9M parameters, SFT, then
GRPO with completions of full length.

    python -m reasonjax.train --config configs/benchmark.py --workdir runs/benchmark \
        --config.data.path=FOLDER
    python -m reasonjax.train --config configs/benchmark.py:long_tail --workdir runs/long_tail

`python -m benchmarks.peers` runs its stages beside other systems, on texts that it prepares so that
all of them read the same tokens (what that gave is in docs/PERFORMANCE.md). It shows how fast a
step is, nothing more: the model is random and the reward is nonsense.
"""

import os

import ml_collections

from benchmarks.workload import GRPO, LONG_TAIL, MODEL, SFT
from configs import base

VARIANTS = ('', 'long_tail')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    c = base.common()
    # folder with train.jsonl
    c.data = dict(path=f'{os.environ.get("REASONJAX_DATA", "../shared/data")}/gsm8k')
    c.tokenizer = dict(name='sentencepiece', vocab_size=MODEL['vocab'])
    c.model.update(
        {
            name: MODEL[name]
            for name in ('layers', 'dim', 'heads', 'kv_heads', 'head_dim', 'rope_theta')
        }
    )
    c.model.update(mlp_dim=MODEL['mlp'], norm_eps=MODEL['eps'], embed_std=0.02)
    c.model.update(activation='silu', gated=True, qk_norm='head', tied=True)
    c.evaluation.enabled = False

    c.sft = base.supervised(c)
    c.sft.objective = dict(name='nll')
    c.sft.steps = SFT['steps']
    c.sft.batch_size = SFT['batch']
    c.sft.data.source = dict(name='gsm8k', path=c.data.get_oneway_ref('path'), split='train')
    c.sft.data.update(max_length=SFT['length'], packing=True, overlong='drop')
    c.sft.learning_rate = dict(name='constant', peak=SFT['learning_rate'], warmup_steps=0)

    c.grpo = base.online(c)
    c.grpo.steps = GRPO['steps']
    c.grpo.num_prompts, c.grpo.num_generations = GRPO['prompts'], GRPO['generations']
    c.grpo.data.source = dict(name='gsm8k', path=c.data.get_oneway_ref('path'), split='train')
    c.grpo.data.update(max_prompt_length=GRPO['prompt_length'], overlong='drop')
    c.grpo.max_completion_length = LONG_TAIL['long'] if variant else GRPO['completion_length']
    c.grpo.temperature = GRPO['temperature']
    c.grpo.advantage = dict(name='group_relative', scale_rewards='group')
    c.grpo.objective = dict(
        name='clipped_policy_gradient',
        loss_type='grpo',  # mean over completions of their means, as in GRPO's paper
        epsilon=GRPO['epsilon'],
        epsilon_high=None,
        beta=GRPO['beta'],  # a KL penalty, so that a reference model is scored
    )
    c.grpo.rewards = dict(length=dict(name='benchmarks.workload.reward'))
    c.grpo.reward_workers = 0  # here, as the other systems do it
    c.grpo.learning_rate = dict(name='constant', peak=GRPO['learning_rate'], warmup_steps=0)
    # One prompt with its completions at a time: a third of the memory, and what is worked on stays
    # in the processor's cache.
    c.grpo.accumulation = GRPO['prompts']
    c.grpo.sampler.cache_length = 16  # grows with the completions
    if variant == 'long_tail':
        # Half of the rows at a time as answers end; short answers side by side in training.
        c.grpo.sampler.update(halvings=2, cache_length=64)
        c.grpo.packing = True
    c.stages = ('sft', 'grpo')
    return c
