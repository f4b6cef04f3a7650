"""Reinforcement from own samples: prompts -> rollouts -> rewards -> advantages -> the same step as any other stage."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reasonjax import config as configs
from reasonjax import reduce
from reasonjax.errors import UserError, divisor
from reasonjax.methods.objectives.protocol import needed
from reasonjax.metrics import Timers
from reasonjax.parallel import mesh as meshes
from reasonjax.parallel import processes
from reasonjax.rollout.rewards import Rewards
from reasonjax.rollout.sampler import Rollout
from reasonjax.stages.context import Place, Run, settings
from reasonjax.stages.loop import Fed, Feed, Trained, train
from reasonjax.stages.rollouts import Drawn, open_rollouts
from reasonjax.state import make_score

FLAT_STEPS = 10
CUT_SHARE = 0.5


def run(run: Run, place: Place, incoming: Callable[[], Any], evaluation: Callable | None) -> Trained:
    """Runs the stage; see `loop.train`.

    Raises:
      UserError: fewer than two generations per prompt, or a minibatch count that does not divide the prompts.
    """
    stage = settings(run.config, place)
    check(stage, place.name)
    advantage = configs.resolve(stage.advantage, 'advantage')
    advantage_of = jax.jit(lambda rewards_PxG, valid_PxG: _with_values(advantage(rewards_PxG, valid_PxG)))
    reference_of = None
    if 'logprob_ref' in needed(configs.resolve(stage.objective, 'objective')):
        # The reference is the model as this stage found it, adapters of earlier stages included; it stays in memory.
        reference = incoming()
        incoming = lambda: reference  # noqa: E731
        micro = stage.minibatches * stage.accumulation
        logprob = jax.jit(meshes.on(run.mesh, make_score(run.model, micro=micro, temperature=stage.temperature)))
        reference_of = lambda batch: logprob(reference, batch)  # noqa: E731
    updates = stage.num_iterations * stage.minibatches
    table: list[dict] = []
    watch = Watcher(place.name)

    with open_rollouts(run, place) as rollouts:

        def feed(step: int, params: Any, timers: Timers) -> Fed:
            drawn = rollouts.draw(step, params, timers)
            with timers('score'):
                total_PxG = drawn.rewards.total.reshape(stage.num_prompts, stage.num_generations)
                valid_PxG = ~np.isnan(total_PxG)
                advantage_PxG, metrics = jax.device_get(advantage_of(np.where(valid_PxG, total_PxG, 0.0), valid_PxG))
                batch = assemble(drawn.prompts, drawn.rollout, advantage_PxG, mask_truncated=stage.mask_truncated_completions)
                if updates > 1:
                    # The sampler's log-probs are the policy's own (one forward, a test holds them together): no second pass.
                    batch['logprob_old'] = batch['logprob_sampled']
                batch = meshes.place_batch(batch, run.mesh)
                if reference_of is not None:
                    batch['logprob_ref'] = reference_of(batch)
            if stage.log_completions_every and step % stage.log_completions_every == 0:
                table[:] = rows_of(drawn, advantage_PxG)
            measured = {name: float(value) for name, value in metrics.items()}
            measured |= rollout_metrics(drawn.rollout) | reward_metrics(drawn.rewards)
            watch(measured)
            return Fed(minibatches(batch, stage), measured, int(drawn.rollout.length.sum()))

        def record(step: int) -> None:
            if table:
                run.writer.completions(place.name, step, table)
                table.clear()

        return train(run, place, incoming, Feed(feed, rollouts.data, updates, stage.temperature, record, memory=watch), evaluation)


def check(stage: Mapping[str, Any], name: str) -> None:
    """Raises UserError where the counts cannot work."""
    if stage.num_generations < 2:
        raise UserError(
            f'config.{name}.num_generations={stage.num_generations}: advantages compare the completions of a prompt, so at least 2 are '
            'needed (8 is usual).'
        )
    if stage.num_prompts % stage.minibatches:
        best = divisor(stage.num_prompts, stage.minibatches)
        raise UserError(f'config.{name}.minibatches={stage.minibatches}: must divide num_prompts={stage.num_prompts}; nearest: {best}.')


def assemble(prompts: dict, rollout: Rollout, advantage_PxG: np.ndarray, *, mask_truncated: bool = False) -> dict:
    """Lays prompts and completions out as a supervised batch: [left-padded prompt | completion], weight 1 on completion tokens.

    Args:
      prompts: `tokens`, `segments`, `positions` [P, Tp].
      rollout: on the host.
      advantage_PxG: float32.
      mask_truncated: completions cut at the limit get weight 0 (they still count as rows).

    Returns:
      `tokens`, `segments`, `positions`, `weights`, `logprob_sampled` [P * G, Tp + C] and `advantage` [P * G].
    """
    P, G, C = rollout.tokens.shape
    alive = np.arange(C) < rollout.length.reshape(P * G, 1)

    def beside(of_prompt: np.ndarray, of_completion: np.ndarray, dtype: Any) -> np.ndarray:
        return np.concatenate([np.repeat(of_prompt, G, axis=0), of_completion.reshape(P * G, C)], axis=1).astype(dtype)

    nothing = np.zeros(prompts['tokens'].shape)
    weights = alive & (rollout.terminated.reshape(P * G, 1) | (not mask_truncated))
    after = np.repeat(prompts['positions'][:, -1], G)[:, None] + 1 + np.arange(C)
    return {
        'tokens': beside(prompts['tokens'], rollout.tokens, np.int32),
        'segments': beside(prompts['segments'], alive, np.int32),
        'positions': beside(prompts['positions'], after * alive, np.int32),
        'weights': beside(nothing, weights, np.float32),
        'logprob_sampled': beside(nothing, rollout.logprob, np.float32),
        'advantage': advantage_PxG.reshape(P * G).astype(np.float32),
    }


def minibatches(batch: dict, stage: Mapping[str, Any]) -> list[dict]:
    """The batches of each update: `minibatches` parts, whole groups each, gone over `num_iterations` times."""
    number, limit = stage.minibatches, jnp.asarray(stage.max_completion_length, jnp.float32)
    size = len(batch['tokens']) // number
    parts = [batch] if number == 1 else [{name: x[i * size : (i + 1) * size] for name, x in batch.items()} for i in range(number)]
    return [part | {'max_completion_length': limit} for part in parts] * stage.num_iterations


class Watcher:
    """Called with a step's metrics, it warns, once each, of the two ways a run silently learns nothing. A checkpoint holds its state."""

    def __init__(self, name: str):
        self._name = name
        self._flat, self._said = 0, []

    def get_state(self) -> dict:
        return {'flat': self._flat, 'said': list(self._said)}

    def set_state(self, state: dict) -> None:
        self._flat, self._said = state['flat'], list(state['said'])

    def __call__(self, metrics: Mapping[str, float]) -> None:
        self._flat = self._flat + 1 if metrics.get('frac_reward_zero_std') == 1 else 0
        cut = metrics['completions/clipped_ratio']
        texts = {}
        if self._flat >= FLAT_STEPS:
            texts['flat'] = (
                f'every prompt had equal rewards for {self._flat} steps (now {metrics["reward"]:.3g}), so there is nothing to learn from. '
                'Look at the completions, and at what the reward function reads.'
            )
        if cut > CUT_SHARE:
            texts['cut'] = (
                f'{cut:.0%} of the completions were cut at max_completion_length: they have no end and seldom an answer. Raise it, or '
                'set mask_truncated_completions.'
            )
        for kind, text in texts.items():
            if kind not in self._said:
                self._said.append(kind)
                if processes.is_main():
                    print(f'warning: stage {self._name}: {text}', file=sys.stderr)


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """Lengths under TRL's names."""
    length, ended = rollout.length.ravel(), rollout.terminated.ravel()
    functions = {'mean': np.mean, 'min': np.min, 'max': np.max}
    metrics = {f'completions/{name}_length': float(of(length)) for name, of in functions.items()}
    if ended.any():
        metrics |= {f'completions/{name}_terminated_length': float(of(length[ended])) for name, of in functions.items()}
    return metrics | {'completions/clipped_ratio': float(1 - ended.mean())}


def reward_metrics(rewards: Rewards) -> dict[str, float]:
    """Mean and deviation of each reward, and the samples each lost."""
    metrics: dict[str, float] = dict(rewards.counts)
    for name, values in zip(rewards.names, rewards.values.T, strict=True):
        kept = values[~np.isnan(values)]
        metrics[f'rewards/{name}/mean'] = float(kept.mean()) if len(kept) else float('nan')
        metrics[f'rewards/{name}/std'] = float(kept.std(ddof=1)) if len(kept) > 1 else 0.0
    return metrics


def rows_of(drawn: Drawn, advantage_PxG: np.ndarray) -> list[dict]:
    """The completions table: one row per sample, with its rewards and its advantage."""
    flat = [(row, c) for row, group in zip(drawn.prompts['rows'], drawn.texts, strict=True) for c in group]
    return [
        {'prompt': row['prompt'], 'completion': c.text}
        | {name: float(drawn.rewards.values[i, j]) for j, name in enumerate(drawn.rewards.names)}
        | {'solution': row.get('solution'), 'length': c.length, 'terminated': c.terminated}
        | {'advantage': float(advantage_PxG.reshape(-1)[i])}
        for i, (row, c) in enumerate(flat)
    ]


def _with_values(result: tuple[jax.Array, dict]) -> tuple[jax.Array, dict]:
    advantage, metrics = result
    return advantage, reduce.values(metrics)
