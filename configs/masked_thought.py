"""Masked-thought fine-tuning (arXiv:2403.02178): SFT that hides a growing share of the response from its own prefix.

    python -m reasonjax.train --config configs/masked_thought.py --workdir runs/masked_thought

Differs from configs/sft.py by the corruption alone; `rate=0` is SFT, bit for bit. Trained from scratch on this task it does worse than
SFT; the published gains are on pre-trained models. See configs/recipes/masked_thought.py.
"""

import ml_collections

from configs import sft


def get_config() -> ml_collections.ConfigDict:
    c = sft.get_config()
    c.train.corruption = dict(name='masked_thought', rate=0.2)
    return c
