"""Whose a workdir is: the config that its results belong to, what of it may change when the run
is resumed, and which stages are done.

Checkpoints, parts and `done.json` carry a fingerprint of the config, so that what they are of is
known where `config.json` is gone.
"""

import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from reasonjax import config as configs
from reasonjax import files
from reasonjax.errors import UserError
from reasonjax.parallel import processes
from reasonjax.tracking.records import STEPS_BEFORE
from reasonjax.training import checkpoint_files
from reasonjax.training.checkpoint import read_meta
from reasonjax.training.context import Run, Stage, stages_of
from reasonjax.training.saved_run import CONFIG, check_shape

DONE = 'done.json'
LISTED = 12
# what may change: a run resumes on whatever devices there are
DEVICES = ('config.mesh.', 'config.rollout.mesh.')
STATE = 'state'  # of a `done.json`: what a run that resumes has to know, and its user does not


def fingerprint(config: ml_collections.ConfigDict) -> str:
    """Returns a hash of the settings that a resumed run may not change. These are all but the
    devices and the steps of the stages."""
    plain = json.loads(configs.to_json(config))
    plain.pop('mesh', None)
    plain.get('rollout', {}).pop('mesh', None)
    for name in config.stages:
        plain[name].pop('steps', None)
    return hashlib.sha256(json.dumps(_plain_numbers(plain), sort_keys=True).encode()).hexdigest()[
        :32
    ]


def claim(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Writes `config.json`, after comparing it with the results that the workdir holds.

    Of a stage, `steps` may be another number than before; see `_allow_steps`.

    Raises:
      UserError: the workdir belongs to a run of another config (lists what differs), or to
        something else.
    """
    path = workdir / CONFIG
    results = _results(workdir)
    before = _before(path, bool(results))
    if before is not None and results:
        differing = [
            line for line in configs.differences(before, config) if not line.startswith(DEVICES)
        ]
        steps = [f'config.{name}.steps: ' for name in config.stages if 'steps' in config[name]]
        shown = [line for line in differing if not line.startswith(tuple(steps))]
        if shown:
            more = f'\n  and {len(shown) - LISTED} more' if len(shown) > LISTED else ''
            listed = '\n  '.join(shown[:LISTED])
            raise UserError(
                f'{path} is of another config; use a new --workdir, or undo these changes:\n  '
                f'{listed}{more}'
            )
    elif results:
        _recognise(path, fingerprint(config), results)
    _allow_steps(config, workdir)
    files.write_text(path, configs.to_json(config) + '\n')


def finished(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Returns the results of the stages that are done, by name.

    A stage whose data set is not what it wrote counts as not done: it joins its parts again.
    """
    results = {}
    for stage in stages_of(config, workdir):
        done = read_done(stage)
        written = done and done[STATE].get('dataset')
        if written and digest(stage.folder / 'dataset.jsonl') != written:
            _warn(
                f'{stage.folder / "dataset.jsonl"} is not (any more) what stage {stage.name} '
                'wrote; it is made again from its parts.'
            )
        elif done:
            results[stage.name] = done
    return results


def read_done(stage: Stage) -> dict[str, Any] | None:
    """Returns the result of a stage, or None where it is not done. A damaged result is renamed, and
    the stage is concluded once more."""
    path = stage.folder / DONE
    if not os.path.lexists(path):
        return None
    try:
        done = files.json_object(path)
        if not _is_result(done, stage.name):
            raise UserError(f'{path}: is not the result of stage {stage.name}.')
    except UserError as error:
        aside = files.put_aside(path).name
        _warn(
            f'{error} Renamed to {aside}; the stage resumes from its last checkpoint, and is '
            'concluded once more.'
        )
        return None
    return done


def _is_result(done: Mapping[str, Any], name: str) -> bool:
    """Returns whether `done` is the result of the stage `name`, as far as this program reads it."""
    state, examples = done.get(STATE), done.get('examples', [])
    numbers = [
        done.get(key)
        for key in ('accuracy', 'sampled_accuracy', 'mean_length', 'problems')
        if done.get(key) is not None
    ]
    intervals = [done[key] for key in ('ci95', 'sampled_ci95') if key in done]
    if not (
        isinstance(state, dict)
        and isinstance(examples, list)
        and all(isinstance(pair, list) for pair in intervals)
    ):
        return False
    numbers += [done.get('seconds'), *(number for pair in intervals for number in pair)]
    return (
        done.get('name') == name
        and all(type(number) in (int, float) for number in numbers)
        and all(len(pair) == 2 for pair in intervals)
        and type(state.get('last')) is int
        and all(type(state.get(key, 0)) is int for key in ('steps', 'records', 'completions'))
        and all(
            isinstance(one, dict) and {'prompt', 'solution', 'answer', 'correct'} <= one.keys()
            for one in examples
        )
    )


def digest(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file; '' where there is none."""
    return hashlib.sha256(files.read_bytes(path)).hexdigest() if path.is_file() else ''


def report_length(
    run: Run, stage: Stage, before: int, *, begin: int, update: int, updates: int
) -> None:
    """Reports in a record and on the screen what a changed number of steps means. See
    `describe_length`."""
    steps = stage.config.steps
    run.writer.write(stage.name, begin, {'steps': steps, STEPS_BEFORE: before}, once=True)
    if processes.is_main():
        counts = dict(begin=begin, update=update, updates=updates)
        print(describe_length(run.config, stage, before, **counts), flush=True)


def describe_length(
    config: ml_collections.ConfigDict,
    stage: Stage,
    before: int,
    *,
    begin: int,
    update: int,
    updates: int,
) -> str:
    """Returns the sentence that says what a changed number of steps means for a resumed stage.

    Args:
      config: of the run.
      stage: of the run.
      before: its steps until now.
      begin: the step it resumes from.
      update: of the optimiser, that is next.
      updates: in a step.
    """
    settings = stage.config
    text = f'config.{config.stages[stage.number]}.steps: {before} -> {settings.steps}: stage {stage.name}'
    if begin >= settings.steps:
        return f'{text} has done {begin} already, and ends there.'
    rate = settings.learning_rate
    then, now = (
        configs.resolve(rate, 'learning_rate')(steps * updates)
        for steps in (before, settings.steps)
    )
    end = settings.steps * updates - 1
    if all(float(then(i)) == float(now(i)) for i in (update, update + updates, end)):
        return (
            f'{text} resumes from step {begin}; the learning rate ({rate.name}) stays what it was.'
        )
    return (
        f'{text} resumes from step {begin}; the learning rate ({rate.name}) follows the new length '
        f'from here on: {float(now(update)):.4g} '
        f'at step {begin + 1} (it would have been {float(then(update)):.4g}), '
        f'{float(now(end)):.4g} at step {settings.steps}.'
    )


def _before(path: pathlib.Path, used: bool) -> ml_collections.ConfigDict | None:
    """Reads the config of a workdir; None where there is none, or a damaged one was renamed."""
    if not path.is_file():
        if path.exists() or path.is_symlink():
            raise UserError(f'{path} is not a file; give another --workdir.')
        return None
    content = files.read_bytes(path)
    try:
        config = configs.from_json(files.decode(content, str(path)), str(path))
        if 'stages' in config:
            check_shape(config)
    except UserError as error:
        if not used:
            raise UserError(
                f'{error} It is not the {CONFIG} of a run: give another --workdir.'
            ) from error
        _warn(f'{error} Renamed to {files.put_aside(path).name}.')
        return None
    if 'stages' not in config:
        raise UserError(
            f'{path} is not of a run, but of something else (a Hugging Face model?): give another '
            '--workdir.'
        )
    return config


def _results(workdir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the paths of all that a run has produced in a workdir. These are results, folders of
    checkpoints that have any, and parts."""
    checkpoints = [folder for folder in workdir.glob('stages/*/checkpoints') if _has_any(folder)]
    return [*workdir.glob(f'stages/*/{DONE}'), *checkpoints, *workdir.glob('stages/*/parts/*.json')]


def _has_any(folder: pathlib.Path) -> bool:
    return folder.is_dir() and bool(
        checkpoint_files.steps(folder) or checkpoint_files.aside(folder)
    )


def _recognise(path: pathlib.Path, ours: str, results: Sequence[pathlib.Path]) -> None:
    """Raises UserError unless the results say that they are of the config of this fingerprint."""
    if {mark for result in results if (mark := _mark(result))} != {ours}:
        raise UserError(
            f'{path} is missing or damaged, and the results there are not known to be of the '
            'config that is given. Put it back, undo what was changed since, or give another '
            '--workdir.'
        )
    _warn(
        f'{path} was missing or damaged. It is written again: the results there are of the config '
        'that is given.'
    )


def _mark(result: pathlib.Path) -> str:
    """Returns the fingerprint in a result; '' where it has none, or cannot be read."""
    try:
        if result.is_dir():
            return str(read_meta(result).get('config', ''))
        content = files.json_object(result)
        state = content.get(STATE, content)
        return str(state.get('config', '')) if isinstance(state, dict) else ''
    except UserError:
        return ''


def _allow_steps(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Reopens a finished stage whose steps were raised.

    Raises:
      UserError: a later stage has started from its result, or it has done more steps than it is
        to have.
    """
    every = stages_of(config, workdir)
    for stage in every:
        settings = stage.config
        done = read_done(stage) if 'steps' in settings else None
        if done is None:
            continue
        then, last = done[STATE].get('steps', settings.steps), done[STATE]['last']
        if settings.steps == then or (last < then and settings.steps >= last):
            continue  # the same, or a stage that a limit of tokens or time has ended
        key = f'config.{config.stages[stage.number]}.steps: {then} -> {settings.steps}'
        if settings.steps < last:
            raise UserError(
                f'{key}: stage {stage.name} is done, with step {last}; give it at least as many '
                'steps, or another --workdir.'
            )
        users = [later.name for later in every[stage.number + 1 :] if _begun(later)]
        if users:
            raise UserError(
                f'{key}: stage {stage.name} is done, with step {last}, and {users[0]} starts from '
                'there; its steps stay. Give another '
                '--workdir, or have a new run start from this one '
                '(config.init=checkpoint:WORKDIR:STAGE).'
            )
        (stage.folder / DONE).rename(stage.folder / f'done_{last}.json')
        print(
            f'{key}: stage {stage.name} was done with step {last}, and resumes from there.',
            flush=True,
        )


def _begun(stage: Stage) -> bool:
    """Returns whether a stage has left anything that depends on its input."""
    folder = stage.folder
    return (
        (folder / DONE).is_file()
        or _has_any(folder / 'checkpoints')
        or any((folder / 'parts').glob('*.json'))
    )


def _plain_numbers(value: Any) -> Any:
    """Replaces floats such as 1.0 by integers, so that equal configs compare as equal."""
    if isinstance(value, Mapping):
        return {name: _plain_numbers(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_plain_numbers(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _warn(text: str) -> None:
    print(f'warning: {text}', file=sys.stderr)
