"""Runs reward functions in worker processes that can be killed, so that one bad answer never hangs or poisons a run.

A call of a reward function sees exactly one group (the samples of one prompt): rewards do not depend on the number
of workers, and a function may compare a sample with its siblings. When a call fails, its samples are called one by one
to find the culprits, and the rest of the group then again, together. Workers start by `spawn`: they import the
functions by name, and the caller's main module without running its `main`.
"""

import dataclasses
import functools
import importlib
import inspect
import multiprocessing
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import TimeoutError
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np
import pebble

from reasonjax.errors import UserError, listing, nearest
from reasonjax.rollout import reward_worker
from reasonjax.rollout.reward_worker import Failure, Outcome

GROUPS_PER_JOB = 8  # enough to hide the queue's fraction of a millisecond, few enough to keep the workers evenly busy
ON_ERROR = ('raise', 'drop')


@dataclasses.dataclass(frozen=True)
class RewardSpec:
    """One reward function of a run.

    Attributes:
      target: a name from `reasonjax.methods.rewards`, 'pkg.module:function', 'pkg.module.function', or the function
        itself, also with its knobs bound by `functools.partial` as config resolution returns it. Workers must be able
        to import it.
      knobs: keyword arguments of every call.
      weight: factor in the total.
    """

    target: str | Callable
    knobs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weight: float = 1.0


class Rewards(NamedTuple):
    """What N samples earned from F functions.

    Attributes:
      names: the F reward keys, in the order of the columns.
      values: [N, F] float64, unweighted; nan where the function returned None or failed.
      total: [N] float64, the weighted sum over the functions that returned a number; nan where none did or any failed.
      counts: how many samples each function failed on or dropped: `rewards/{name}/errors` (raised, died, or returned
        no number), `/timeouts`, `/nan` (nan or infinite), `/dropped` (None).
    """

    names: tuple[str, ...]
    values: np.ndarray
    total: np.ndarray
    counts: dict[str, int]


def joined(parts: Sequence[Rewards]) -> Rewards:
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
    """Worker processes for the reward functions of a run. Use as a context manager, or call `close`."""

    def __init__(
        self, functions: Mapping[str, RewardSpec], workers: int = 2, time_limit: float = 10.0, on_error: str = 'raise'
    ):
        """Starts the workers, which import the functions while the caller goes on.

        Args:
          functions: reward key -> what to run.
          workers: number of processes. 0 runs the functions in this process, **without any time limit**: for debugging,
            and for functions defined in a notebook.
          time_limit: seconds of wall-clock time a sample may take. A call that takes too long is killed and its samples
            are tried one by one; a sample that finishes within the limit on its own is never blamed.
          on_error: what becomes of a sample that makes a function raise, hang or die, or return nan or no number.
            'raise' stops with an error that shows the sample; 'drop' makes it nan and counts it.

        Raises:
          UserError: a function that does not exist or that workers cannot import, or a setting out of range.
        """
        if on_error not in ON_ERROR:
            hint = nearest(str(on_error), ON_ERROR)
            raise UserError(f'rewards: on_error must be "raise" or "drop", got {on_error!r}.{hint}')
        if workers < 0:
            raise UserError(f'rewards: workers must be 0 or more, got {workers}.')
        if not 0 < time_limit < float('inf'):
            raise UserError(f'rewards: time_limit must be a positive number of seconds, got {time_limit}.')
        self._specs = {name: _loaded(spec, f'rewards.{name}') for name, spec in functions.items()}
        self._workers, self._time_limit, self._on_error = workers, float(time_limit), on_error
        self._pace = dict.fromkeys(functions, 0.0)  # the slowest call so far, in seconds per sample
        self._pool = None
        if workers:
            self._targets = {name: _address(spec.target, f'rewards.{name}') for name, spec in self._specs.items()}
            self._start()

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
            initargs=(self._targets, pickle.dumps(knobs)),
            context=multiprocessing.get_context('spawn'),
        )
        self._pool.schedule(reward_worker.ready)  # processes start with the first task: now, not at the first rollout

    def score(
        self, prompts: Sequence, completions: Sequence, columns: Mapping[str, Sequence], group: int, first: int = 0
    ) -> Rewards:
        """Runs every function on every sample.

        Args:
          prompts: N prompts, texts or messages.
          completions: N completions.
          columns: name -> N values, for the functions that take a parameter of that name or `**kwargs`.
          group: samples per prompt. Those of one prompt are adjacent, and N is a multiple of it.
          first: number of the first sample in errors, where these are a part of a batch.

        Raises:
          UserError: a function needs a column that is not there; or, with on_error='raise', a sample fails.
        """
        samples, data = len(prompts), {'prompts': prompts, 'completions': completions, **columns}
        for column, values in data.items():
            if len(values) != samples:
                raise ValueError(f'column {column} has {len(values)} values for {samples} prompts')
        if group < 1 or samples % group:
            raise ValueError(f'{samples} samples are not whole groups of {group}')
        taken = {name: _columns(spec, data, f'rewards.{name}') for name, spec in self._specs.items()}
        groups = [tuple(range(i, i + group)) for i in range(0, samples, group)]

        def attempt(jobs: list[list[_Call]]) -> list[tuple[_Call, Outcome | None]]:
            """Runs jobs (calls of one function each); an outcome of None means that the call's job was killed."""
            ready = [
                [(len(c.rows), {column: [data[column][i] for i in c.rows] for column in taken[c.name]}) for c in job]
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
        return [[reward_worker.call(f, *arguments) for arguments in calls] for f, calls in zip(bound, ready)]

    def _there(self, jobs: list[list[_Call]], ready: list[list], again: bool = True) -> list[list[Outcome | None]]:
        if self._pool is None:
            raise ValueError('the reward pool is closed')
        if not self._pool.active:
            self._restart()
        limits = [self._limit(job) for job in jobs]
        # Pickled here: what cannot be pickled is found here, and what a worker cannot read back fails in its own call.
        futures = [
            self._pool.schedule(reward_worker.work, (job[0].name, pickle.dumps(calls)), timeout=limit)
            for job, calls, limit in zip(jobs, ready, limits)
        ]
        results, broken = [], []
        for i, (job, limit, future) in enumerate(zip(jobs, limits, futures)):
            error, name = future.exception(), job[0].name
            if error is None:
                outcomes, pace = future.result()
                self._pace[name] = max(self._pace[name], pace)
                results.append(outcomes)
            elif isinstance(error, BrokenProcessPool):
                broken.append(i)
                results.append([])
            elif len(job) > 1:
                results.append([None] * len(job))
            elif isinstance(error, TimeoutError):
                results.append([Failure('timeouts', f'did not finish within {limit:g} s')])
            else:
                results.append([Failure('errors', f'ended or broke its worker process ({error})')])
        if broken and not again:
            raise UserError(
                'rewards: the worker processes end as soon as they start; their own message is above. A script that '
                'starts them must guard its entry with `if __name__ == "__main__":`. workers=0 runs the functions in '
                'this process, without a time limit.'
            )
        if broken:  # for instance the system killed an idle worker; it is no sample's fault
            self._restart()
            repeated = self._there([jobs[i] for i in broken], [ready[i] for i in broken], again=False)
            for i, outcomes in zip(broken, repeated):
                results[i] = outcomes
        return results

    def _restart(self) -> None:
        self.close()
        self._start()

    def _limit(self, job: list[_Call]) -> float:
        # A hang shows after about one sample's limit however large the job: no honest call was ever this slow. If one
        # is, its samples pass one by one, which sets the pace, and the call is made again with all the time it needs.
        samples = sum(len(call.rows) for call in job)
        return min(samples * self._time_limit, self._time_limit + 4 * (samples - 1) * self._pace[job[0].name])

    def _refuse(self, call: _Call, outcome: Outcome, data: Mapping, group: int, first: int) -> None:
        """Raises the first failure that the run must not survive."""
        whole = isinstance(outcome, Failure)
        for row, failure in [(call.rows[0], outcome)] if whole else zip(call.rows, outcome):
            if not isinstance(failure, Failure) or (failure.kind != 'config' and self._on_error == 'drop'):
                continue
            if failure.kind == 'config':
                raise UserError(f'rewards.{call.name}: {failure.text}')
            number = first + row
            where = f'sample {number} (prompt {number // group}, generation {number % group})'
            if whole and len(call.rows) > 1:
                where = f'{where}, called together with {len(call.rows) - 1} more of its prompt; one by one they pass'
            raise UserError(
                f'rewards.{call.name}: {_label(self._specs[call.name].target)} {failure.text}\n'
                f'  at {where}\n'
                f'  prompt:     {_excerpt(data["prompts"][row])}\n'
                f'  completion: {_excerpt(data["completions"][row])}\n'
                f'{failure.trace}'
                '  Return None to leave a sample out; on_error="drop" leaves out and counts every sample that fails.'
            )

    def _collect(self, results: Iterable[tuple[_Call, Outcome]], samples: int) -> Rewards:
        names = tuple(self._specs)
        values_NxF = np.full((samples, len(names)), np.nan)
        failed_N = np.zeros(samples, bool)
        counts = {f'rewards/{name}/{kind}': 0 for name in names for kind in ('errors', 'timeouts', 'nan', 'dropped')}
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


def _settle(groups: list[tuple[int, ...]], names: list[str], attempt: Callable, passed: Callable) -> list:
    """Calls every function on every group; where that fails, on its samples, and on those of them that pass, together.

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
    singles = passed(attempt([[_Call(call.name, (row,))] for call, _ in failed for row in call.rows]))
    culprits = {c: o for c, o in singles if isinstance(o, Failure) or isinstance(o[0], Failure)}
    again = []
    for call, failure in failed:
        rest = tuple(row for row in call.rows if _Call(call.name, (row,)) not in culprits)
        if rest == call.rows and failure.kind != 'timeouts':
            settled += passed([(call, failure)])  # it fails only as a group
        elif rest:
            again.append([_Call(call.name, rest)])
    return settled + list(culprits.items()) + passed(attempt(again))


def _loaded(spec: RewardSpec, key: str) -> RewardSpec:
    """Imports the target; moves knobs out of a partial, so that workers can import the function and bind them again."""
    if isinstance(spec.target, str):
        return dataclasses.replace(spec, target=reward_worker.load(spec.target, key))
    if isinstance(spec.target, functools.partial) and not spec.target.args:
        return dataclasses.replace(spec, target=spec.target.func, knobs={**spec.target.keywords, **spec.knobs})
    return spec


def _label(function: Callable) -> str:
    return f'{getattr(function, "__module__", "?")}.{getattr(function, "__qualname__", repr(function))}'


def _address(function: Callable, key: str) -> str:
    """Returns 'module:qualified name' of a function that another process can import."""
    module, name = getattr(function, '__module__', None), getattr(function, '__qualname__', '')
    if module and module != '__main__' and name:
        if reward_worker.member(importlib.import_module(module), name) is function:
            return f'{module}:{name}'
    raise UserError(
        f'{key}: worker processes cannot import {_label(function)}, which is defined in a notebook, in the main script '
        'or inside another function. Put it at the top level of a module and name that, or set workers=0 to run it in '
        'this process, without a time limit.'
    )


def _columns(spec: RewardSpec, data: Mapping, key: str) -> tuple[str, ...]:
    """The columns that a function takes.

    Raises:
      UserError: one that it needs is missing, or one has the name of a knob.
    """
    parameters = inspect.signature(spec.target).parameters.values()
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    knobs = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty} | set(spec.knobs)
    for column in data:
        if column in knobs:
            where = f'a knob of {_label(spec.target)} and a column of the data'
            raise UserError(f'{key}: "{column}" is {where}; rename the column.')
    for name, parameter in named.items():
        if parameter.default is inspect.Parameter.empty and name not in spec.knobs and name not in data:
            hint = f'{nearest(name, data)} There are: {listing(data)}.'
            raise UserError(f'{key}: {_label(spec.target)} needs a column "{name}".{hint}')
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return tuple(column for column in data if takes_all or column in named)


def _excerpt(value: Any, length: int = 300) -> str:
    text = value if isinstance(value, str) else repr(value)
    if len(text) <= length:
        return repr(text)
    return f'{text[: length // 2] + " [...] " + text[-length // 2 :]!r} ({len(text)} characters)'
