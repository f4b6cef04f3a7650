"""Tunix on the workload, one part a process. Runs in an environment of its own, without reasonjax:
see `peer_env`.

    FOLDER/tunix/bin/python -m benchmarks.peer_tunix --what grpo --data FOLDER/data

Its own `PeftTrainer`, `Sampler` and `GRPOLearner` with the vanilla rollout. End-of-sequence has an
id that is never drawn (`grpo`, `sample`); for `long_tail`, `Sampler._sample` is given logits in
which it is all or nothing at the place that the workload says, and everything else, the test
whether all rows are done included, is Tunix's.
"""

import argparse
import json
import os
import pathlib
import time
from typing import Any

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import sentencepiece
from flax import nnx
from tunix.generate import sampler
from tunix.models.qwen3 import model as qwen3
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout
from tunix.sft import hooks, peft_trainer, utils

from benchmarks import workload

M, SFT, GRPO = workload.MODEL, workload.SFT, workload.GRPO


class Tokenizer:
    """The vocabulary with an end-of-sequence id of our choice."""

    def __init__(self, path: pathlib.Path, eos: int | None = None):
        self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self._eos = self._pieces.eos_id() if eos is None else eos

    def encode(self, text: str, **options: Any) -> list[int]:
        return self._pieces.encode(text)

    def decode(self, ids: Any, **options: Any) -> str:
        return self._pieces.decode([int(i) for i in ids])

    def bos_id(self) -> int:
        return self._pieces.bos_id()

    def eos_id(self) -> int:
        return self._eos

    def pad_id(self) -> int:
        return self._pieces.pad_id()


def make_model() -> Any:
    config = qwen3.ModelConfig(
        num_layers=M['layers'],
        vocab_size=M['vocab'],
        embed_dim=M['dim'],
        hidden_dim=M['mlp'],
        num_heads=M['heads'],
        head_dim=M['head_dim'],
        num_kv_heads=M['kv_heads'],
        rope_theta=int(M['rope_theta']),
        norm_eps=M['eps'],
        use_tied_embedding=True,
    )
    model = qwen3.Qwen3(config, rngs=nnx.Rngs(0))
    workload.check_model(sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))))
    return model


class Clock(hooks.TrainingHooks):
    """Notes when a trainer starts a step, which with one computation in flight is when the one
    before is done, and when it ends."""

    def __init__(self):
        self.starts: list[tuple[float, float]] = []
        self.ends: list[tuple[float, float]] = []

    def on_train_step_start(self, trainer: Any) -> None:
        self.starts.append((time.perf_counter(), workload.since_start()))

    def on_train_end(self, trainer: Any) -> None:
        self.ends.append((time.perf_counter(), workload.since_start()))

    def on_train_start(self, trainer: Any) -> None:
        pass

    def on_train_step_end(self, trainer: Any, step: int, loss: float) -> None:
        pass

    def on_eval_step_start(self, trainer: Any) -> None:
        pass

    def on_eval_step_end(self, trainer: Any, loss: float) -> None:
        pass


def prompts(data: pathlib.Path) -> list[str]:
    return [
        json.loads(line)['prompt'] for line in (data / 'prompts.jsonl').read_text().splitlines()
    ]


def sft(data: pathlib.Path) -> dict:
    rows = [json.loads(line)['ids'] for line in (data / 'sft.jsonl').read_text().splitlines()]
    batches = np.array(rows, np.int32).reshape(-1, SFT['batch'], SFT['length'])
    clock = Clock()

    def inputs(batch: Any) -> dict:
        mask = batch['input_mask']
        return {
            'input_tokens': batch['input_tokens'],
            'input_mask': mask,
            'positions': utils.build_positions_from_mask(mask),
            'attention_mask': utils.make_causal_attn_mask(mask),
        }

    config = peft_trainer.TrainingConfig(
        eval_every_n_steps=1000, max_steps=SFT['steps'], max_inflight_computations=1
    )
    trainer = peft_trainer.PeftTrainer(
        make_model(), optax.adamw(SFT['learning_rate']), config
    ).with_gen_model_input_fn(inputs)
    trainer.with_training_hooks(clock)
    trainer.train(
        [
            {'input_tokens': tokens, 'input_mask': np.ones_like(tokens)}
            for tokens in batches[: SFT['steps']]
        ]
    )
    seconds = np.diff([at for at, _ in clock.starts + clock.ends]).tolist()
    tokens = SFT['batch'] * SFT['length']
    return {
        'first_step_s': clock.starts[1][1],
        'seconds': seconds,
        'sft_tok_s': tokens / workload.median(seconds, SFT['warm']),
    }


def sample(data: pathlib.Path) -> dict:
    length = GRPO['completion_length']
    cache = sampler.CacheConfig(
        cache_size=GRPO['prompt_length'] + length + 8,
        num_layers=M['layers'],
        num_kv_heads=M['kv_heads'],
        head_dim=M['head_dim'],
    )
    draw = sampler.Sampler(make_model(), Tokenizer(data / 'gsm4k.model', M['vocab'] + 5), cache)
    texts, seconds = prompts(data), []
    for call in range(1 + workload.SAMPLE['calls']):
        some = texts[call * GRPO['prompts'] : (call + 1) * GRPO['prompts']]
        start = time.perf_counter()
        found = draw(
            [text for text in some for _ in range(GRPO['generations'])],
            max_generation_steps=length,
            echo=False,
            max_prompt_length=GRPO['prompt_length'],
            temperature=GRPO['temperature'],
            top_p=1.0,
            seed=jax.random.PRNGKey(call),
        )
        tokens = sum(len(x) for x in found.tokens)
        seconds.append(time.perf_counter() - start)
    if tokens != GRPO['prompts'] * GRPO['generations'] * length:
        raise ValueError(f'{tokens} tokens were sampled: not all completions have the full length')
    return {
        'seconds': seconds,
        'tokens': tokens,
        'sample_tok_s': tokens / workload.median(seconds, 1),
    }


def grpo(data: pathlib.Path, what: str, mesh: Any) -> dict:
    longest, long_tail = workload.completion_length(what), what == 'long_tail'
    tokenizer = Tokenizer(data / 'gsm4k.model', None if long_tail else M['vocab'] + 5)
    if long_tail:
        end_at(workload.lengths(), tokenizer.eos_id())
    roles = dict.fromkeys(
        (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT), mesh
    )
    rollout = base_rollout.RolloutConfig(
        max_tokens_to_generate=longest,
        max_prompt_length=GRPO['prompt_length'],
        temperature=GRPO['temperature'],
        top_p=1.0,
        kv_cache_size=GRPO['prompt_length'] + longest + 8,
    )
    optimizer = optax.adamw(GRPO['learning_rate'])
    training = rl_cluster.RLTrainingConfig(
        actor_optimizer=optimizer, eval_every_n_steps=1000, max_steps=GRPO['steps']
    )
    cluster = rl_cluster.RLCluster(
        actor=make_model(),
        reference=make_model(),
        tokenizer=tokenizer,
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=roles,
            rollout_engine='vanilla',
            training_config=training,
            rollout_config=rollout,
        ),
    )
    clock = Clock()
    cluster.actor_trainer.with_training_hooks(clock)
    config = grpo_learner.GRPOConfig(
        num_generations=GRPO['generations'],
        num_iterations=1,
        beta=GRPO['beta'],
        epsilon=GRPO['epsilon'],
    )
    batches = grain.MapDataset.source(
        [{'prompts': text, 'answer': ''} for text in prompts(data)]
    ).batch(GRPO['prompts'])
    begin = time.perf_counter()
    grpo_learner.GRPOLearner(cluster, config, reward_fns=workload.reward).train(batches)
    # The trainer is called once a step, and ends when its update is done.
    seconds = np.diff([begin, *(at for at, _ in clock.ends)]).tolist()
    name = 'grpo_long_tail_step_s' if long_tail else 'grpo_step_s'
    return {
        'first_step_s': clock.ends[0][1],
        'seconds': seconds,
        name: workload.median(seconds, GRPO['warm']),
    }


def end_at(lengths: list[int], eos: int) -> None:
    """Has the sampler draw end-of-sequence as token `lengths[i]` of row `i`, and not before."""
    plain, last_B = sampler.Sampler._sample, jnp.array(lengths) - 1

    def sample_with_ends(
        self: Any, logits: Any, *rest: Any, sampler_state: Any, **named: Any
    ) -> Any:
        stage = sampler_state.decoding_step - (sampler_state.num_input_tokens - 1)
        logits = logits.at[:, -1, eos].set(jnp.where(stage == last_B, 1e9, -1e9))
        return plain(self, logits, *rest, sampler_state=sampler_state, **named)

    sampler.Sampler._sample = sample_with_ends


def main() -> None:
    parser = argparse.ArgumentParser(
        'python -m benchmarks.peer_tunix', description=__doc__.splitlines()[0]
    )
    parser.add_argument('--what', required=True, choices=workload.PARTS['tunix'])
    parser.add_argument(
        '--data', required=True, type=pathlib.Path, help='folder that benchmarks.peers has prepared'
    )
    given = parser.parse_args()
    mesh = jax.make_mesh((1, 1), ('fsdp', 'tp'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with mesh:
        if given.what in ('grpo', 'long_tail'):
            found = grpo(given.data, given.what, mesh)
        else:
            found = {'sft': sft, 'sample': sample}[given.what](given.data)
    parameters = workload.MODEL['parameters']  # checked when it was built
    print(
        json.dumps(
            {'what': given.what, 'parameters': parameters, **found, 'peak_gb': workload.peak_gb()}
        )
    )


if __name__ == '__main__':
    main()
