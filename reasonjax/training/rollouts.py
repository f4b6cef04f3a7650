"""Prompts -> rollout -> rewards: what online training and collecting have in common."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from reasonjax import randomness
from reasonjax.data import pipeline, stream
from reasonjax.data.sources import Source
from reasonjax.errors import UserError
from reasonjax.parallel import mesh as meshes
from reasonjax.parallel import processes
from reasonjax.sampling import reward_functions
from reasonjax.sampling.reward_pool import RewardPool, Rewards, RewardSpec, concat_rewards
from reasonjax.sampling.sampler import Rollout
from reasonjax.sampling.text import Completion, completions
from reasonjax.tracking.metrics import Timers
from reasonjax.training.batch import TEXT
from reasonjax.training.context import Run, Stage, at_once, check_data, data_functions
from reasonjax.training.rewards import list_columns, render_prompts, reward_specs, score_completions
from reasonjax.training.samplers import sampler, sampling_from_config


class PendingRollout(NamedTuple):
    """A rollout that the devices may still be computing.

    Attributes:
      prompts: the batch of prompts, `rows` with all their columns.
      parts: rollouts of some of the prompts each, in order.
      step: with the parameters at whose start it is drawn.
    """

    prompts: dict
    parts: list[Rollout]
    step: int


class ScoredRollout(NamedTuple):
    """A rollout on the host, of P prompts.

    Attributes:
      prompts: the batch of prompts, `rows` with all their columns.
      rollout: arrays [P, G, C].
      texts: P lists of G completions.
      rewards: of the P * G samples, those of a prompt adjacent.
      steps: [P] int, the step with whose first parameters each prompt was answered.
    """

    prompts: dict
    rollout: Rollout
    texts: list[list[Completion]]
    rewards: Rewards
    steps: np.ndarray

    @property
    def total_PxG(self) -> np.ndarray:
        """[P, G] float64, total rewards; nan where there is none."""
        return self.rewards.total.reshape(len(self.texts), -1)


def select_groups(scored: ScoredRollout, index: np.ndarray) -> ScoredRollout:
    """Selects the prompts at `index`, in that order, with their groups. Failures of reward
    functions are counted where the prompts were drawn, not here."""
    P, G = scored.total_PxG.shape
    rewards = scored.rewards
    values = rewards.values.reshape(P, G, -1)[index].reshape(len(index) * G, -1)
    return ScoredRollout(
        {
            name: [x[i] for i in index] if isinstance(x, list) else x[index]
            for name, x in scored.prompts.items()
        },
        jax.tree.map(lambda x: x[index], scored.rollout),
        [scored.texts[i] for i in index],
        Rewards(
            rewards.names,
            values,
            scored.total_PxG[index].reshape(-1),
            dict.fromkeys(rewards.counts, 0),
        ),
        scored.steps[index],
    )


def concat_groups(parts: Sequence[ScoredRollout]) -> ScoredRollout:
    """Concatenates the prompts of scored rollouts, with their groups, in order."""
    if len(parts) == 1:
        return parts[0]

    def of(name: str) -> Any:
        columns = [part.prompts[name] for part in parts]
        return sum(columns, []) if isinstance(columns[0], list) else np.concatenate(columns)

    return ScoredRollout(
        {name: of(name) for name in parts[0].prompts},
        concat_rollouts([part.rollout for part in parts]),
        [group for part in parts for group in part.texts],
        concat_rewards([part.rewards for part in parts]),
        np.concatenate([part.steps for part in parts]),
    )


def open_data(
    run: Run, stage: Stage, check: Callable[[dict], Any] = lambda row: None
) -> pipeline.Batches:
    """Opens the iterator over the prompts that a stage samples from.

    Args:
      run: what stages share.
      stage: of the run.
      check: raises UserError for a row that cannot be rewarded, beside what
        `reward_functions.make_row_check` finds.

    Raises:
      UserError: a reward function needs a column that no row has, or a setting is wrong; later, a
        row that cannot be used, with its place.
    """
    settings = stage.config
    source, transforms = data_functions(run, settings.data)
    seed = randomness.host_seed(run.config.seed, stage.number)
    functions = {
        key: reward_functions.load(spec, f'rewards.{key}')
        for key, spec in reward_specs(settings).items()
    }
    _check_columns(functions, source, transforms, seed)
    check_row = reward_functions.make_row_check(functions)

    def checked(example: dict, _: np.random.Generator) -> list[dict]:
        check_row(example)
        check(example)
        return [example]

    return pipeline.prompts(
        source,
        # the last, so that it changes no draw of the others; errors name the row
        [*transforms, checked],
        run.tokenizer,
        max_prompt_length=settings.data.max_prompt_length,
        num_prompts=settings.num_prompts,
        seed=seed,
        overlong=settings.data.overlong,
    )


def _check_columns(
    functions: Mapping[str, RewardSpec],
    source: Source,
    transforms: Sequence[stream.Transform],
    seed: int,
) -> None:
    """Raises UserError where a reward function needs a column that no row has a value in. Reads
    rows until every such column has had a value."""
    needed = {
        name: key
        for key, spec in functions.items()
        for name in reward_functions.list_required(spec, f'rewards.{key}')
    }
    as_it_is = stream.Measure(0, 'drop', '', lambda row: [row], lambda _: 0)
    seen: set[str] = set()
    for i in range(len(source) if needed else 0):
        try:
            examples = [
                example
                for example, _ in stream.transformed(source, transforms, as_it_is, seed, i, i).kept
            ]
        except UserError:  # raised with its place where the row is reached
            continue
        seen = seen.union(*examples)
        needed = {
            name: key
            for name, key in needed.items()
            if all(is_unknown(example, name) for example in examples)
        }
        if not needed:
            return
    # rows without a prompt are refused when they are read
    for name, key in needed.items() if 'prompt' in seen else ():
        where = (
            ', and no row of the data has a value in it'
            if name in seen
            else ', which no row of the data has'
        )
        raise reward_functions.missing_column(functions[key], f'rewards.{key}', name, seen, where)


def is_unknown(row: Mapping[str, Any], column: str) -> bool:
    """Returns whether a row has no value in a column: missing, None or ''."""
    value = row.get(column)
    return value is None or (isinstance(value, str) and not value)


class _Ending:
    """Notes when the devices are done with an array."""

    def __init__(self, array: jax.Array):
        self._at = math.inf
        threading.Thread(target=self._wait, args=(array,)).start()

    def _wait(self, array: jax.Array) -> None:
        jax.block_until_ready(array)
        self._at = time.perf_counter()

    def within(self, begin: float, end: float) -> float:
        """Returns the seconds from `begin` to `end` in which the array was not computed yet."""
        return min(max(self._at, begin), end) - begin


class Rollouts:
    """The prompts of a stage, the compiled sampler, and the reward functions in their worker
    processes.

    Attributes:
      data: the iterator over prompts.
    """

    def __init__(
        self,
        run: Run,
        stage: Stage,
        pool: RewardPool,
        check: Callable[[dict], Any] = lambda row: None,
    ):
        settings = stage.config
        self._run, self._place, self._pool = run, stage, pool
        self._generate = sampler(run, sampling_from_config(settings, run.tokenizer, stage.name))
        self._at_once = at_once(settings)
        self._whole = jax.jit(lambda x: x, out_shardings=meshes.replicated(run.rollout_mesh))
        self._sampling: _Ending | None = None  # of the rollout that was started last
        self.data = open_data(run, stage, check)
        check_data(stage, self.data)

    def draw(self, step: int, params: Any, timers: Timers, number: int = 0) -> ScoredRollout:
        """Samples the next prompts and scores the completions: `start_sampling`, then `finish`."""
        return self.finish(self.start_sampling(step, params, timers, (step, number)), timers)

    def start_sampling(
        self, step: int, params: Any, timers: Timers, label: tuple[int, int]
    ) -> PendingRollout:
        """Starts to sample the next prompts, and does not wait for it. The parameters may be
        donated afterwards.

        Args:
          step: that is about to begin.
          params: its first.
          timers: of the step.
          label: what the draws are counted by: a step, and how many batches have been drawn for it
            already.
        """
        with timers('data'):
            prompts = next(self.data)
            P, (of, number) = len(prompts['rows']), label
            arrays = {name: prompts[name] for name in TEXT}
            arrays['index'] = number * P + np.arange(P)
        with timers('generate'):
            key = randomness.key(self._run.config.seed, self._place.number, of, 'rollout')
            parts = [
                self._generate(
                    params, {name: x[i : i + self._at_once] for name, x in arrays.items()}, key
                )
                for i in range(0, P, self._at_once)
            ]
            if jax.process_count() > 1:
                # Gathered now: a program of several processes that is asked for later waits behind
                # all that is in flight by then.
                parts = [self._whole(part) for part in parts]
        self._sampling = _Ending(parts[-1].length)
        return PendingRollout(prompts, parts, step)

    def finish(self, pending: PendingRollout, timers: Timers) -> ScoredRollout:
        """Waits for a rollout and scores its completions, those of a part while the next one is
        being computed.

        Several processes score everything at the end: they have to exchange rewards, which would
        wait for the parts under way. What the host spends on scoring goes to the phase
        `reward_hidden` as long as devices are sampling meanwhile, these prompts or those of the
        next rollout, then to `reward`; so phases add up to the time that the step took.

        Raises:
          UserError: a reward function fails, or no sample got a reward.
        """
        rows, rollouts, texts, rewards = pending.prompts['rows'], [], [], []
        columns = list_columns(self._pool, rows)
        rendered = (
            render_prompts(pending.prompts, self._run.tokenizer)
            if self._pool.reads('rendered_prompts')
            else None
        )
        for parts in (
            [[part] for part in pending.parts] if jax.process_count() == 1 else [pending.parts]
        ):
            with timers('generate'):
                rollouts.append(concat_rollouts(processes.fetch(parts)))
            begin, first = time.perf_counter(), len(texts)
            answers = completions(rollouts[-1], self._run.tokenizer)
            texts += answers
            given = rendered and rendered[first : len(texts)]
            rewards.append(
                score_completions(
                    self._pool, rows[first : len(texts)], answers, first, columns, given
                )
            )
            end = time.perf_counter()
            hidden = 0.0 if self._sampling is None else self._sampling.within(begin, end)
            for phase, seconds in (('reward', end - begin - hidden), ('reward_hidden', hidden)):
                timers.seconds[phase] = timers.seconds.get(phase, 0.0) + seconds
        scores = concat_rewards(rewards)
        # Rows without a solution teach nothing; that a function says nothing of any other is a
        # mistake.
        if np.isnan(scores.total).all() and not all(
            any(is_unknown(row, name) for name in self._pool.required) for row in rows
        ):
            raise UserError(
                f'stage {self._place.name}, step {pending.step}: no sample has a reward '
                f'({scores.counts}).'
            )
        return ScoredRollout(
            pending.prompts,
            concat_rollouts(rollouts),
            texts,
            scores,
            np.full(len(rows), pending.step),
        )

    def restored(
        self, prompts: dict, rollout: Rollout, rewards: Rewards | None, steps: np.ndarray
    ) -> PendingRollout | ScoredRollout:
        """Rebuilds what a checkpoint held: a rollout in flight, or one that has its rewards."""
        if rewards is None:
            return PendingRollout(prompts, [rollout], int(steps[0]))
        return ScoredRollout(
            prompts, rollout, completions(rollout, self._run.tokenizer), rewards, steps
        )

    def skip(self) -> None:
        """Passes over the prompts of a step that is done already."""
        next(self.data)


@contextlib.contextmanager
def open_rollouts(
    run: Run, stage: Stage, check_row: Callable[[dict], Any] = lambda row: None
) -> Iterator[Rollouts]:
    """Starts the reward workers of a stage, and ends them; for `check_row` see `open_data`."""
    settings = stage.config
    limits = (settings.reward_time_limit, settings.rewards_on_error, settings.reward_memory_limit)
    with RewardPool(reward_specs(settings), settings.reward_workers, *limits) as pool:
        yield Rollouts(run, stage, pool, check_row)


def concat_rollouts(parts: list[Rollout]) -> Rollout:
    """Concatenates parts of a rollout, on the host, into one."""
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *x: np.concatenate(x), *parts)
