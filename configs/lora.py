r"""LoRA (Hu et al. 2021, arXiv:2106.09685): train low-rank factors over a frozen base.

A base learns worked additions of one to three digits; then only rank-8 factors learn four digits.

    python -m reasonjax.train --config configs/lora.py --workdir runs/lora
    python -m reasonjax.train --config configs/lora.py --workdir runs/lora_on \
        --config.init=checkpoint:runs/sft --config.stages="('lora',)"

QLoRA (Dettmers et al. 2023, arXiv:2305.14314) keeps the base in 4 bits meanwhile. Here the scales
of the blocks are not quantised a second time, as the paper does:

    python -m reasonjax.train --config configs/lora.py:qlora --workdir runs/qlora
"""

import ml_collections

from configs import base

VARIANTS = ('', 'qlora')
LAYERS = ('layers/attention/*', 'layers/mlp/*')  # every matrix of every block


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    c = base.common()
    c.pretrain = base.supervised(c)
    c.pretrain.data.source.update(levels=(1, 2, 3), answer_only=0.0)
    c.pretrain.steps = 500
    c.pretrain.filter = dict(name='all')
    c.lora = base.supervised(c)
    c.lora.data.source.update(levels=(4,), answer_only=0.0, size=1000)
    c.lora.steps = 300
    c.lora.adapter = dict(
        name='lora',
        r=8,  # rank; QLoRA's paper: 64
        lora_alpha=16.0,  # the product of the factors is scaled by lora_alpha / r
        use_rslora=False,  # True: by lora_alpha / sqrt(r)
        target_modules=LAYERS,  # as QLoRA; most of LoRA's paper: attention's q and v alone
    )
    if variant == 'qlora':
        c.lora.adapter.update(
            quantise='nf4',
            quantise_block=32,  # weights with one scale; the paper: 64, which 96 is no multiple of
            quantise_modules=LAYERS,
        )
    c.lora.filter = dict(name='lora')  # the factors alone train

    for stage in (c.pretrain, c.lora):
        stage.objective = dict(name='nll')
        stage.batch_size = 96
        # For a tiny model from scratch; the papers: 2e-4 for the factors of models of billions.
        stage.learning_rate = dict(name='cosine', peak=3e-3, warmup_steps=30, final_fraction=0.05)
        stage.optimizer = dict(name='adamw', b1=0.9, b2=0.98, weight_decay=0.01, clip_norm=1.0)
    c.stages = ('pretrain', 'lora')
    return c
