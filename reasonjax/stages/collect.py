"""Collecting own samples: prompts -> rollouts -> rewards -> the good ones as a dataset of JSONL for a later supervised stage.

The building block of rejection sampling, STaR and their relatives: `collect -> supervised`, repeated.
"""

import datetime
import decimal
import json
import pathlib
import time
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from reasonjax import stopping
from reasonjax.errors import UserError
from reasonjax.metrics import Progress, Timers
from reasonjax.parallel import processes
from reasonjax.rollout.text import Completion
from reasonjax.stages import ledger
from reasonjax.stages.context import Place, Run, settings
from reasonjax.stages.rollouts import Drawn, open_rollouts

FILE = 'dataset.jsonl'
NOTHING = {'sampled': 0, 'kept': 0, 'dropped': 0, 'empty': 0, 'reward': 0.0, 'num_tokens': 0}


def run(run: Run, place: Place, params: Any) -> dict:
    """Samples `steps` times `num_prompts` prompts and writes the different completions whose total reward is at least `min_reward`.

    `token_limit` and `time_limit` end it earlier: with the step that reaches them.

    Rows hold every column of the prompt's row, `completion` (the sampled text) and `reward`. Where the prompt is messages, so is the
    completion, and `completion_ids` are the tokens as they were drawn, which a later stage learns. Each step is a part file, written
    whole, so a stopped stage goes on with the next one; the draws are counted and do not change.

    Returns:
      What the stage did: `sampled`, `kept`, `dropped` (no reward, or cut off before its end), `empty` (good enough, but without a text
      to learn), the mean `reward` of all but the dropped, and `num_tokens` drawn.

    Raises:
      UserError: nothing was good enough to keep, or rows hold what JSON does not (see `check_columns`).
    """
    stage, timers = settings(run.config, place), Timers()
    run.writer.resume(place.name, None)
    parts = place.folder / 'parts'
    done = processes.on_main(lambda: _done(parts))
    totals, stepped = dict(NOTHING), 0.0
    with open_rollouts(run, place, check_columns) as rollouts, Progress(place.name, stage.steps) as progress:
        for step in range(1, stage.steps + 1):
            stopping.point(f'stage {place.name}: {step - 1} of {stage.steps} steps are done and saved')
            if step in done:
                rollouts.skip()
                part = done[step]
            else:
                start = time.perf_counter()
                part = _part(rollouts.draw(step, params, timers), stage)
                part['seconds'] = time.perf_counter() - start
                if processes.is_main():
                    _write(parts / f'{step:05d}.json', _json(part))
            # A part of an earlier version may lack a count.
            totals = {name: totals[name] + part['counts'].get(name, 0) for name in totals}
            seconds = part.get('seconds', 0.0)
            stepped += seconds if step > 1 else 0.0
            measured = {'reward': totals['reward'] / max(1, totals['sampled'] - totals['dropped'])}
            dropped = {f'data/{name}': value for name, value in rollouts.data.counters.items() if name.startswith('dropped')}
            run.writer.write(place.name, step, totals | measured | dropped | {'step_time': seconds} | timers.take())
            progress.update(step, measured)
            if ledger.spent(stage, totals['num_tokens'], stepped):
                break
    if not totals['kept']:
        raise UserError(
            f'stage {place.name}: none of {totals["sampled"]} samples reached min_reward={stage.min_reward}; lower it or sample more.'
        )
    processes.on_main(lambda: _join(parts, place.folder / FILE))
    return totals | {'reward': totals['reward'] / max(1, totals['sampled'] - totals['dropped'])}


def check_columns(row: Mapping[str, Any]) -> None:
    """Checks a row before anything is sampled for it.

    Raises:
      UserError: a column cannot be written as JSON. Dates and decimals are written as text, arrays as lists.
    """
    for name, value in row.items():
        try:
            _json(value)
        except (TypeError, ValueError) as error:
            raise UserError(f'column "{name}" cannot be written beside a sample ({error}); a transform may leave it out') from error


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_jsonable)


def _jsonable(value: Any) -> Any:
    """What `json` does not know, of what sources give."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | uuid.UUID | np.datetime64):
        return str(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f'it holds {type(value).__name__}, which JSON does not')


def _learnable(prompt: Any, completion: Completion) -> dict[str, Any]:
    """The columns that make a row of a prompt and its completion."""
    if isinstance(prompt, str):
        return {'completion': completion.text}
    return {'completion': [{'role': 'assistant', 'content': completion.text}], 'completion_ids': completion.ids}


def _done(parts: pathlib.Path) -> dict[int, dict]:
    """The parts that have been written, by step, without their rows."""
    parts.mkdir(parents=True, exist_ok=True)
    found = {int(path.stem): json.loads(path.read_text(encoding='utf-8')) for path in parts.glob('*.json')}
    return {step: {name: value for name, value in part.items() if name != 'rows'} for step, part in found.items()}


def _join(parts: pathlib.Path, target: pathlib.Path) -> None:
    """Writes the rows of all steps as one dataset."""
    rows = [row for path in sorted(parts.glob('*.json')) for row in json.loads(path.read_text(encoding='utf-8'))['rows']]
    _write(target, ''.join(_json(row) + '\n' for row in rows))


def _part(drawn: Drawn, stage: Any) -> dict:
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
            if reward >= stage.min_reward and fresh and len(kept) < (stage.max_per_prompt or len(group)):
                kept.append(completion)
                rows.append(row | _learnable(row['prompt'], completion) | {'reward': float(reward)})
        counts['kept'] += len(kept)
    return {'rows': rows, 'counts': counts}


def _write(path: pathlib.Path, text: str) -> None:
    temporary = path.with_suffix('.tmp')
    temporary.write_text(text, encoding='utf-8')
    temporary.replace(path)
