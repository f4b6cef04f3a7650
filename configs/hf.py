r"""Fine-tune a Hugging Face model from a local folder on GSM8K: SFT on the worked answers, then
GRPO.

    python -m reasonjax.train --config configs/hf.py --config.init=hf:FOLDER --workdir runs/hf
    python -m reasonjax.train --config configs/hf.py:lora --config.init=hf:FOLDER \
        --workdir runs/hf_lora
    python -m reasonjax.train --config configs/hf.py:grpo --config.init=hf:FOLDER \
        --workdir runs/hf_grpo
    python -m reasonjax.evaluate --workdir runs/hf --samples 8
    python -m reasonjax.convert runs/hf exported

FOLDER holds config.json, safetensors and tokenizer files, as downloaded from the Hub;
docs/FAMILIES.md lists the architectures. The model's shape and its tokenizer come from the folder.
Problems are put through its chat template; for a base model without one drop the transforms:

    --config.sft.data.transforms="()" --config.grpo.data.transforms="()"
    --config.evaluation.transforms="()"

GSM8K comes from `gsm8k/{train,test}.jsonl` in the folder that REASONJAX_DATA names, or from
--config.data.path. By default FOLDER is what REASONJAX_MODEL names. Sizes below suit a model of
about 1B parameters on one accelerator with 80 GB; nothing was measured there yet.
"""

import os

import ml_collections

from configs import base

VARIANTS = ('', 'lora', 'grpo')


def get_config(variant: str = '') -> ml_collections.ConfigDict:
    c = base.common()
    c.init = f'hf:{os.environ.get("REASONJAX_MODEL", "")}'
    c.model.update(
        param_dtype='float32', compute_dtype='bfloat16', scan=True, remat='full', logprob_chunk=512
    )
    # folder with train.jsonl and test.jsonl
    c.data = dict(path=f'{os.environ.get("REASONJAX_DATA", "../shared/data")}/gsm8k')

    c.sft = base.supervised(c)
    c.sft.data.source = dict(name='gsm8k', path=c.data.get_oneway_ref('path'), split='train')
    c.sft.data.transforms = (dict(name='chat'),)
    c.sft.data.update(max_length=512, packing=False, overlong='drop')
    c.sft.objective = dict(name='nll')  # mean over the solutions' tokens
    c.sft.steps = 230  # two epochs
    c.sft.batch_size = 64
    c.sft.accumulation = 4
    c.sft.learning_rate = dict(name='cosine', peak=1e-5, warmup_steps=10, final_fraction=0.0)
    c.sft.optimizer = dict(name='adamw', b1=0.9, b2=0.95, weight_decay=0.0, clip_norm=1.0)
    c.sft.checkpoint_every = 50

    c.grpo = base.online(c)
    c.grpo.data.source = dict(name='gsm8k', path=c.data.get_oneway_ref('path'), split='train')
    c.grpo.data.transforms = (dict(name='chat'),)
    c.grpo.data.update(max_prompt_length=256, overlong='drop')
    c.grpo.steps = 100
    c.grpo.num_prompts = 32
    c.grpo.num_generations = 8
    c.grpo.max_completion_length = 512
    c.grpo.temperature = 1.0
    c.grpo.num_iterations = 1  # every rollout is trained on once, in one update
    c.grpo.minibatches = 1
    c.grpo.accumulation = 8
    # 1 where the last number of the completion is the right one, else 0.
    c.grpo.rewards = dict(
        accuracy=dict(name='accuracy', extract='flexible', equality='number', weight=1.0)
    )
    c.grpo.advantage = dict(name='group_relative', scale_rewards='group')
    c.grpo.objective = dict(
        name='clipped_policy_gradient',
        loss_type='dapo',  # mean over the tokens of the step; GRPO's paper: 'grpo'
        epsilon=0.2,
        epsilon_high=None,
        beta=0.0,  # no KL penalty, no reference model in memory; GRPO's paper: 0.04
    )
    c.grpo.learning_rate = dict(name='constant', peak=1e-6, warmup_steps=10)
    c.grpo.optimizer = dict(name='adamw', b1=0.9, b2=0.98, weight_decay=0.0, clip_norm=1.0)
    c.grpo.checkpoint_every = 20

    if variant == 'lora':
        # Both stages train one adapter, at ten times the learning rates above.
        c.sft.adapter = dict(
            name='lora',
            r=32,
            lora_alpha=64.0,
            target_modules=('layers/attention/*', 'layers/mlp/*'),
        )
        for stage in (c.sft, c.grpo):
            stage.filter = dict(name='lora')
            stage.learning_rate.peak *= 10

    c.evaluation.task = dict(name='gsm8k', path=c.data.get_oneway_ref('path'), split='test')
    c.evaluation.transforms = (dict(name='chat'),)
    c.evaluation.update(
        batch_size=128, max_prompt_length=256, max_completion_length=512, overlong='drop'
    )
    c.stages = ('grpo',) if variant == 'grpo' else ('sft', 'grpo')
    return c
