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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import TimeoutError
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np
import pebble

from reasonjax.errors import UserError, check_choice, show
from reasonjax.sampling import reward_functions, reward_worker
from reasonjax.sampling.reward_functions import RewardSpec
from reasonjax.sampling.reward_worker import Failure, Outcome

__all__ = ['RewardPool', 'RewardSpec', 'Rewards', 'concat_rewards']

ON_ERROR = ('raise', 'drop')
EXCERPT = 300  # characters of a prompt or completion that an error shows


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
    """Concatenates the rewards of the parts of a batch."""
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
        """Starts the workers, which import the functions while the caller continues.

        Args:
          functions: reward key -> what to run.
          workers: number of processes. 0 runs the functions in this process, **without limits of
            time and memory**: for debugging, and for functions defined in a notebook.
          time_limit: seconds of wall-clock time a sample may take, and a group as many times that
            as it has samples. A call that takes longer is killed and its samples are called one by
            one; a sample that finishes within the limit on its own is never blamed.
          on_error: what becomes of a sample that makes a function raise, hang or die, or return nan
            or no number. 'raise' stops with an error that shows the sample; 'drop' makes it nan and
            counts it.
          memory_limit: GiB that a worker may take for itself, imports and all. The system holds it
            to that (Linux only): a function that wants more fails on its sample.

        Raises:
          UserError: a function that does not exist or that workers cannot import, or a setting out
            of range.
        """
        check_choice(f'rewards: on_error="{on_error}": unknown', on_error, ON_ERROR)
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
        """Returns whether some function has a parameter named `column`."""
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

        def attempt(calls: list[_Call], last: bool = False) -> dict[_Call, Outcome]:
            given = [
                {column: [data[column][i] for i in call.rows] for column in columns_of[call.name]}
                for call in calls
            ]
            run = self._there if self._workers else self._here
            outcomes = dict(zip(calls, run(calls, given)))
            for call, outcome in outcomes.items():
                if last or not _is_divisible(call, outcome):
                    self._refuse(call, outcome, data, group, first)
            return outcomes

        outcomes = attempt([_Call(name, rows) for name in self._specs for rows in groups])
        failed = [call for call, outcome in outcomes.items() if _is_divisible(call, outcome)]
        singles = attempt([_Call(call.name, (row,)) for call in failed for row in call.rows])
        culprits = {
            call: outcome
            for call, outcome in singles.items()
            if isinstance(outcome, Failure) or isinstance(outcome[0], Failure)
        }
        again = []
        for call in failed:
            rest = tuple(row for row in call.rows if _Call(call.name, (row,)) not in culprits)
            if rest == call.rows:  # it fails only as a group
                self._refuse(call, outcomes[call], data, group, first)
                continue
            del outcomes[call]
            again += [_Call(call.name, rest)] if rest else []
        return self._collect(outcomes | culprits | attempt(again, last=True), samples)

    def _here(self, calls: list[_Call], given: list[dict]) -> list[Outcome]:
        specs = [self._specs[call.name] for call in calls]
        # What a function changes in its arguments is its own affair, as it is in a worker.
        return [
            reward_worker.call(
                functools.partial(spec.target, **spec.knobs),
                len(call.rows),
                _handed(columns, copy.deepcopy),
            )
            for spec, call, columns in zip(specs, calls, given)
        ]

    def _there(self, calls: list[_Call], given: list[dict]) -> list[Outcome]:
        # Pickled here: what cannot be pickled is found here, and what a worker cannot read back
        # fails in its own call.
        pickled = [_handed(columns, pickle.dumps) for columns in given]
        outcomes: dict[int, Outcome] = {}
        left, restarted = [*range(len(calls))], False
        while left:
            if self._pool is None:
                raise ValueError('the reward pool is closed')
            if not self._pool.active:
                self._restart()
            futures = {}
            for i in left:
                number = len(calls[i].rows)
                futures[i] = self._pool.schedule(
                    reward_worker.work,
                    (calls[i].name, number, pickled[i]),
                    timeout=number * self._time_limit,
                )
            left, broken = [], False
            for i, future in futures.items():
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    broken = True
                    left.append(i)
                elif getattr(error, 'exitcode', None) == reward_worker.WORN_OUT:
                    left.append(i)
                else:
                    outcomes[i] = self._failure(calls[i], error) if error else future.result()
            if broken and restarted:
                raise UserError(
                    'rewards: the worker processes end as soon as they start; their own message is '
                    'above. A script that starts them must guard its entry with `if __name__ == '
                    '"__main__":`. workers=0 runs the functions in this process, without limits.'
                )
            if broken:  # for instance the system killed an idle worker; it is no sample's fault
                self._restart()
                restarted = True
        return [outcomes[i] for i in range(len(calls))]

    def _failure(self, call: _Call, error: BaseException) -> Failure:
        """Explains why a worker did not survive a call."""
        if isinstance(error, TimeoutError):
            limit = len(call.rows) * self._time_limit
            return Failure('timeouts', f'did not finish within {limit:g} s')
        if getattr(error, 'exitcode', None) == reward_worker.OUT_OF_MEMORY:
            limit = f'{self._memory_limit:g} GiB of memory (reward_memory_limit)'
            return Failure('errors', f'needs more than {limit}')
        text = reward_worker.describe(error)
        return Failure('errors', f'ended or broke its worker process ({text})')

    def _restart(self) -> None:
        self.close()
        self._start()

    def _refuse(self, call: _Call, outcome: Outcome, data: Mapping, group: int, first: int) -> None:
        """Raises the first failure that the run must not survive."""
        failed = isinstance(outcome, Failure)
        for row, failure in [(call.rows[0], outcome)] if failed else zip(call.rows, outcome):
            if not isinstance(failure, Failure) or (
                failure.kind != 'config' and self._on_error == 'drop'
            ):
                continue
            if failure.kind == 'config':
                raise UserError(f'rewards.{call.name}: {failure.text}')
            number = first + row
            where = f'sample {number} (prompt {number // group}, generation {number % group})'
            if failed and len(call.rows) > 1:
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

    def _collect(self, outcomes: Mapping[_Call, Outcome], samples: int) -> Rewards:
        names = tuple(self._specs)
        values_NxF = np.full((samples, len(names)), np.nan)
        failed_N = np.zeros(samples, bool)
        counts = {
            f'rewards/{name}/{kind}': 0
            for name in names
            for kind in ('errors', 'timeouts', 'nan', 'dropped')
        }
        for call, outcome in outcomes.items():
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


def _is_divisible(call: _Call, outcome: Outcome) -> bool:
    """Returns whether a call failed as a whole, so that its samples are to be called one by one."""
    return isinstance(outcome, Failure) and outcome.kind != 'config' and len(call.rows) > 1


def _handed(columns: dict[str, list], hand: Callable[[Any], Any]) -> Any:
    """Copies or pickles the arguments of a call.

    Raises:
      UserError: a column cannot be; names it.
    """
    try:
        return hand(columns)
    except Exception as error:  # of any class: it is the values' own methods that fail
        for name, value in [(key, value) for key in columns for value in columns[key]]:
            try:
                hand(value)
            except Exception as reason:
                kind = f'{type(value).__module__}.{type(value).__qualname__}'
                raise UserError(
                    f'rewards: column "{name}" holds {kind}, which cannot be handed to reward '
                    f'functions ({reward_worker.describe(reason)}); make it text, a number, a list '
                    'or a dict.'
                ) from error
        raise


def _excerpt(value: Any) -> str:
    text = value if isinstance(value, str) else show(value, 3000)
    if len(text) <= EXCERPT:
        return repr(text)
    return f'{text[: EXCERPT // 2] + " [...] " + text[-EXCERPT // 2 :]!r} ({len(text)} characters)'
