"""Quickstart: a 0.3M-parameter decoder learns to reason, from scratch, in minutes on two CPU cores.

Some demonstrations of multi-digit addition work column by column, the rest answer at once.
Imitation (SFT) copies the mix, and at four digits the answers given at once are nearly always
wrong. GRPO, told only whether the final answer is right, discovers that writing the working pays:
accuracy rises from about a third to over 95 %, and answers grow to nearly twice the length.

    python -m reasonjax.train --config configs/quickstart.py --workdir runs/quickstart

Measured on seeds 0 to 4, 1000 held-out problems, two cores of a Xeon server, about 110 s a run
(greedy accuracy):

                fresh    after SFT          after GRPO
    accuracy    0.0 %    29.7 to 43.0 %     98.7 to 99.8 %
    length               16.4 to 17.5       29.9 to 30.0 tokens (mean)

What it does not show: GRPO here selects the better of two habits the model already has; it teaches
no arithmetic. Two controls (seed 0):

    --config configs/quickstart.py:worked_only     SFT on worked demonstrations alone also gets
                                                   there: 100.0 %
    --config configs/quickstart.py:filtered_sft    SFT on the mix, then SFT on the model's own
                                                   correct samples: 99.9 %
"""

import ml_collections

from configs import base

VARIANTS = ('', 'worked_only', 'filtered_sft')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    c = base.common()
    c.fresh = base.evaluate()

    c.sft = base.supervised(c)
    # Additions of one to four digits; answer_only: share of demonstrations without the working.
    c.sft.data.source.update(name='addition', split='train', size=6000, answer_only=0.55)
    c.sft.data.update(max_length=80, packing=True)
    c.sft.objective = dict(name='nll')  # mean over the completions' tokens
    c.sft.steps = 800
    c.sft.batch_size = 26  # rows of 80 tokens, about four demonstrations each
    c.sft.learning_rate = dict(name='cosine', peak=3e-3, warmup_steps=30, final_fraction=0.05)
    c.sft.optimizer = dict(name='adamw', b1=0.9, b2=0.98, weight_decay=0.01, clip_norm=1.0)
    c.sft.eval_every = 200
    c.sft.checkpoint_every = 200

    c.grpo = base.online(c)
    _draw(c.grpo)
    c.grpo.num_iterations = 1  # every rollout is trained on once, in one update: nothing is clipped
    c.grpo.minibatches = 1
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
    c.grpo.eval_every = 20
    c.grpo.checkpoint_every = 20
    c.stages = ('fresh', 'sft', 'grpo')

    if variant == 'worked_only':
        c.sft.data.source.answer_only = 0.0
        c.stages = ('fresh', 'sft')
    if variant == 'filtered_sft':
        c.collect = base.collect(c)
        _draw(c.collect)  # as many samples of the same problems as GRPO
        c.collect.min_reward = 1.0  # right answers are kept, ...
        c.collect.max_per_prompt = 0  # ... all that differ
        c.resft = base.supervised(c)
        c.resft.data.source = dict(name='jsonl', path='stage:collect')
        c.resft.objective = dict(name='nll')
        c.resft.steps = 200
        c.resft.batch_size = 96  # one sample a row
        c.resft.learning_rate = dict(name='cosine', peak=3e-3, warmup_steps=30, final_fraction=0.05)
        c.resft.optimizer = dict(name='adamw', b1=0.9, b2=0.98, weight_decay=0.01, clip_norm=1.0)
        c.stages = ('fresh', 'sft', 'collect', 'resft')
    return c


def _draw(stage: ml_collections.ConfigDict) -> None:
    """Sets what GRPO and its control have in common: 80 steps of 32 problems, 8 answers to each."""
    stage.steps = 80
    stage.num_prompts = 32
    stage.num_generations = 8
    stage.data.source.update(name='addition', split='prompts', size=20_000, levels=(2, 3, 4))
    stage.max_completion_length = 30  # tokens, EOS included
    stage.temperature = 1.0
    # 1 for an answer that is right and ends, else 0.
    stage.rewards = dict(
        accuracy=dict(name='accuracy', extract='hash', equality='text', require_termination=True)
    )
