r"""Supervised fine-tuning: the plain starting point. Copy it and point it at your data.

    python -m reasonjax.train --config configs/sft.py --workdir runs/sft
    python -m reasonjax.train --config configs/sft.py --workdir runs/mine \
        --config.train.data.source.name=jsonl --config.train.data.source.path=my.jsonl \
        --config.tokenizer.name=sentencepiece --config.train.data.max_length=512 \
        --config.evaluation.enabled=false

Rows of the file hold `prompt` and `completion`, or `messages`, or `text`. As it stands it trains on
worked additions.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    c = base.common()
    c.train = base.supervised(c)
    # Additions of one to four digits, every one with its working.
    c.train.data.source.update(name='addition', split='train', size=6000, answer_only=0.0)
    # The loss is on the completion, its EOS included, and never on the prompt.
    c.train.data.form = 'demonstration'
    c.train.data.max_length = 40  # tokens
    c.train.data.packing = False  # True: several whole examples in a row
    c.train.objective = dict(name='nll')  # mean over all completion tokens of the step
    c.train.steps = 500  # eight passes over the data
    c.train.batch_size = 96
    # For a model that starts from scratch; 1e-5 is usual for a pre-trained one (configs/hf.py).
    c.train.learning_rate = dict(name='cosine', peak=3e-3, warmup_steps=30, final_fraction=0.05)
    c.train.optimizer = dict(name='adamw', b1=0.9, b2=0.98, weight_decay=0.01, clip_norm=1.0)
    c.train.eval_every = 100
    c.train.checkpoint_every = 100
    c.stages = ('train',)
    return c
