"""LoRA (arXiv:2106.09685): train low-rank factors over a frozen base.

A base learns worked additions of one to three digits; then only rank-8 factors learn four digits.

    python -m reasonjax.train --config configs/lora.py --workdir runs/lora
    python -m reasonjax.train --config configs/lora.py --workdir runs/lora_on --config.init=checkpoint:runs/sft --config.stages="('lora',)"

QLoRA (arXiv:2305.14314) keeps the base in 4 bits meanwhile:

    python -m reasonjax.train --config configs/lora.py:qlora --workdir runs/qlora
"""

import ml_collections

from configs import base

VARIANTS = ('', 'qlora')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    c = base.common()
    c.pretrain = base.supervised(c)
    c.pretrain.data.source.update(levels=(1, 2, 3), answer_only=0.0)
    c.lora = base.supervised(c)
    c.lora.steps = 300
    c.lora.data.source.update(levels=(4,), answer_only=0.0, size=1000)
    c.lora.adapter = dict(name='lora', r=8, lora_alpha=16.0)
    if variant == 'qlora':
        c.lora.adapter.update(quantise='nf4', quantise_block=32)
    c.lora.filter = dict(name='lora')
    c.stages = ('pretrain', 'lora')
    return c
