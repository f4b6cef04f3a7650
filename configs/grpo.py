r"""GRPO: a short SFT warm-up, then reinforcement from own samples. Copy it and change task and
reward.

Each prompt is answered `num_generations` times; a completion's advantage is its reward minus the
mean of its prompt, over the deviation (Shao et al. 2024, arXiv:2402.03300, section 4.1). The loss
below is the clipped policy gradient as it is usually trained since: averaged over tokens and
without a KL penalty (DAPO, arXiv:2503.14476). `loss_type='grpo', beta=0.04` are the first paper's.

    python -m reasonjax.train --config configs/grpo.py --workdir runs/grpo
    python -m reasonjax.train --config configs/grpo.py --workdir runs/dr_grpo \
        --config.grpo.objective.loss_type=dr_grpo --config.grpo.advantage.scale_rewards=none
    python -m reasonjax.train --config configs/grpo.py --workdir runs/from \
        --config.init=checkpoint:runs/sft --config.stages="('grpo',)"

A reward is any function with TRL's signature, by name or by dotted name
(`--config.grpo.rewards.accuracy.name=my_package.rewards.mine`).
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    c = base.common()
    c.warmup = base.supervised(c)
    # Additions of one to four digits; answer_only: share of demonstrations without the working.
    c.warmup.data.source.update(name='addition', split='train', size=6000, answer_only=0.5)
    c.warmup.objective = dict(name='nll')
    c.warmup.steps = 500
    c.warmup.batch_size = 96
    c.warmup.learning_rate = dict(name='cosine', peak=3e-3, warmup_steps=30, final_fraction=0.05)
    c.warmup.optimizer = dict(name='adamw', b1=0.9, b2=0.98, weight_decay=0.01, clip_norm=1.0)

    c.grpo = base.online(c)
    c.grpo.data.source.update(name='addition', split='prompts', size=20_000, levels=(2, 3, 4))
    c.grpo.steps = 60
    c.grpo.num_prompts = 32  # per step
    c.grpo.num_generations = 8  # completions of each; the paper: 64
    c.grpo.max_completion_length = 30  # tokens, EOS included
    c.grpo.temperature = 1.0
    # times each rollout is gone over; with 1, and minibatches=1, nothing is ever clipped
    c.grpo.num_iterations = 1
    c.grpo.minibatches = 1
    c.grpo.rewards = dict(
        accuracy=dict(name='accuracy', extract='hash', equality='text', require_termination=True)
    )
    # 'none': not divided by the deviation (Dr. GRPO)
    c.grpo.advantage = dict(name='group_relative', scale_rewards='group')
    c.grpo.objective = dict(
        name='clipped_policy_gradient',
        # mean over the tokens of the step; the paper: 'grpo', mean over completions of their means
        loss_type='dapo',
        epsilon=0.2,  # ratios are clipped to 1 - epsilon, ...
        epsilon_high=None,  # ... 1 + epsilon_high; None: the same; DAPO: 0.28
        # weight of the KL penalty towards the model the stage began with; the paper: 0.04
        beta=0.0,
    )
    # the paper, for a model of 7 billion parameters: 1e-6
    c.grpo.learning_rate = dict(name='constant', peak=2e-4, warmup_steps=10)
    c.grpo.optimizer = dict(name='adamw', b1=0.9, b2=0.98, weight_decay=0.0, clip_norm=1.0)
    c.grpo.eval_every = 20
    c.grpo.checkpoint_every = 20
    c.stages = ('warmup', 'grpo')
    return c
