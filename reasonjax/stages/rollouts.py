"""Prompts -> rollout -> rewards: what online training and collecting have in common."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from reasonjax import config as configs
from reasonjax import randomness
from reasonjax.data import pipeline
from reasonjax.errors import UserError
from reasonjax.metrics import Timers
from reasonjax.parallel import processes
from reasonjax.rollout.rewards import RewardPool, Rewards, RewardSpec, joined
from reasonjax.rollout.sampler import Rollout, Sampling
from reasonjax.rollout.text import Completion, completions
from reasonjax.stages.context import Place, Run, at_once, check_data, data_functions, settings
from reasonjax.stages.sampling import sampler


class Drawn(NamedTuple):
    """One step's rollout on the host.

    Attributes:
      prompts: the batch of prompts, `rows` with all their columns.
      rollout: arrays [P, G, C].
      texts: P lists of G completions.
      rewards: of the P * G samples, those of a prompt adjacent.
    """

    prompts: dict
    rollout: Rollout
    texts: list[list[Completion]]
    rewards: Rewards


def open_data(run: Run, place: Place) -> pipeline.Batches:
    """The prompts a stage samples from."""
    stage = settings(run.config, place)
    source, transforms = data_functions(run, stage.data)
    return pipeline.prompts(
        source,
        transforms,
        run.tokenizer,
        max_prompt_length=stage.data.max_prompt_length,
        num_prompts=stage.num_prompts,
        seed=randomness.host_seed(run.config.seed, place.number),
        overlong=stage.data.overlong,
    )


class Rollouts:
    """The prompts of a stage, the compiled sampler, and the reward functions in their worker processes.

    Attributes:
      data: the iterator over prompts.
    """

    def __init__(self, run: Run, place: Place, pool: RewardPool):
        stage = settings(run.config, place)
        sampling = Sampling(
            num_generations=stage.num_generations,
            max_tokens=stage.max_completion_length,
            temperature=stage.temperature,
            top_k=stage.top_k,
            top_p=stage.top_p,
            min_p=stage.min_p,
            eos_ids=run.tokenizer.eos_ids,
        )
        self._run, self._place, self._pool = run, place, pool
        self._generate = sampler(run, sampling)
        self._at_once = at_once(stage)
        self.data = open_data(run, place)
        check_data(place, self.data)

    def draw(self, step: int, params: Any, timers: Timers) -> Drawn:
        """Samples the next prompts and scores the completions.

        Raises:
          UserError: no sample got a reward.
        """
        with timers('data'):
            prompts = next(self.data)
            arrays = {name: prompts[name] for name in ('tokens', 'segments', 'positions')}
            arrays['index'] = np.arange(len(prompts['rows']))
        with timers('generate'):
            key = randomness.key(self._run.config.seed, self._place.number, step, 'rollout')
            parts = [
                self._generate(params, {name: x[i : i + self._at_once] for name, x in arrays.items()}, key)
                for i in range(0, len(prompts['rows']), self._at_once)
            ]
            rollout = jax.tree.map(lambda *x: np.concatenate(x), *processes.fetch(parts))
        with timers('reward'):
            texts = completions(rollout, self._run.tokenizer)
            rewards = score_completions(self._pool, prompts['rows'], texts)
        if np.isnan(rewards.total).all():
            raise UserError(f'stage {self._place.name}, step {step}: no sample has a reward ({rewards.counts}).')
        return Drawn(prompts, rollout, texts, rewards)

    def skip(self) -> None:
        """Passes over the prompts of a step that is done already."""
        next(self.data)


@contextlib.contextmanager
def open_rollouts(run: Run, place: Place) -> Iterator[Rollouts]:
    """Starts the reward workers of a stage, and ends them."""
    stage = settings(run.config, place)
    check(stage, place.name)
    with RewardPool(reward_specs(stage), stage.reward_workers, stage.reward_time_limit, stage.rewards_on_error) as pool:
        yield Rollouts(run, place, pool)


def check(stage: Mapping[str, Any], name: str) -> None:
    """Raises UserError where sampling or scoring cannot work."""
    if stage.temperature <= 0:
        raise UserError(f'config.{name}.temperature={stage.temperature}: several samples of a prompt need a positive temperature.')
    if not stage.rewards:
        raise UserError(f'config.{name}.rewards: no reward function is named.')


def reward_specs(stage: Mapping[str, Any]) -> dict[str, RewardSpec]:
    """The reward functions of a stage, knobs bound."""
    return {
        key: RewardSpec(configs.resolve(node, 'rewards', f'rewards.{key}'), weight=node.get('weight', 1.0))
        for key, node in stage.rewards.items()
    }


def score_completions(pool: RewardPool, rows: list[dict], texts: list[list[Completion]]) -> Rewards:
    """Calls the reward functions with TRL's arguments: every prompt repeated for its completions, extra columns beside.

    Each process scores its share of the prompts, and all get all rewards.
    """
    G, conversational = len(texts[0]), not isinstance(rows[0]['prompt'], str)
    names = set.intersection(*(set(row) for row in rows)) - {'prompt', 'completion', 'completion_ids', 'terminated'}

    def of(part: slice) -> Rewards:
        flat = [c for group in texts[part] for c in group]
        repeated = [row for row in rows[part] for _ in range(G)]
        columns = {'completion_ids': [c.ids for c in flat], 'terminated': [c.terminated for c in flat]}
        columns |= {name: [row[name] for row in repeated] for name in sorted(names)}
        said = [[{'role': 'assistant', 'content': c.text}] if conversational else c.text for c in flat]
        return pool.score([row['prompt'] for row in repeated], said, columns, G, first=part.start * G)

    return joined(processes.divided(len(rows), of))
