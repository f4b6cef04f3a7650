"""The whole default tree. Every config starts from here and changes a few lines.

As it stands it trains a small model from scratch on multi-digit addition, with nothing to download:

    python -m reasonjax.train --config configs/base.py --workdir runs/base

Any leaf can be set from the command line (`--config.train.steps=10`), and so can the function a
node names (`--config.train.learning_rate.name=constant`): its knobs are its keyword arguments,
filled in when the config is loaded.
"""

import ml_collections

from configs.models import tiny


def get_config() -> ml_collections.ConfigDict:
    c = common()
    c.train = supervised(c)
    c.stages = ('train',)
    return c


def common() -> ml_collections.ConfigDict:
    """What all configs have; their stages are added to it."""
    c = ml_collections.ConfigDict()
    c.seed = 0  # of parameters, data order and every draw
    # '' fresh parameters; 'hf:FOLDER' a Hugging Face model; 'checkpoint:WORKDIR[:STAGE]' those a
    # run, or a stage of it, ended with. A model that is not fresh brings its shape and its
    # tokenizer.
    c.init = ''
    c.model = tiny.get_config()  # shape of the model: fields of reasonjax.model.config.ModelConfig
    c.tokenizer = addition_tokenizer()  # characters | sentencepiece | huggingface
    # Devices along each axis; -1 takes what is left. Split are: rows over data, fsdp and expert;
    # weights over fsdp and sequence; heads, MLP and vocabulary over tensor; tokens of a row over
    # sequence; experts over expert.
    c.mesh = dict(data=-1, fsdp=1, expert=1, sequence=1, tensor=1)
    # the same for sampling; all 0: as for training
    c.rollout = dict(mesh=dict(data=0, fsdp=0, expert=0, sequence=0, tensor=0))
    c.stages = ()  # run in this order; each names a group of this tree
    c.evaluation = evaluation(c)
    return c


def addition_tokenizer() -> dict:
    """One id per character; `_` pads, `$` ends, `M` masks."""
    return dict(name='characters', alphabet='_.$M#=,0123456789+', pad='_', eos='$', mask='M')


def limits() -> dict:
    """What ends a stage before its `steps` are over."""
    return dict(
        token_limit=0,  # the stage ends with the step that has read or drawn this many tokens; 0: off
        # the same in seconds of its steps, without the first, which compiles; 0: off
        time_limit=0.0,
    )


def training(c: ml_collections.ConfigDict) -> dict:
    """What supervised and online stages have in common."""
    return dict(
        steps=500,  # steps of the stage
        **limits(),
        accumulation=1,  # micro-batches per optimiser update; changes memory, not the result
        corruption=dict(name='none'),  # changes the inputs of a batch, on the device
        # richer leaves put over the weights when the stage starts: none | lora | peft | quantise
        adapter=dict(name='none'),
        filter=dict(name='all'),  # which weights train: all | paths | lora
        optimizer=dict(name='adamw', b2=0.98, weight_decay=0.01, clip_norm=1.0),
        learning_rate=dict(name='cosine', peak=3e-3, warmup_steps=30, final_fraction=0.05),
        log_every=1,  # steps between records of metrics.jsonl
        eval_every=0,  # steps between evaluations; 0: only at the end
        checkpoint_every=0,  # steps between checkpoints; 0: only at the end
        keep_checkpoints=2,  # newest kept
        # a metric of the evaluation (eval_accuracy, ...): the checkpoint that is best by it is kept
        # too; '': off
        keep_best='',
        keep_best_mode='max',  # which is better: max | min
        # consecutive steps with a non-finite loss or gradient (skipped, counted) before the run
        # rolls back
        max_nonfinite=4,
        # times to go back to a good checkpoint and on with new data before the run stops; 0: stop
        # at once
        max_rollbacks=1,
        # skip updates whose gradient norm is this many standard deviations above its mean; 0: off
        spike_zscore=0.0,
        # applied updates that mean is over; none is skipped before there are as many
        spike_window=128,
    )


def supervised(c: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A stage that trains on demonstrations."""
    stage = ml_collections.ConfigDict(training(c))
    stage.kind = 'supervised'
    stage.batch_size = 96  # examples per step; preferences have two rows each
    stage.data = dict(
        # rows: jsonl | parquet | tfds | a task
        source=dict(name='addition', split='train', size=6000, seed=c.get_oneway_ref('seed')),
        transforms=(),  # functions of a row, in order
        # what a row is then: demonstration | preference | unpaired | stepwise
        form='demonstration',
        step_separator='\n',  # follows each step of a stepwise row
        max_length=40,  # tokens per row of a batch
        overlong='error',  # an example that does not fit: error | drop (and count)
        packing=False,  # several whole examples in a row
    )
    stage.objective = dict(name='nll')
    return stage


def drawing() -> dict:
    """What rollouts and evaluations have in common besides temperature and truncation: how
    completions end, and how they are computed."""
    return dict(
        min_tokens=0,  # tokens before a completion may end
        stop=(),  # texts that end a completion, as the tokenizer writes them; they stay part of it
        no_repeat_ngram_size=0,  # no so many tokens in a row twice in prompt and completion; 0: off
        # tokens that were there are made less likely by this factor of their logits; 1: off
        repetition_penalty=1.0,
        forced_prefix='',  # text that every completion begins with
        # Budget forcing; end: the token that ends the thinking, '' is off. budget: tokens until it
        # is put, as closing says if that is set; 0: no limit. An end that comes by itself is
        # replaced by the extension the first few times.
        thinking=dict(end='', closing='', budget=0, extension='', times=0),
        # These change speed and memory, not what is drawn (int8: rounding).
        sampler=dict(
            # rows that draw at the same time; one that ends takes the next completion; 0: as many
            # as there are completions
            slots=0,
            burst=16,  # with slots, steps between two looks for rows that have ended
            # tokens that the cache of completions begins with, doubled as they grow; 0: the longest
            # from the start
            cache_length=0,
            # when none waits, how often half of the rows go on alone as soon as they hold all that
            # still draw
            halvings=0,
            prefill_chunk=0,  # prompt tokens read at a time; 0: all
            cache_dtype='',  # of cached keys and values: '' as the model computes | int8
        ),
    )


def rollouts(c: ml_collections.ConfigDict) -> dict:
    """What online and collecting stages have in common: prompts, sampling, rewards."""
    return dict(
        num_prompts=32,  # prompts per step
        num_generations=8,  # completions per prompt
        # prompts that are sampled at the same time; changes memory, not what is drawn; 0: all
        prompts_at_once=0,
        data=dict(
            source=dict(
                name='addition',
                split='prompts',
                size=20_000,
                levels=(2, 3, 4),
                seed=c.get_oneway_ref('seed'),
            ),
            transforms=(),
            max_prompt_length=10,  # tokens
            overlong='error',  # a prompt that does not fit: error | drop (and count)
        ),
        max_completion_length=30,  # tokens, EOS included
        temperature=1.0,
        top_k=0,  # 0: off
        top_p=1.0,  # 1: off
        min_p=0.0,  # 0: off
        **drawing(),
        # name: a function of reasonjax.methods.rewards, or your own by dotted name; weight: its
        # factor in the sum
        rewards=dict(
            accuracy=dict(
                name='accuracy', extract='hash', equality='text', require_termination=True
            )
        ),
        # processes that run reward functions; 0 runs them here, without the two limits
        reward_workers=2,
        reward_time_limit=10.0,  # seconds per sample
        # GiB that each of the processes may take (on Linux); more for a function that holds a model
        reward_memory_limit=4.0,
        # a reward function that fails on a sample: raise | drop (and count)
        rewards_on_error='raise',
    )


def collect(c: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A stage that samples and keeps what is good enough, as a dataset that a later stage reads by
    the path 'stage:NAME'."""
    stage = ml_collections.ConfigDict(limits() | rollouts(c))
    stage.kind = 'collect'
    stage.steps = 40  # batches of prompts
    stage.min_reward = 1.0  # least total reward of a completion that is kept
    stage.max_per_prompt = 0  # different completions kept of one prompt; 0: all
    return stage


def online(c: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A stage that reinforces own samples (GRPO and its relatives)."""
    stage = ml_collections.ConfigDict(training(c) | rollouts(c))
    stage.kind = 'online'
    stage.num_iterations = 1  # times each rollout is gone over
    stage.minibatches = 1  # updates per pass over a rollout
    # a whole step is one program, rewards included: where the task checks answers on tokens
    stage.on_device = False
    stage.iterations_per_call = 1  # steps that the program does at once, with on_device
    stage.mask_truncated_completions = False  # completions cut at the limit carry no loss
    # each prompt is read once for all its completions; False: every row has its own, as
    # mesh.sequence needs
    stage.share_prompts = True
    # several completions of a prompt in a row, where lengths differ much; every shape that comes up
    # is compiled
    stage.packing = False
    # train on what was sampled a step ago, while the devices sample for the next one
    stage.pipelined = False
    # batches of prompts a step may draw until num_prompts groups have unequal rewards; 0: off
    stage.dynamic_sampling = 0
    stage.advantage = dict(name='group_relative')
    stage.objective = dict(name='clipped_policy_gradient')
    stage.log_completions_every = 10  # steps between tables of completions; 0: none
    stage.optimizer.weight_decay = 0.0
    stage.learning_rate = dict(name='constant', peak=2e-4, warmup_steps=10)
    return stage


def evaluate() -> ml_collections.ConfigDict:
    """A stage that only evaluates the model as it is."""
    return ml_collections.ConfigDict(dict(kind='evaluate'))


def keep() -> ml_collections.ConfigDict:
    """A stage that only writes a checkpoint of the model as it is."""
    return ml_collections.ConfigDict(dict(kind='keep'))


def evaluation(c: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """How the model is evaluated: after every stage, at `eval_every` within one, and by
    `reasonjax.evaluate`."""
    return ml_collections.ConfigDict(
        dict(
            enabled=True,
            task=dict(name='addition', split='test', size=1000, levels=(4,)),
            # functions of a problem, in order; `chat` puts it through the chat template
            transforms=(),
            batch_size=250,  # problems at once
            max_prompt_length=10,  # tokens
            overlong='error',  # a prompt that does not fit: error | drop (and count)
            max_completion_length=30,  # tokens
            greedy=True,  # one answer by argmax
            samples=1,  # answers drawn per problem; 0: none
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_p=0.0,
            **drawing(),
        )
    )
