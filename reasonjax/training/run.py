"""A run: its stages in order, each at most once, then one table."""

import functools
import json
import os
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections

from reasonjax import __version__, files
from reasonjax import config as configs
from reasonjax.config_names import model_source
from reasonjax.errors import UserError
from reasonjax.parallel import processes
from reasonjax.terminal import printable
from reasonjax.tracking.progress import Progress
from reasonjax.tracking.results import table
from reasonjax.training import checks, evaluate, locks
from reasonjax.training import claim as claims
from reasonjax.training.checkpoint import load_params
from reasonjax.training.context import (
    Run,
    Stage,
    abstract_params,
    fresh_params,
    open_run,
    stages_of,
)
from reasonjax.training.counters import limit_reached, update_best
from reasonjax.training.kinds import KINDS
from reasonjax.training.saved_run import trained
from reasonjax.weights import finite
from reasonjax.weights.linear import merge_tree
from reasonjax.weights.partition import path_name

LISTED = 12
SHOWN = 300
LONG_STAGE = 30  # seconds


def run(
    config: ml_collections.ConfigDict,
    workdir: str | os.PathLike,
    trust: Sequence[str] = (),
    report: Callable[[pathlib.Path], Any] | None = None,
) -> dict:
    """Runs every stage of a config that is not finished yet.

    Args:
      config: resolved, as `config.load` returns it.
      workdir: made where it does not exist; one that holds a run of another config is refused.
      trust: see `saved_run.open_saved`, of a run that `config.init` names.
      report: called with the workdir, in the first process, to draw a page of what is there: at the
        end, and after long stages.

    Returns:
      What is written to `summary.json`: `stages`, a list of results, and `examples`, problems with
        each stage's answer.

    Raises:
      UserError: anything wrong with config, data or workdir.
    """
    workdir = pathlib.Path(workdir)
    checks.check(config)
    started = (__version__, jax.__version__, configs.to_json(config))
    processes.check_equal(
        started,
        'the config, or the version of reasonjax or jax,',
        'Give all hosts equal copies and the same command.',
    )
    processes.on_main(lambda: _make_folder(workdir))
    processes.check_shared(workdir)
    with locks.hold(workdir):
        return _run_all(config, workdir, trust, report or _draw_nothing)


def _run_all(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, trust: Sequence[str], report: Callable
) -> dict:
    """Runs what is left, in a workdir that nobody else writes."""
    processes.on_main(lambda: claims.claim(config, workdir))
    context = open_run(config, workdir, trust=trust)
    checks.check_opened(context)
    with context.writer:
        context.writer.environment()
        evaluation = evaluate.make(context) if config.evaluation.enabled else None
        finished = processes.on_main(lambda: claims.finished(config, workdir))
        for name, done in finished.items():
            state = done[claims.STATE]
            context.writer.confirm(name, state['last'], state)
        left, results, concluded = None, [], False
        stages = stages_of(config, workdir)
        final = next((stage for stage in reversed(stages) if stage.name not in finished), None)
        for stage in stages:
            if stage.name in finished:
                results.append(finished[stage.name])
                left = None
                continue
            initial_params = InitialParams(
                functools.partial(load_initial_params, context, stage, evaluation), left
            )
            left = None  # only the stage has them now
            left, result = _run_stage(context, stage, initial_params, evaluation)
            results.append(result)
            # Drawing takes seconds, more than a short stage.
            due = stage is final or result['seconds'] > LONG_STAGE
            processes.on_main(
                functools.partial(
                    _conclude, workdir, results, report if due else _draw_nothing, stage
                )
            )
            concluded = True
    if not concluded:
        # All stages were done already, but the process that did the last may have been killed
        # before it concluded.
        processes.on_main(lambda: _conclude(workdir, results, report))
    return summary_of(results)


def _conclude(
    workdir: pathlib.Path, results: list[dict], report: Callable, stage: Stage | None = None
) -> None:
    """Writes down that the stage at `stage` is done, and what the run has reached."""
    if stage is not None:
        stage.folder.mkdir(parents=True, exist_ok=True)
        files.write_text(stage.folder / claims.DONE, json.dumps(results[-1], indent=2) + '\n')
    files.write_text(workdir / 'summary.json', json.dumps(summary_of(results), indent=2) + '\n')
    report(workdir)


def _draw_nothing(workdir: pathlib.Path) -> None:
    """Stands for a report where none is wanted."""


def _make_folder(workdir: pathlib.Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = files.reason(error) if isinstance(error, OSError) else error
        nowhere = (
            isinstance(error, FileExistsError)
            and os.path.islink(workdir)
            and not os.path.exists(workdir)
        )
        what = 'is a link to nowhere' if nowhere else f'cannot be made ({why})'
        raise UserError(f'--workdir={workdir}: {what}.') from error


class InitialParams:
    """Returns the parameters that a stage starts from. The first call hands over what the stage
    before has left, without keeping it, so that a stage that trains all weights can free those it
    started from; each later call loads them.

    Args:
      load: loads them.
      params: those that the stage before has left, if it ran just now.
    """

    def __init__(self, load: Callable[[], Any], params: Any = None):
        self._load, self._params = load, params

    def __call__(self) -> Any:
        params, self._params = self._params, None
        return self._load() if params is None else params


def load_initial_params(run: Run, stage: Stage, evaluation: Callable | None) -> Any:
    """Returns the parameters that a stage starts from. They are the last that a stage before it
    saved, else those that `config.init` names.

    Where the last checkpoint of that stage is damaged, what followed the one before is done again.
    """
    before = [
        p for p in stages_of(run.config, run.workdir)[: stage.number] if KINDS[p.config.kind].saves
    ]
    if before:
        last = before[-1]
        params, meta, step = load_params(
            last.folder / 'checkpoints', abstract_params(run, last.number)
        )
        finite.check(
            params,
            f'stage {last.name}: its checkpoint of step {step}',
            dtype=run.model.compute_dtype,
        )
        settings = last.config
        clocked = meta.get('clock', {}).get('steps', 0.0)
        ended = processes.on_main(
            lambda: (claims.read_done(last) or {}).get(claims.STATE, {}).get('last', 0)
        )
        complete = step >= (ended or settings.get('steps', 0)) or limit_reached(
            settings, meta.get('counted', {}).get('num_tokens', 0), clocked
        )
        if complete:
            return params
        again = InitialParams(functools.partial(load_initial_params, run, last, evaluation))
        return _run_stage(run, last, again, evaluation)[0]
    return initial(run)


def initial(run: Run) -> Any:
    """Returns the parameters before the first stage. They are fresh, of a Hugging Face folder, or
    of another run, its adapters merged.

    Raises:
      UserError: no such folder or run, or a model of another shape.
    """
    init = run.config.init
    if not init:
        return fresh_params(run)
    scheme, _, place = init.partition(':')
    if scheme == 'hf':
        with Progress('import', 100, waiting='') as progress:
            source = model_source(scheme)
            folder = source.read_folder(place)
            return source.load(
                folder, run.model, run.mesh, lambda done, of: progress.update(100 * done // of, {})
            )
    workdir, _, stage = place.partition(':')
    return _fitting(run, *trained(workdir, stage, run.trust))


def _fitting(run: Run, other: Run, params: Any) -> Any:
    """Returns another run's parameters, adapters merged, placed as this run's. Raises UserError
    where the shape of the model or the vocabulary differs."""
    if other.tokenizer.fingerprint() != run.tokenizer.fingerprint():
        raise UserError(
            f'config.init: {other.workdir} was trained with another tokenizer '
            f'({other.config.tokenizer.name}); use the same settings, '
            'or name its vocabulary file in config.tokenizer.path.'
        )
    dense, wanted = jax.jit(merge_tree)(params), abstract_params(run, -1)
    theirs_by_name = {
        path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(dense)
    }
    ours_by_name = {
        path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(wanted)
    }
    wrong = [
        f'{name}: expected {ours_by_name.get(name, "nothing")}, found '
        f'{theirs_by_name.get(name, "nothing")}'
        for name in sorted({*ours_by_name, *theirs_by_name})
        if ours_by_name.get(name) != theirs_by_name.get(name)
    ]
    if wrong:
        raise UserError(
            'config.init: the checkpoint is of another model shape (config.model):\n  '
            + '\n  '.join(wrong[:LISTED])
        )
    fitting = jax.tree.map(
        lambda x, like: jax.device_put(x.astype(like.dtype), like.sharding), dense, wanted
    )
    finite.check(
        fitting,
        f'config.init: {other.workdir}, in {run.model.param_dtype}',
        dtype=run.model.compute_dtype,
    )
    return fitting


def _run_stage(
    run: Run, stage: Stage, initial_params: Callable[[], Any], evaluation: Callable | None
) -> tuple[Any, dict]:
    """Runs a stage to its end; returns the parameters it leaves, and its entry of
    `summary.json`."""
    settings = stage.config
    kind = KINDS[settings.kind]
    done = kind.load().run(run, stage, initial_params, evaluation)
    result, seconds = {'name': stage.name} | done.measured, done.seconds
    if evaluation is not None and kind.evaluates:
        started = time.perf_counter()
        answers = evaluation(done.params)
        summary = evaluate.summarise(answers)
        measured = evaluate.as_metrics(summary)
        # No checkpoint follows it: a run that was killed right after it writes it once more.
        run.writer.write(stage.name, done.last, measured, once=True)
        if settings.get('keep_best'):
            result['best'] = update_best(done.best, done.last, measured, settings, stage.name)
        result |= summary | {'examples': evaluate.examples(answers)}
        seconds += time.perf_counter() - started
    run.writer.sync()
    state = {'config': claims.fingerprint(run.config)} | (
        {'steps': settings.steps} if 'steps' in settings else {}
    )
    state |= done.state | {'last': done.last} | run.writer.written(stage.name)
    return done.params, result | {'seconds': seconds, claims.STATE: state}


def summary_of(results: list[dict]) -> dict:
    """Builds `summary.json`: results per stage, and per problem the answers of all stages."""
    stages = [{k: v for k, v in r.items() if k not in ('examples', claims.STATE)} for r in results]
    shown = [(r['name'], r['examples']) for r in results if 'examples' in r]
    examples = [
        {
            'prompt': first['prompt'],
            'solution': first['solution'],
            'answers': {name: answers[i]['answer'] for name, answers in shown},
            'correct': {name: answers[i]['correct'] for name, answers in shown},
        }
        for i, first in enumerate(shown[0][1] if shown else [])
    ]
    return {'stages': stages, 'examples': examples}


def show(summary: dict) -> None:
    """Prints the final table, and the first problems as each stage answers them."""
    table(summary['stages'])
    for example in summary['examples']:
        problem = f'{_excerpt(example["prompt"])}  (solution {_excerpt(example["solution"])})'
        print(printable(f'The same problem, answered by each stage: {problem}'))
        width = max(len(name) for name in example['answers'])
        for name, answer in example['answers'].items():
            print(
                printable(
                    f'  {name:{width}}  {"right" if example["correct"][name] else "wrong"}  '
                    f'{_excerpt(answer)}'
                )
            )


def _excerpt(text: Any) -> str:
    """Shortens a text to what fits a terminal; the report has all of it."""
    text = str(text)
    return (
        text if len(text) <= SHOWN else f'{text[:SHOWN]} [and {len(text) - SHOWN} characters more]'
    )
