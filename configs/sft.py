"""Supervised fine-tuning: the plain starting point. Copy it and point it at your data.

    python -m reasonjax.train --config configs/sft.py --workdir runs/sft
    python -m reasonjax.train --config configs/sft.py --workdir runs/mine --config.train.data.source.name=jsonl \
        --config.train.data.source.path=my.jsonl --config.tokenizer.name=sentencepiece --config.train.data.max_length=512 \
        --config.evaluation.enabled=false

Rows of the file hold `prompt` and `completion`, or `messages`, or `text`. As it stands it trains on worked additions.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    c = base.get_config()
    c.train.data.source.answer_only = 0.0
    c.train.eval_every = 100
    c.train.checkpoint_every = 100
    return c
