"""Runs reward functions in worker processes that can be killed, so that one bad answer never hangs
or poisons a run.

A call of a reward function sees exactly one group (the samples of one prompt): rewards do not
depend on the number of workers, and a function may compare a sample with its siblings. When a call
fails, its samples are called one by one to find the culprits, and the rest of the group then again,
together. Workers start by `spawn`: they import the functions by name, and the caller's main module
without running its `main`.
"""

import copy
import functools
import multiprocessing
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import TimeoutError
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np
import pebble

from reasonjax.errors import UserError, nearest, show
from reasonjax.sampling import reward_functions, reward_worker
from reasonjax.sampling.reward_functions import RewardSpec
from reasonjax.sampling.reward_worker import Failure, Outcome

__all__ = ['RewardPool', 'RewardSpec', 'Rewards', 'concat_rewards']

# enough to hide the queue's fraction of a millisecond, few enough to keep the workers evenly busy
GROUPS_PER_JOB = 8
ON_ERROR = ('raise', 'drop')


class Rewards(NamedTuple):
    """What N samples earned from F functions.

    Attributes:
      names: the F reward keys, in the order of the columns.
      values: [N, F] float64, unweighted; nan where the function returned None or failed.
      total: [N] float64, the weighted sum over the functions that returned a number; nan where none
        did or any failed.
      counts: how many samples each function failed on or dropped: `rewards/{name}/errors` (raised,
        died, or returned no number), `/timeouts`, `/nan` (nan, infinite or above 1e18), `/dropped`
        (None).
    """

    names: tuple[str, ...]
    values: np.ndarray
    total: np.ndarray
    counts: dict[str, int]


def concat_rewards(parts: Sequence[Rewards]) -> Rewards:
    """The rewards of parts of a batch, as those of the batch."""
    return Rewards(
        parts[0].names,
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.total for part in parts]),
        {name: sum(part.counts[name] for part in parts) for name in parts[0].counts},
    )


class _Call(NamedTuple):
    """One call of one function: its reward key and the rows it sees."""

    name: str
    rows: tuple[int, ...]


class RewardPool:
    """Worker processes for the reward functions of a run. Use as a context manager, or call
    `close`."""

    def __init__(
        self,
        functions: Mapping[str, RewardSpec],
        workers: int = 2,
        time_limit: float = 10.0,
        on_error: str = 'raise',
        memory_limit: float = 4.0,
    ):
        """Starts the workers, which import the functions while the caller goes on.

        Args:
          functions: reward key -> what to run.
          workers: number of processes. 0 runs the functions in this process, **without limits of
            time and memory**: for debugging, and for functions defined in a notebook.
          time_limit: seconds of wall-clock time a sample may take. A call that takes too long is
            killed and its samples are tried one by one; a sample that finishes within the limit on
            its own is never blamed.
          on_error: what becomes of a sample that makes a function raise, hang or die, or return nan
            or no number. 'raise' stops with an error that shows the sample; 'drop' makes it nan and
            counts it.
          memory_limit: GiB that a worker may take for itself, imports and all. The system holds it
            to that (Linux only): a function that wants more fails on its sample.

        Raises:
          UserError: a function that does not exist or that workers cannot import, or a setting out
            of range.
        """
        if on_error not in ON_ERROR:
            hint = nearest(str(on_error), ON_ERROR)
            raise UserError(f'rewards: on_error must be "raise" or "drop", got {on_error!r}.{hint}')
        if workers < 0:
            raise UserError(f'rewards: workers must be 0 or more, got {workers}.')
        if not 0 < time_limit < float('inf'):
            raise UserError(
                f'rewards: time_limit must be a positive number of seconds, got {time_limit}.'
            )
        if not 0 < memory_limit < float('inf'):
            raise UserError(
                f'rewards: memory_limit must be a positive number of GiB, got {memory_limit}.'
            )
        self._specs = {
            name: reward_functions.load(spec, f'rewards.{name}') for name, spec in functions.items()
        }
        self._workers, self._time_limit, self._on_error = workers, float(time_limit), on_error
        self._memory_limit = float(memory_limit)
        self._pace = dict.fromkeys(functions, 0.0)  # the slowest call so far, in seconds per sample
        self._pool = None
        if workers:
            self._targets = {
                name: reward_functions.find_address(spec.target, f'rewards.{name}')
                for name, spec in self._specs.items()
            }
            self._start()

    @property
    def required(self) -> frozenset[str]:
        """The columns that some function cannot do without."""
        return frozenset().union(
            *(
                reward_functions.list_required(spec, f'rewards.{name}')
                for name, spec in self._specs.items()
            )
        )

    def reads(self, column: str) -> bool:
        """Whether some function has a parameter of that name."""
        return any(
            column in reward_functions.list_parameters(spec, f'rewards.{name}')
            for name, spec in self._specs.items()
        )

    def __enter__(self) -> 'RewardPool':
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers, also in the middle of a call."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def _start(self) -> None:
        knobs = {name: dict(spec.knobs) for name, spec in self._specs.items()}
        self._pool = pebble.ProcessPool(
            self._workers,
            initializer=reward_worker.start,
            initargs=(self._targets, pickle.dumps(knobs), self._memory_limit),
            context=multiprocessing.get_context('spawn'),
        )
        # processes start with the first task: now, not at the first rollout
        self._pool.schedule(reward_worker.ready)

    def score(
        self,
        prompts: Sequence,
        completions: Sequence,
        columns: Mapping[str, Sequence],
        group: int,
        first: int = 0,
    ) -> Rewards:
        """Runs every function on every sample.

        Args:
          prompts: N prompts, texts or messages.
          completions: N completions.
          columns: name -> N values, for the functions that take a parameter of that name or
            `**kwargs`. Any names but `prompts` and `completions`.
          group: samples per prompt. Those of one prompt are adjacent, and N is a multiple of it.
          first: number of the first sample in errors, where these are a part of a batch.

        Raises:
          UserError: a function needs a column that is not there, a column cannot be handed over,
            or, with on_error='raise', a sample fails.
        """
        samples, data = len(prompts), {**columns, 'prompts': prompts, 'completions': completions}
        for column in sorted({'prompts', 'completions'} & set(columns)):
            raise UserError(
                f'rewards: a column "{column}" would take the place of what was sampled; rename it.'
            )
        for column, values in data.items():
            if len(values) != samples:
                raise ValueError(f'column {column} has {len(values)} values for {samples} prompts')
        if group < 1 or samples % group:
            raise ValueError(f'{samples} samples are not whole groups of {group}')
        columns_of = {
            name: reward_functions.select_columns(spec, data, f'rewards.{name}')
            for name, spec in self._specs.items()
        }
        groups = [tuple(range(i, i + group)) for i in range(0, samples, group)]

        def attempt(jobs: list[list[_Call]]) -> list[tuple[_Call, Outcome | None]]:
            """Runs jobs (calls of one function each); an outcome of None means that the call's job
            was killed."""
            ready = [
                [
                    (
                        len(c.rows),
                        {
                            column: [data[column][i] for i in c.rows]
                            for column in columns_of[c.name]
                        },
                    )
                    for c in job
                ]
                for job in jobs
            ]
            outcomes = self._here(jobs, ready) if not self._workers else self._there(jobs, ready)
            return [pair for job, outcome in zip(jobs, outcomes) for pair in zip(job, outcome)]

        def passed(results: list[tuple[_Call, Outcome]]) -> list[tuple[_Call, Outcome]]:
            for call, outcome in results:
                self._refuse(call, outcome, data, group, first)
            return results

        return self._collect(_settle(groups, list(self._specs), attempt, passed), samples)

    def _here(self, jobs: list[list[_Call]], ready: list[list]) -> list[list[Outcome]]:
        specs = [self._specs[job[0].name] for job in jobs]
        bound = [functools.partial(spec.target, **spec.knobs) for spec in specs]
        # What a function changes in its arguments is its own affair, as it is in a worker.
        return [
            [
                reward_worker.call(f, number, _handed(columns, copy.deepcopy))
                for number, columns in calls
            ]
            for f, calls in zip(bound, ready)
        ]

    def _there(self, jobs: list[list[_Call]], ready: list[list]) -> list[list[Outcome | None]]:
        # Pickled here: what cannot be pickled is found here, and what a worker cannot read back
        # fails in its own call.
        pickled = [_handed(calls, pickle.dumps) for calls in ready]
        results: list[list[Outcome | None]] = [[] for _ in jobs]
        left, restarted = list(range(len(jobs))), False
        while left:
            if self._pool is None:
                raise ValueError('the reward pool is closed')
            if not self._pool.active:
                self._restart()
            limits = {i: self._limit(jobs[i]) for i in left}
            futures = {
                i: self._pool.schedule(
                    reward_worker.work, (jobs[i][0].name, pickled[i]), timeout=limit
                )
                for i, limit in limits.items()
            }
            broken, worn = [], []
            for i, future in futures.items():
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    broken.append(i)
                elif getattr(error, 'exitcode', None) == reward_worker.WORN_OUT:
                    worn.append(i)
                else:
                    results[i] = self._outcomes(jobs[i], limits[i], future, error)
            if broken and restarted:
                raise UserError(
                    'rewards: the worker processes end as soon as they start; their own message is '
                    'above. A script that '
                    'starts them must guard its entry with `if __name__ == "__main__":`. workers=0 '
                    'runs the functions in '
                    'this process, without limits.'
                )
            if broken:  # for instance the system killed an idle worker; it is no sample's fault
                self._restart()
                restarted = True
            left = sorted(broken + worn)
        return results

    def _outcomes(
        self, job: list[_Call], limit: float, future: Any, error: BaseException | None
    ) -> list[Outcome | None]:
        """What became of a job that a worker has done, or has not survived."""
        if error is None:
            outcomes, pace = future.result()
            self._pace[job[0].name] = max(self._pace[job[0].name], pace)
            return outcomes
        if len(job) > 1:
            return [None] * len(job)
        if isinstance(error, TimeoutError):
            return [Failure('timeouts', f'did not finish within {limit:g} s')]
        if getattr(error, 'exitcode', None) == reward_worker.OUT_OF_MEMORY:
            return [
                Failure(
                    'errors',
                    f'needs more than {self._memory_limit:g} GiB of memory (reward_memory_limit)',
                )
            ]
        return [
            Failure(
                'errors', f'ended or broke its worker process ({reward_worker.describe(error)})'
            )
        ]

    def _restart(self) -> None:
        self.close()
        self._start()

    def _limit(self, job: list[_Call]) -> float:
        # A hang shows after about one sample's limit however large the job: no honest call was ever
        # this slow. If one is, its samples pass one by one, which sets the pace, and the call is
        # made again with all the time it needs.
        samples = sum(len(call.rows) for call in job)
        return min(
            samples * self._time_limit,
            self._time_limit + 4 * (samples - 1) * self._pace[job[0].name],
        )

    def _refuse(self, call: _Call, outcome: Outcome, data: Mapping, group: int, first: int) -> None:
        """Raises the first failure that the run must not survive."""
        whole = isinstance(outcome, Failure)
        for row, failure in [(call.rows[0], outcome)] if whole else zip(call.rows, outcome):
            if not isinstance(failure, Failure) or (
                failure.kind != 'config' and self._on_error == 'drop'
            ):
                continue
            if failure.kind == 'config':
                raise UserError(f'rewards.{call.name}: {failure.text}')
            number = first + row
            where = f'sample {number} (prompt {number // group}, generation {number % group})'
            if whole and len(call.rows) > 1:
                where = f'{where}, called together with {len(call.rows) - 1} more of its prompt; one by one they pass'
            raise UserError(
                f'rewards.{call.name}: {reward_functions.describe(self._specs[call.name].target)} '
                f'{failure.text}\n'
                f'  at {where}\n'
                f'  prompt:     {_excerpt(data["prompts"][row])}\n'
                f'  completion: {_excerpt(data["completions"][row])}\n'
                f'{failure.trace}'
                '  Return None to leave a sample out; on_error="drop" leaves out and counts every '
                'sample that fails.'
            )

    def _collect(self, results: Iterable[tuple[_Call, Outcome]], samples: int) -> Rewards:
        names = tuple(self._specs)
        values_NxF = np.full((samples, len(names)), np.nan)
        failed_N = np.zeros(samples, bool)
        counts = {
            f'rewards/{name}/{kind}': 0
            for name in names
            for kind in ('errors', 'timeouts', 'nan', 'dropped')
        }
        for call, outcome in results:
            parts = [outcome] * len(call.rows) if isinstance(outcome, Failure) else outcome
            for row, part in zip(call.rows, parts):
                if isinstance(part, Failure):
                    counts[f'rewards/{call.name}/{part.kind}'] += 1
                    failed_N[row] = True
                elif part is None:
                    counts[f'rewards/{call.name}/dropped'] += 1
                else:
                    values_NxF[row, names.index(call.name)] = part
        weights_F = np.array([spec.weight for spec in self._specs.values()], np.float64)
        known_NxF = ~np.isnan(values_NxF)
        total_N = np.where(known_NxF, values_NxF, 0.0) @ weights_F
        total_N[failed_N | ~known_NxF.any(1)] = np.nan
        return Rewards(names, values_NxF, total_N, counts)


def _settle(
    groups: list[tuple[int, ...]], names: list[str], attempt: Callable, passed: Callable
) -> list:
    """Calls every function on every group; where that fails, on its samples, and on those of them
    that pass, together.

    Returns:
      (call, outcome) pairs that cover every row of every function once.
    """
    jobs = [
        [_Call(name, rows) for rows in groups[i : i + GROUPS_PER_JOB]]
        for name in names
        for i in range(0, len(groups), GROUPS_PER_JOB)
    ]
    results = attempt(jobs)
    # A job of several calls that was killed does not say which of them was at fault.
    lost = [[call] for call, outcome in results if outcome is None]
    results = [r for r in results if r[1] is not None] + attempt(lost)

    def divisible(call: _Call, outcome: Outcome) -> bool:
        return isinstance(outcome, Failure) and outcome.kind != 'config' and len(call.rows) > 1

    settled = passed([r for r in results if not divisible(*r)])
    failed = [r for r in results if divisible(*r)]
    singles = passed(
        attempt([[_Call(call.name, (row,))] for call, _ in failed for row in call.rows])
    )
    culprits = {c: o for c, o in singles if isinstance(o, Failure) or isinstance(o[0], Failure)}
    again = []
    for call, failure in failed:
        rest = tuple(row for row in call.rows if _Call(call.name, (row,)) not in culprits)
        if rest == call.rows and failure.kind != 'timeouts':
            settled += passed([(call, failure)])  # it fails only as a group
        elif rest:
            again.append([_Call(call.name, rest)])
    return settled + list(culprits.items()) + passed(attempt(again))


def _handed(data: Any, hand: Callable[[Any], Any]) -> Any:
    """Copies or pickles the arguments of calls.

    Raises:
      UserError: a column cannot be; names it.
    """
    try:
        return hand(data)
    except Exception as error:  # of any class: it is the values' own methods that fail
        for columns in [data] if isinstance(data, dict) else [columns for _, columns in data]:
            for name, value in (
                (name, value) for name, values in columns.items() for value in values
            ):
                try:
                    hand(value)
                except Exception as reason:
                    kind = f'{type(value).__module__}.{type(value).__qualname__}'
                    what = f'{kind}, which cannot be handed to reward functions ({reward_worker.describe(reason)})'
                    raise UserError(
                        f'rewards: column "{name}" holds {what}; make it text, a number, a list or '
                        'a dict.'
                    ) from error
        raise


def _excerpt(value: Any, length: int = 300) -> str:
    text = value if isinstance(value, str) else show(value, 10 * length)
    if len(text) <= length:
        return repr(text)
    return f'{text[: length // 2] + " [...] " + text[-length // 2 :]!r} ({len(text)} characters)'
