"""Reinforcement from own samples: prompts -> rollouts -> rewards -> advantages -> the same step as
any other stage."""

from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np

from reasonjax.model.score import READ
from reasonjax.tracking.metrics import Timers
from reasonjax.training import fused, samplers
from reasonjax.training.batch_source import BatchSource, StepBatches
from reasonjax.training.batching import layout_of, minibatches
from reasonjax.training.batching import shapes as shapes_of_batch
from reasonjax.training.checkpoint import Remembers
from reasonjax.training.compile_ahead import Ahead, shapes_of
from reasonjax.training.context import Run, Stage
from reasonjax.training.group_buffer import GroupBuffer
from reasonjax.training.host_step import compile_score, host_rollout_step
from reasonjax.training.kinds import StageResult
from reasonjax.training.loop import train
from reasonjax.training.rollout_metrics import Watcher, reward_metrics, rollout_metrics, rows_of
from reasonjax.training.rollout_step import rollout_step, wants_reference
from reasonjax.training.rollouts import open_data, open_rollouts

__all__ = ['check', 'open_data', 'run']


def run(
    run: Run, stage: Stage, initial_params: Callable[[], Any], evaluation: Callable | None
) -> StageResult:
    """Runs the stage; see `loop.train`, and `GroupBuffer` for where the groups come from that a
    step trains on.

    The metrics of the advantage (`reward`, `frac_reward_zero_std`, ...) are of these groups;
    `rewards/*` and `completions/*` are of all that was sampled for the step.

    Raises:
      UserError: fewer than two generations per prompt, or a minibatch count that does not divide
        the prompts.
    """
    settings = stage.config
    if settings.on_device:
        return fused.run(run, stage, initial_params, evaluation)
    samplers.check(settings, stage.name)
    layout = layout_of(settings, run.mesh, stage.name)
    score, ahead = compile_score(run, settings, layout), Ahead()
    how = host_rollout_step(run, stage, layout, score, ahead)
    reference, shapes = None, None
    if not (
        layout.packing
        or settings.minibatches > 1
        or settings.pipelined
        or settings.dynamic_sampling > 1
    ):
        shapes = shapes_of_batch(
            settings,
            settings.num_prompts,
            layout,
            run.mesh,
            old=how.updates > 1,
            reference=wants_reference(settings),
        )
    if wants_reference(settings):
        # The reference is the model as this stage found it, adapters of earlier stages included; it
        # stays in memory.
        reference = initial_params()
        initial_params = lambda: reference  # noqa: E731
        if shapes is not None:
            ahead.start(
                score, shapes_of(reference), {name: x for name, x in shapes.items() if name in READ}
            )
    table: list[dict] = []
    watch = Watcher(stage.name)

    with open_rollouts(run, stage) as rollouts:
        buffer = GroupBuffer(
            rollouts,
            num_prompts=settings.num_prompts,
            steps=settings.steps,
            pipelined=settings.pipelined,
            dynamic_sampling=settings.dynamic_sampling,
        )

        def next_batches(step: int, params: Any, timers: Timers) -> StepBatches:
            scored, sampled, origin = buffer.next(step, params, timers)
            age_B = (
                np.repeat(step - scored.steps, settings.num_generations)
                if buffer.may_be_stale
                else None
            )
            with timers('score'):
                batch, advantage_PxG, metrics = rollout_step(
                    how, params, reference, scored.prompts, scored.rollout, scored.total_PxG, age_B
                )
                if how.updates > 1 and not settings.pipelined:
                    # for the clock; pipelined, it would wait for the rollout in flight
                    jax.block_until_ready(batch['logprob_old'])
            if settings.log_completions_every and step % settings.log_completions_every == 0:
                table[:] = rows_of(scored, advantage_PxG)
            measured = (
                metrics
                | origin
                | rollout_metrics(sampled.rollout)
                | reward_metrics(sampled.rewards)
            )
            watch(measured)
            return StepBatches(
                minibatches(batch, settings), measured, int(sampled.rollout.length.sum())
            )

        def record(step: int) -> None:
            if table:
                run.writer.completions(stage.name, step, table)
                table.clear()

        # Waiting for each step makes the clock of its phases exact; pipelined, it would wait for
        # nothing but tables.
        tables = record if settings.log_completions_every or not settings.pipelined else None
        source = BatchSource(
            next_batches,
            rollouts.data,
            how.updates,
            settings.temperature,
            tables,
            memory=Memory(watch, buffer),
            shapes=shapes,
        )
        return train(run, stage, initial_params, source, evaluation)


def check(config: ml_collections.ConfigDict, name: str) -> None:
    """Raises UserError where the settings of a stage do not fit each other."""
    if config[name].on_device:
        fused.check(config[name], name)


class Memory:
    """What the stage remembers from step to step, as one thing that a checkpoint holds: the
    warnings and the rollouts that wait."""

    def __init__(self, *parts: Remembers):
        self._parts = parts

    def get_state(self) -> dict:
        return {name: value for part in self._parts for name, value in part.get_state().items()}

    def set_state(self, state: dict) -> None:
        for part in self._parts:
            part.set_state(state)
