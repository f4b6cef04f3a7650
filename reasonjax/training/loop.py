"""The one training loop: restore, step, record, evaluate, save. Stages differ in the source of
batches they hand in.

What a kill at any moment may cost is the time since the newest checkpoint, and nothing else: see
docs/RELIABILITY.md.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from reasonjax import config as configs
from reasonjax import randomness
from reasonjax.errors import Stopped, UserError
from reasonjax.model import config as model_config
from reasonjax.parallel import mesh as meshes
from reasonjax.parallel import processes
from reasonjax.tracking.metrics import Timers
from reasonjax.tracking.progress import Progress
from reasonjax.training import cautions, claim, evaluate, stopping
from reasonjax.training.batch_source import BatchSource, StepBatches, dropped
from reasonjax.training.checkpoint import Checkpoints
from reasonjax.training.checkpoint_trees import abstract
from reasonjax.training.compile_ahead import Ahead, shapes_of
from reasonjax.training.context import Run, Stage, adapt
from reasonjax.training.counters import (
    Counters,
    actions_due,
    check,
    limit_reached,
    read_counts,
    update_best,
)
from reasonjax.training.failures import describe_failure, describe_rollback
from reasonjax.training.iteration import Measured, StepInputs, fetch
from reasonjax.training.kinds import StageResult
from reasonjax.training.step import State
from reasonjax.training.updates import compile_update, create_state
from reasonjax.weights import finite
from reasonjax.weights.partition import combine, partition


def train(
    run: Run,
    stage: Stage,
    initial_params: Callable[[], Any],
    source: BatchSource,
    evaluation: Callable | None,
) -> StageResult:
    """Runs a training stage to its end, from its newest checkpoint where there is one.

    Args:
      run: what stages share.
      stage: which it is.
      initial_params: returns the parameters that the stage starts from; called at the start, and by
        a rollback to it. They are not changed, and only those that do not train are kept.
      source: of batches.
      evaluation: what `evaluate.make` returned, or None.

    Raises:
      UserError: settings that cannot work, a checkpoint that cannot be written, or a stage that
        keeps failing.
      Stopped: the program was asked to stop; everything is saved.
    """
    check(stage.config, stage.name, evaluation is not None)
    folder, keep = stage.folder / 'checkpoints', stage.config.keep_checkpoints
    with Checkpoints(folder, keep=keep) as checkpoints:
        return _Training(run, stage, initial_params, source, evaluation, checkpoints).to_the_end()


class _Training:
    """A training stage under way: the state of the step and everything beside it that changes."""

    def __init__(
        self,
        run: Run,
        stage: Stage,
        initial_params: Callable[[], Any],
        source: BatchSource,
        evaluation: Callable | None,
        checkpoints: Checkpoints,
    ):
        self.run, self.stage, self.settings = run, stage, stage.config
        self.initial_params, self.source = initial_params, source
        self.evaluation, self.checkpoints = evaluation, checkpoints
        self.started = time.perf_counter()
        self.earlier = 0.0  # seconds of attempts before this one
        self.total_updates = self.settings.steps * source.updates
        rate = configs.resolve(self.settings.learning_rate, 'learning_rate')
        self.schedule, self.host = rate(self.total_updates), meshes.host_device()
        self.optimizer = configs.resolve(self.settings.optimizer, 'optimizer')(self.schedule)
        self.state, self.frozen, self.chosen = self._start()
        self.update = compile_update(
            run, stage, source, self.optimizer, self.state, self.total_updates
        )
        self.counters, self.timers = Counters(), Timers()
        # fetches the metrics of what was dispatched last
        self.pending: Callable[[], list[Measured]] | None = None
        self.failing = False  # the last steps were not finite, one more than are tolerated
        self.last = self.settings.steps  # the last step: an earlier one once a limit is reached
        self.begin = 0  # the step that this process resumes from
        self.mark = claim.fingerprint(run.config)
        self.limited = bool(
            self.settings.get('token_limit', 0) or self.settings.get('time_limit', 0)
        )
        # whether the first step of this process is over; seconds of all others
        self.compiled, self.stepped = False, 0.0

    def to_the_end(self) -> StageResult:
        """Trains from the newest checkpoint to the end of the stage."""
        unevaluated = self._resume()
        if not self.begin:
            cautions.say(self.settings, self.stage.name, self.state.trainable, self.total_updates)
        self.ahead = self._compile_ahead()
        with Progress(self.stage.name, self.settings.steps, start=self.begin) as self.progress:
            self.clock = time.perf_counter()
            if unevaluated:
                self._conclude(self.begin, {'evaluate'})
            if self._limit_reached() or self.begin >= self.settings.steps:
                self.last = self.begin
            together = self.source.steps
            for step in range(self.begin + together, self.settings.steps + 1, together):
                if step > self.last:
                    break
                self._step(step)
        return StageResult(self._params(), self._seconds(), self.last, self.counters.best)

    def _step(self, step: int) -> None:
        """Does a step, or as many as are dispatched together, of which this is the last."""
        self._dispatch(step - self.source.steps + 1)
        stop = stopping.asked()
        evaluating = self.evaluation is not None
        due = functools.partial(actions_due, step, self.settings, evaluating=evaluating)
        if stop or due(self.last) or self.source.record is not None or self._watchful():
            with self.timers('update'):
                jax.block_until_ready(self.state)
            self._settle()
        if self.source.record is not None:
            self.source.record(step)
        if self.failing:
            self._roll_back(step)
        self._conclude(step, due(self.last))
        if stop:
            self._save(step, regular=False)
            raise Stopped(f'{self._where(step)} is done and saved')
        if due(self.last):
            self.clock = time.perf_counter()

    def _dispatch(self, step: int) -> None:
        """Starts a step, or several, and settles what came before while it runs."""
        fed = self.source.next(step, self._params(), self.timers)
        with self.timers('update'):
            start = self._start_updates if self.source.on_device is None else self._start_program
            measured = start(step, fed)
            self._settle()
        self.pending = measured

    def _start_updates(self, step: int, fed: StepBatches) -> Callable[[], list[Measured]]:
        # Read now: when the metrics are fetched, the source may be a batch further.
        known, tokens, device = fed.metrics | dropped(self.source.data), fed.tokens, []
        self.ahead.finish()
        for i, batch in enumerate(fed.batches):
            key = self._key((step - 1) * self.source.updates + i)
            self.state, metrics = self.update(self.state, self.frozen, batch, key)
            device.append(metrics)
        return lambda: [Measured(step, _average(jax.device_get(device)) | known, tokens)]

    def _compile_ahead(self) -> Ahead:
        ahead = Ahead()
        if self.source.shapes is not None:
            ahead.start(
                self.update,
                *shapes_of((self.state, self.frozen)),
                self.source.shapes,
                shapes_of(self._key(0)),
            )
        return ahead

    def _key(self, update: int) -> jax.Array:
        return randomness.key(self.run.config.seed, self.stage.number, update, 'update')

    def _start_program(self, step: int, given: StepInputs) -> Callable[[], list[Measured]]:
        on_device = self.source.on_device
        self.state, device = self.update(
            self.state, self.frozen, on_device.fixed, given.arrays, np.int32(step)
        )
        return functools.partial(fetch, on_device, step, given.host, device)

    def _settle(self) -> None:
        """Fetches the metrics of what was dispatched last, if that has not been done; counts and
        writes them down."""
        if self.pending is None:
            return
        steps, self.pending = self.pending(), None
        seconds, self.clock = time.perf_counter() - self.clock, time.perf_counter()
        for measured in steps:
            self._count(measured, seconds / len(steps), last=measured is steps[-1])

    def _count(self, measured: Measured, seconds: float, last: bool) -> None:
        """Counts a step and writes it down; `last` of those that were dispatched together."""
        step, metrics, tokens = measured
        counters, settings = self.counters, self.settings
        counters.count(
            self.source.updates, tokens, metrics.pop('nonfinite'), metrics.pop('spike', 0.0)
        )
        # Between two dispatches, where weights can change hands: a bad stretch that is over by then
        # is over.
        self.failing = last and counters.nonfinite_in_a_row > settings.max_nonfinite
        over = self.failing and counters.rollbacks == settings.max_rollbacks
        counters.rollbacks += self.failing and not over
        metrics |= {'num_tokens': counters.num_tokens, 'skipped_updates': counters.skipped_updates}
        if settings.spike_zscore:
            metrics['skipped_spikes'] = counters.skipped_spikes
        if settings.max_rollbacks:
            metrics['rollbacks'] = counters.rollbacks
        # An update that was skipped leaves the optimiser's own count where it was.
        with jax.default_device(self.host):
            rate = float(self.schedule(max(0, counters.applied_updates - 1)))
        metrics |= {'learning_rate': rate, 'step_time': seconds}
        metrics['tokens_per_second'] = tokens / seconds
        self.stepped += seconds * self.compiled
        self.compiled = True
        if last and self._limit_reached():
            self.last = step
        if step % settings.log_every == 0 or step == self.last:
            self.run.writer.write(
                self.stage.name, step, metrics | (self.timers.take() if last else {})
            )
        self.progress.update(step, metrics)
        if over or counters.spikes_in_a_row > settings.spike_window:
            text = describe_failure(
                self.stage.name, step, metrics, counters, nonfinite=self.failing
            )
            raise UserError(text)

    def _watchful(self) -> bool:
        """Returns whether each step is to be settled at once. Then a rollback always comes before
        the same step, and a limit ends the stage."""
        return (
            self.limited
            or self.settings.max_rollbacks > 0
            and (self.counters.nonfinite_in_a_row > 0 or self.settings.max_nonfinite == 0)
        )

    def _conclude(self, step: int, due: set[str]) -> None:
        """Evaluates and saves where it is due."""
        best = 'evaluate' in due and self._evaluate(step, due)
        if best or 'save' in due:
            every = self.settings.checkpoint_every
            # The end is no place to save for a stage that was longer from the start: one that goes
            # on from here decides as that one does.
            self._save(step, regular=best or bool(every and step % every == 0))

    def _evaluate(self, step: int, due: set[str]) -> bool:
        """Evaluates; returns whether this makes the step's checkpoint the one to keep."""
        try:
            with self.timers('evaluate'):
                summary = evaluate.summarise(self.evaluation(self._params()))
        except Stopped as stop:
            self._save(step, regular='save' in due, unevaluated=True)
            raise Stopped(f'{self._where(step)} is done and saved; {stop}') from None
        measured = evaluate.as_metrics(summary)
        # Where this process resumes, another may have written it down before it was killed.
        self.run.writer.write(self.stage.name, step, measured, once=step == self.begin)
        before = self.counters.best
        self.counters.best = update_best(before, step, measured, self.settings, self.stage.name)
        return self.counters.best != before

    def _save(self, step: int, *, regular: bool = True, unevaluated: bool = False) -> None:
        """Saves everything.

        Args:
          step: that was done.
          regular: whether an undisturbed run saves here too.
          unevaluated: the evaluation of this step is still to be done.
        """
        self._check_finite(f'stage {self.stage.name}, step {step}')
        if regular:
            self.counters.newest = step
        self.checkpoints.retain(self.counters.retained(self.settings.max_rollbacks > 0))
        self.run.writer.sync()
        meta = {
            'stage': self.stage.name,
            'model': model_config.to_dict(self.run.model),
            'counted': dataclasses.asdict(self.counters),
            'clock': {
                'seconds': self._seconds(),
                'steps': self.stepped,
                'phases': self.timers.seconds,
            },
            'unevaluated': unevaluated,
            'config': self.mark,
            'steps': self.settings.steps,
            **self.run.writer.written(self.stage.name),
        }
        position = dict(data=self.source.data, memory=self.source.memory)
        self.checkpoints.save(
            step, params=self._params(), train=_rest(self.state), meta=meta, **position
        )

    def _check_finite(self, where: str) -> None:
        """Raises UserError where a weight is not finite: such weights are never saved, so a stage
        never ends with them."""
        name = self.stage.name
        advice = f'An update overflowed: lower {name}.learning_rate.peak, or raise {name}.optimizer.eps. Earlier checkpoints stay.'
        finite.check(self._params(), where, advice, self.run.model.compute_dtype)

    def _resume(self) -> bool:
        """Restores the newest checkpoint, if there is one. Returns whether its evaluation is still
        to be done."""
        begin = self.checkpoints.latest()
        if begin is None:
            self.run.writer.resume(self.stage.name, None)
            return False
        self.begin = begin
        meta = self._restore(begin, data=self.source.data, memory=self.source.memory)
        where = self.stage.folder / 'checkpoints' / str(begin)
        if meta.get('config') != self.mark:
            raise UserError(
                f'checkpoint {where} is of another config than {claim.CONFIG}; was it put there '
                'from elsewhere?'
            )
        self.counters, clock = read_counts(meta, where)
        self._check_finite(f'stage {self.stage.name}: its checkpoint of step {begin}')
        self.run.writer.resume(self.stage.name, begin, meta)
        self.earlier, self.stepped = clock['seconds'], clock['steps']
        self.timers.seconds.update(clock['phases'])
        steps, every = self.settings.steps, self.settings.eval_every
        before = meta.get('steps', steps)
        if before != steps:
            counts = dict(update=self.counters.applied_updates, updates=self.source.updates)
            claim.report_length(self.run, self.stage, before, begin=begin, **counts)
        # What was the last step is not evaluated by the loop; now it is one like others.
        was_last = (
            before == begin < steps and self.evaluation is not None and every and begin % every == 0
        )
        return bool(meta.get('unevaluated') or was_last) and begin < steps

    def _restore(self, step: int, **position: Any) -> dict:
        """Replaces the parameters, the optimiser and the step's own count by those of a checkpoint.
        Returns its `meta`."""
        params, train = abstract(self._params()), abstract(_rest(self.state))
        # Given up first: there may not be room for both.
        jax.tree.map(lambda x: x.delete(), self.state)
        restored = self.checkpoints.restore(step, params=params, train=train, **position)
        self.state = State(trainable=partition(restored.params, self.chosen)[0], **restored.train)
        return restored.meta

    def _roll_back(self, step: int) -> None:
        """Goes back to weights that are known to be good. Step, position in the data and counters
        move on: the bad stretch is over."""
        counters, bad = self.counters, self.counters.nonfinite_in_a_row
        target = None if counters.proven is None else self.checkpoints.latest(upto=counters.proven)
        count = np.asarray(jax.device_get(self.state.step))
        if target is None:
            jax.tree.map(lambda x: x.delete(), self.state)
            self.state, self.frozen, _ = self._start()
            counters.applied_updates = 0
        else:
            counters.applied_updates = self._restore(target)['counted']['applied_updates']
        self.state = self.state.replace(step=jax.device_put(count, self.state.step.sharding))
        counters.newest = counters.proven = target
        counters.nonfinite_in_a_row, self.failing = 0, False
        if processes.is_main():
            counts = (bad, target, counters.rollbacks, self.settings.max_rollbacks)
            print(describe_rollback(self.stage.name, step, *counts), file=sys.stderr)

    def _start(self) -> tuple[State, Any, Any]:
        """Returns the state before the first step, the frozen part, and which weights train."""
        # Handed on without a name, or the parameters would be here twice while they are placed.
        params = functools.partial(adapt, self.run, self.stage)
        return create_state(self.run, self.settings, self.optimizer, params(self.initial_params()))

    def _limit_reached(self) -> bool:
        return limit_reached(self.settings, self.counters.num_tokens, self.stepped)

    def _where(self, step: int) -> str:
        return f'stage {self.stage.name}: step {step} of {self.settings.steps}'

    def _params(self) -> Any:
        return combine(self.state.trainable, self.frozen)

    def _seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.started


def _rest(state: State) -> dict:
    return {'step': state.step, 'optimizer': state.optimizer, 'norms': state.norms}


def _average(updates: list[dict]) -> dict[str, float]:
    names = updates[0].keys()
    return {name: float(np.mean([u[name] for u in updates])) for name in names}
