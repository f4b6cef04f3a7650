"""Collecting own samples: prompts -> rollouts -> rewards -> the good ones as a dataset of JSONL for
a later supervised stage.

The building block of rejection sampling, STaR and their relatives: `collect -> supervised`,
repeated.
"""

import datetime
import decimal
import itertools
import json
import pathlib
import re
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
import numpy as np

from reasonjax import files
from reasonjax.errors import UserError
from reasonjax.files import put_aside
from reasonjax.parallel import processes
from reasonjax.sampling.text import Completion
from reasonjax.tracking.metrics import Timers
from reasonjax.tracking.progress import Progress
from reasonjax.training import claim, counters, stopping
from reasonjax.training.context import Run, Stage
from reasonjax.training.kinds import StageResult
from reasonjax.training.rollouts import ScoredRollout, open_data, open_rollouts

__all__ = ['FILE', 'check', 'check_columns', 'open_data', 'run']

FILE = 'dataset.jsonl'
PART = re.compile(r'[0-9]{5,}\.json')
NOTHING = {'sampled': 0, 'kept': 0, 'dropped': 0, 'empty': 0, 'reward': 0.0, 'num_tokens': 0}


def run(
    run: Run, stage: Stage, initial_params: Callable[[], Any], evaluation: Callable | None
) -> StageResult:
    """Samples `steps` times `num_prompts` prompts and writes the different completions whose total
    reward is at least `min_reward`.

    `token_limit` and `time_limit` end it earlier: with the step that reaches them.

    Rows hold every column of the prompt's row, `completion` (the sampled text) and `reward`. Where
    the prompt is messages, so is the completion, and `completion_ids` are the tokens as they were
    drawn, which a later stage learns. Each step is a part file, written whole, so a stopped stage
    resumes with the next one; the draws are counted and do not change. A part that is damaged is
    drawn again.

    Where `steps` is less than what is done already, the stage ends with that.

    Returns:
      The parameters as they were, the last step, and what the stage did: `sampled`, `kept`,
      `dropped` (no reward, or cut off before its end), `empty` (good enough, but without a text to
      learn), the mean `reward` of all but the dropped, and `num_tokens` drawn.

    Raises:
      UserError: nothing was good enough to keep, or rows hold what JSON does not (see
        `check_columns`).
    """
    del evaluation
    started = time.perf_counter()
    params = initial_params()
    settings, timers = stage.config, Timers()
    run.writer.resume(stage.name, None)
    parts, mark = stage.folder / 'parts', claim.fingerprint(run.config)
    done = processes.on_main(lambda: _done(parts))
    steps = max(settings.steps, next(step for step in itertools.count() if step + 1 not in done))
    if steps > settings.steps and processes.is_main():
        print(
            f'config.{stage.name}.steps={settings.steps}: {steps} are collected already; the stage '
            'ends with them.',
            flush=True,
        )
    totals, stepped = dict(NOTHING), 0.0
    with (
        open_rollouts(run, stage, check_columns) as rollouts,
        Progress(stage.name, steps) as progress,
    ):
        for step in range(1, steps + 1):
            stopping.point(f'stage {stage.name}: {step - 1} of {steps} steps are done and saved')
            if step in done:
                rollouts.skip()
                part = done[step]
            else:
                start = time.perf_counter()
                part = _part(rollouts.draw(step, params, timers), settings)
                part['seconds'] = time.perf_counter() - start
                if processes.is_main():
                    _write(parts / f'{step:05d}.json', _json(part | {'config': mark}))
            totals = {name: totals[name] + part['counts'][name] for name in totals}
            seconds = part['seconds']
            stepped += seconds if step > 1 else 0.0
            measured = {'reward': totals['reward'] / max(1, totals['sampled'] - totals['dropped'])}
            dropped = {
                f'data/{name}': value
                for name, value in rollouts.data.counters.items()
                if name.startswith('dropped')
            }
            run.writer.write(
                stage.name,
                step,
                totals | measured | dropped | {'step_time': seconds} | timers.take(),
            )
            progress.update(step, measured)
            if counters.limit_reached(settings, totals['num_tokens'], stepped):
                break
    if not totals['kept']:
        raise UserError(
            f'stage {stage.name}: none of {totals["sampled"]} samples reached '
            f'min_reward={settings.min_reward}; lower it or sample more.'
        )
    processes.on_main(lambda: _join(parts, step, stage.folder / FILE))
    run.writer.sync()
    measured = totals | {'reward': totals['reward'] / max(1, totals['sampled'] - totals['dropped'])}
    state = {'dataset': processes.on_main(lambda: claim.digest(stage.folder / FILE))}
    return StageResult(params, time.perf_counter() - started, step, measured=measured, state=state)


def check(config: ml_collections.ConfigDict, name: str) -> None:
    """Does nothing: only what all stages share can be wrong with a stage that collects."""


def check_columns(row: Mapping[str, Any]) -> None:
    """Checks a row before anything is sampled for it.

    Raises:
      UserError: a column cannot be written as JSON. Dates and decimals are written as text, arrays
        as lists.
    """
    for name, value in row.items():
        try:
            _json(value)
        except (TypeError, ValueError) as error:
            raise UserError(
                f'column "{name}" cannot be written beside a sample ({error}); a transform may '
                'leave it out'
            ) from error


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_jsonable)


def _jsonable(value: Any) -> Any:
    """Converts values of data sources that `json` cannot write, such as dates and arrays."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | uuid.UUID | np.datetime64):
        return str(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f'it holds {type(value).__name__}, which JSON does not')


def _learnable(prompt: Any, completion: Completion) -> dict[str, Any]:
    """Returns the columns that make a row to train on from a prompt and its completion."""
    if isinstance(prompt, str):
        return {'completion': completion.text}
    return {
        'completion': [{'role': 'assistant', 'content': completion.text}],
        'completion_ids': completion.ids,
    }


def _done(parts: pathlib.Path) -> dict[int, dict]:
    """Reads the parts that have been written, by step, without their rows; renames damaged ones."""
    parts.mkdir(parents=True, exist_ok=True)
    done = {}
    for path in sorted(path for path in parts.iterdir() if PART.fullmatch(path.name)):
        try:
            part = _read(path)
        except UserError as error:
            print(
                f'warning: {error} Renamed to {put_aside(path).name}, and drawn again.',
                file=sys.stderr,
            )
        else:
            done[int(path.stem)] = {name: value for name, value in part.items() if name != 'rows'}
    return done


def _read(path: pathlib.Path) -> dict:
    """Reads a part.

    Raises:
      UserError: it is damaged.
    """
    part = files.json_object(path)
    rows, counts = part.get('rows'), part.get('counts')
    good = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    good &= isinstance(counts, dict) and NOTHING.keys() <= counts.keys()
    if not good or any(
        type(x) not in (int, float) for x in (*counts.values(), part.get('seconds'))
    ):
        raise UserError(f'{path}: is not what a step has collected.')
    return part


def _join(parts: pathlib.Path, last: int, target: pathlib.Path) -> None:
    """Writes the rows of all steps up to the last one as one dataset."""
    rows = [row for step in range(1, last + 1) for row in _read(parts / f'{step:05d}.json')['rows']]
    _write(target, ''.join(_json(row) + '\n' for row in rows))


def _part(drawn: ScoredRollout, stage: Any) -> dict:
    rows, counts = [], dict(NOTHING)
    rewards = drawn.rewards.total.reshape(len(drawn.texts), -1)
    for row, group, of_group in zip(drawn.prompts['rows'], drawn.texts, rewards, strict=True):
        kept: list[Completion] = []
        for completion, reward in zip(group, of_group, strict=True):
            counts['sampled'] += 1
            counts['num_tokens'] += completion.length
            if reward != reward or not completion.terminated:
                counts['dropped'] += 1
                continue
            counts['reward'] += float(reward)
            if not completion.text:
                counts['empty'] += int(reward >= stage.min_reward)
                continue
            fresh = all(completion.text != other.text for other in kept)
            if (
                reward >= stage.min_reward
                and fresh
                and len(kept) < (stage.max_per_prompt or len(group))
            ):
                kept.append(completion)
                rows.append(row | _learnable(row['prompt'], completion) | {'reward': float(reward)})
        counts['kept'] += len(kept)
    return {'rows': rows, 'counts': counts}


def _write(path: pathlib.Path, text: str) -> None:
    files.write_text(path, text)
