"""GRPO (arXiv:2402.03300): a short SFT warm-up, then reinforcement from own samples. Copy it and change task and reward.

    python -m reasonjax.train --config configs/grpo.py --workdir runs/grpo
    python -m reasonjax.train --config configs/grpo.py --workdir runs/dr_grpo --config.grpo.objective.loss_type=dr_grpo \
        --config.grpo.advantage.scale_rewards=none
    python -m reasonjax.train --config configs/grpo.py --workdir runs/from --config.init=checkpoint:runs/sft --config.stages="('grpo',)"

A reward is any function with TRL's signature, by name or by dotted name (`--config.grpo.rewards.accuracy.name=my_package.rewards.mine`).
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    c = base.get_config()
    c.warmup = base.supervised(c)
    c.grpo = base.online(c)
    c.grpo.steps = 60
    c.grpo.eval_every = 20
    c.grpo.checkpoint_every = 20
    del c.train
    c.stages = ('warmup', 'grpo')
    return c
