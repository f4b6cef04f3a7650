r"""GSM8K (Cobbe et al. 2021, arXiv:2110.14168) from a folder of JSONL: SFT from scratch, then
strict and flexible scores.

    python -m reasonjax.train --config configs/gsm8k.py --workdir runs/gsm8k \
        --config.data.path=FOLDER
    python -m reasonjax.train --config configs/gsm8k.py:masked_thought --workdir runs/gsm8k_mft
    python -m reasonjax.train --config configs/gsm8k.py:grpo --workdir runs/gsm8k_grpo
    python -m reasonjax.evaluate --workdir runs/gsm8k --samples 8

FOLDER holds train.jsonl and test.jsonl with `question` and `answer`; by default it is `gsm8k` in
the folder REASONJAX_DATA names. A vocabulary of 4096 pieces is learnt from the training text on
first use and kept in the workdir; a Hugging Face tokenizer folder does too:

    --config.tokenizer.name=huggingface --config.tokenizer.path=FOLDER

A model of this size (2.6M parameters) learns the form of an answer, not to solve the problems:
expect a loss that falls and an accuracy of a few per cent at most. Measured: 200 steps
(`--config.sft.steps=200`) take 3 minutes on two cores, the loss falls from 8.4 to 3.6, and 200 test
problems give 0.0 % [0.0, 1.9] greedy, 1.1 % [0.5, 1.9] sampled and 4.5 % [2.4, 8.3] pass@4 (seed
0).
"""

import os

import ml_collections

from configs import base

VARIANTS = ('', 'masked_thought', 'grpo')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    c = base.common()
    # folder with train.jsonl and test.jsonl
    c.data = dict(path=f'{os.environ.get("REASONJAX_DATA", "../shared/data")}/gsm8k')
    c.tokenizer = dict(name='sentencepiece', vocab_size=4096)
    c.model.update(dim=192, layers=4, heads=6, kv_heads=2, head_dim=32, mlp_dim=512, embed_std=0.02)
    c.model.update(activation='silu', gated=True, qk_norm='head', tied=True, logprob_chunk=128)

    c.sft = base.supervised(c)
    c.sft.data.source = dict(name='gsm8k', path=c.data.get_oneway_ref('path'), split='train')
    c.sft.data.update(max_length=512, packing=True, overlong='drop')
    c.sft.objective = dict(name='nll')  # mean over the solutions' tokens
    c.sft.steps = 500
    c.sft.batch_size = 8  # rows of 512 tokens, several problems each
    # For a model that starts from scratch.
    c.sft.learning_rate = dict(name='cosine', peak=2e-3, warmup_steps=30, final_fraction=0.05)
    c.sft.optimizer = dict(name='adamw', b1=0.9, b2=0.98, weight_decay=0.01, clip_norm=1.0)
    c.sft.checkpoint_every = 100
    c.stages = ('sft',)
    if variant == 'masked_thought':  # see configs/recipes/masked_thought.py
        c.sft.corruption = dict(
            name='masked_thought', rate=0.4, warmup=0.66, replace_rate=1.0, drop_mask=False
        )

    c.evaluation.task = dict(
        name='gsm8k', path=c.data.get_oneway_ref('path'), split='test', limit=200
    )
    c.evaluation.update(batch_size=100, max_prompt_length=256, max_completion_length=200)
    if variant == 'grpo':
        c.grpo = base.online(c)
        c.grpo.data.source = dict(name='gsm8k', path=c.data.get_oneway_ref('path'), split='train')
        c.grpo.data.update(max_prompt_length=256, overlong='drop')
        c.grpo.steps = 50
        c.grpo.num_prompts = 8
        c.grpo.num_generations = 8
        c.grpo.max_completion_length = 200
        c.grpo.temperature = 1.0
        c.grpo.num_iterations = 1  # every rollout is trained on once, in one update
        c.grpo.minibatches = 1
        c.grpo.rewards = dict(
            # 1 for the right number after '####', and 0.1 for a number there at the end
            accuracy=dict(name='accuracy', extract='strict', equality='number', weight=1.0),
            form=dict(name='format', pattern=r'[\s\S]*#### -?[0-9.,]+\s*', weight=0.1),
        )
        c.grpo.advantage = dict(name='group_relative', scale_rewards='group')
        c.grpo.objective = dict(
            name='clipped_policy_gradient',
            loss_type='dapo',  # mean over the tokens of the step; GRPO's paper: 'grpo'
            epsilon=0.2,
            epsilon_high=None,
            beta=0.0,  # no KL penalty; GRPO's paper: 0.04
        )
        c.grpo.learning_rate = dict(name='constant', peak=2e-4, warmup_steps=10)
        c.grpo.optimizer = dict(name='adamw', b1=0.9, b2=0.98, weight_decay=0.0, clip_norm=1.0)
        c.stages = ('sft', 'grpo')
    return c
