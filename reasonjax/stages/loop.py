"""The one training loop: restore, step, record, evaluate, save. Stages differ in the feed they hand in."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from reasonjax import config as configs
from reasonjax import randomness
from reasonjax.checkpoint import Checkpoints
from reasonjax.errors import UserError
from reasonjax.methods.corruptions import Context
from reasonjax.metrics import Progress, Timers
from reasonjax.model import config as model_config
from reasonjax.parallel import mesh as meshes
from reasonjax.stages import evaluate
from reasonjax.stages.context import Place, Run, adapt, settings
from reasonjax.state import State, create, make_update
from reasonjax.weights.partition import combine, partition


class Fed(NamedTuple):
    """What one step of a stage trains on.

    Attributes:
      batches: of the updates of this step, in order, on the mesh.
      metrics: what the feed measured, numbers on the host.
      tokens: how many were produced or read to make them, for tokens per second.
    """

    batches: list[dict]
    metrics: dict[str, float]
    tokens: int


class Feed(NamedTuple):
    """Where batches come from.

    Attributes:
      next: `(step, params, timers) -> Fed`.
      data: the iterator whose position is saved; it has `counters`.
      updates: optimiser updates per step.
      temperature: of the log-probs that the objective sees.
      record: `(step) -> None`, writes what is worth keeping of the last step besides its metrics.
      together: adjacent rows that the objective compares.
    """

    next: Callable[[int, Any, Timers], Fed]
    data: Any
    updates: int
    temperature: float = 1.0
    record: Callable[[int], None] | None = None
    together: int = 1


class Trained(NamedTuple):
    """A finished stage: parameters, seconds it took (those of killed attempts up to their last checkpoint included)."""

    params: Any
    seconds: float


def train(run: Run, place: Place, incoming: Any, feed: Feed, evaluation: Callable | None) -> Trained:
    """Runs a training stage to its end, from its newest checkpoint where there is one.

    Args:
      run: what stages share.
      place: of this stage.
      incoming: parameters as the stage before left them; not changed, not donated.
      feed: source of batches.
      evaluation: what `evaluate.make` returned, or None.
    """
    stage = settings(run.config, place)
    started = time.perf_counter()
    params = adapt(run, place, incoming)
    placed = meshes.shardings(run.specs, params, run.mesh)
    params = jax.device_put(params, placed)
    chosen = configs.resolve(stage.filter, 'filter')(run.specs, params)
    trainable, frozen = partition(params, chosen)
    total_updates = stage.steps * feed.updates
    schedule = configs.resolve(stage.learning_rate, 'learning_rate')(total_updates)
    optimizer = configs.resolve(stage.optimizer, 'optimizer')(schedule)
    state = create(trainable, optimizer, partition(placed, chosen)[0], meshes.replicated(run.mesh))
    del params, trainable
    update = _compile(run, stage, feed, optimizer, state, total_updates)
    counted = {'num_tokens': 0.0, 'skipped_updates': 0.0, 'nonfinite_in_a_row': 0, 'seconds': 0.0}

    with Checkpoints(place.folder / 'checkpoints', keep=stage.keep_checkpoints) as checkpoints:
        begin = checkpoints.latest()
        run.writer.resume(place.name, begin)
        if begin is not None:
            restored = checkpoints.restore(begin, params=combine(state.trainable, frozen), train=_rest(state), data=feed.data)
            state = State(restored.train['step'], partition(restored.params, chosen)[0], restored.train['optimizer'])
            counted = restored.meta['counted']

        def save(step: int) -> None:
            meta = {'stage': place.name, 'model': model_config.to_dict(run.model), 'counted': elapsed()}
            checkpoints.save(step, params=combine(state.trainable, frozen), train=_rest(state), data=feed.data, meta=meta)

        def elapsed() -> dict:
            return counted | {'seconds': counted['seconds'] + time.perf_counter() - started}

        def settle(pending: tuple[int, list[dict], Fed]) -> dict:
            """Fetches the metrics of a step that has been dispatched, and writes them down."""
            nonlocal clock
            step, device, fed = pending
            metrics = _average(jax.device_get(device)) | fed.metrics
            counted['num_tokens'] += fed.tokens
            nonfinite = metrics.pop('nonfinite')
            counted['skipped_updates'] += round(nonfinite * feed.updates)
            in_a_row = counted['nonfinite_in_a_row'] = counted['nonfinite_in_a_row'] + 1 if nonfinite else 0
            seconds, clock = time.perf_counter() - clock, time.perf_counter()
            metrics |= {name: counted[name] for name in ('num_tokens', 'skipped_updates')}
            # An update that was skipped leaves the optimiser's own count where it was.
            applied = max(0, step * feed.updates - 1 - counted['skipped_updates'])
            metrics |= {'learning_rate': float(schedule(applied)), 'step_time': seconds, 'tokens_per_second': fed.tokens / seconds}
            if step % stage.log_every == 0 or step == stage.steps:
                run.writer.write(place.name, step, metrics | timers.take())
            if in_a_row > stage.max_nonfinite:
                raise UserError(
                    f'stage {place.name}, step {step}: loss or gradient was not finite {in_a_row} steps in a row '
                    f'(loss {metrics["loss"]}, grad_norm {metrics["grad_norm"]}); those updates were skipped. Lower '
                    f'{place.name}.learning_rate.peak or set {place.name}.optimizer.clip_norm; max_nonfinite says how many are tolerated.'
                )
            return metrics

        timers, pending, clock = Timers(), None, 0.0
        with Progress(place.name, stage.steps, start=begin or 0) as progress:
            clock = time.perf_counter()
            for step in range((begin or 0) + 1, stage.steps + 1):
                fed = feed.next(step, combine(state.trainable, frozen), timers)
                # Read now: when the metrics are fetched, the feed may be a batch further.
                dropped = {f'data/{name}': value for name, value in feed.data.counters.items() if name.startswith('dropped')}
                with timers('update'):
                    device = []
                    for i, batch in enumerate(fed.batches):
                        key = randomness.key(run.config.seed, place.number, (step - 1) * feed.updates + i, 'update')
                        state, metrics = update(state, frozen, batch, key)
                        device.append(metrics)
                    # The metrics of the step before are fetched while this one runs.
                    if pending is not None:
                        progress.update(pending[0], settle(pending))
                pending = (step, device, fed._replace(metrics=fed.metrics | dropped))
                due = _due(step, stage)
                if due or feed.record is not None:
                    with timers('update'):
                        jax.block_until_ready(state)
                    progress.update(step, settle(pending))
                    pending = None
                if feed.record is not None:
                    feed.record(step)
                if 'evaluate' in due and evaluation is not None and step < stage.steps:
                    with timers('evaluate'):
                        summary = evaluate.summarise(evaluation(combine(state.trainable, frozen)))
                    run.writer.write(place.name, step, evaluate.as_metrics(summary))
                if 'save' in due:
                    save(step)
                if due:
                    clock = time.perf_counter()
        seconds = elapsed()['seconds']
    return Trained(combine(state.trainable, frozen), seconds)


def _compile(run: Run, stage: Any, feed: Feed, optimizer: Any, state: State, updates: int) -> Callable:
    context = Context(updates, run.tokenizer.pad_id, run.tokenizer.mask_id, run.tokenizer.vocab_size)
    corruption = configs.resolve(stage.corruption, 'corruption') if stage.corruption.name != 'none' else None
    update = make_update(
        run.model,
        configs.resolve(stage.objective, 'objective'),
        optimizer,
        corruption=corruption,
        context=context,
        accumulation=stage.accumulation,
        together=feed.together,
        temperature=feed.temperature,
    )
    # Pinned, or the compiler may choose other shardings for the output and compile once more.
    placed = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(update, donate_argnums=0, out_shardings=(placed, None))


def _rest(state: State) -> dict:
    return {'step': state.step, 'optimizer': state.optimizer}


def _due(step: int, stage: Any) -> set[str]:
    """What follows a step: an evaluation, a checkpoint; the last step is always saved."""
    every = {'evaluate': stage.eval_every, 'save': stage.checkpoint_every}
    due = {name for name, period in every.items() if period and step % period == 0}
    return due | ({'save'} if step == stage.steps else set())


def _average(updates: list[dict]) -> dict[str, float]:
    names = updates[0].keys()
    return {name: float(np.mean([u[name] for u in updates])) for name in names}

