"""Masked-thought fine-tuning (arXiv:2403.02178): SFT that hides a growing share of the response
from its own prefix.

    python -m reasonjax.train --config configs/masked_thought.py --workdir runs/masked_thought

Differs from configs/sft.py by the corruption alone; `rate=0` is SFT, bit for bit. The rate and the
mask token are those of the released scripts for MATH and MetaMath; those for GSM8K, with random
tokens, are in configs/recipes/masked_thought.py. The published gains are on pre-trained models.
Trained from scratch on this task it does worse than SFT, and so it does from checkpoints that half
know a task, less where what is hidden can be read elsewhere (`reasonjax.compare`, five seeds,
greedy accuracy minus that of SFT): chained arithmetic -21.4 points [-23.3, -19.4], with every step
written twice -13.8 [-18.5, -9.2], addition -2.8 [-6.8, +1.2].
"""

import ml_collections

from configs import sft


def get_config() -> ml_collections.ConfigDict:
    c = sft.get_config()
    c.train.corruption = dict(
        name='masked_thought',
        rate=0.2,  # largest probability that a token of the response is hidden; 0: SFT
        warmup=2 / 3,  # share of the steps over which it rises from 0; the released scripts: 0.66
        replace_rate=0.0,  # share of the hidden that become random tokens; the rest the mask token
        drop_mask=False,  # True: hidden tokens are not attended to either
    )
    return c
