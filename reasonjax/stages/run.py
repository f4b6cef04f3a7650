"""A run: its stages in order, each at most once, then one table."""

import functools
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections

from reasonjax import __version__, metrics, report
from reasonjax import config as configs
from reasonjax.checkpoint import Checkpoints, load_params, read_meta
from reasonjax.errors import UserError, listing, nearest
from reasonjax.model import pretrained
from reasonjax.model.config import check_fields, to_dict
from reasonjax.parallel import mesh as meshes
from reasonjax.parallel import processes
from reasonjax.stages import collect, evaluate, fused, online, sampling, supervised
from reasonjax.stages.context import Place, Run, abstract_params, fresh_params, open_run, places, settings
from reasonjax.stages.ledger import better, spent
from reasonjax.terminal import printable
from reasonjax.weights import finite
from reasonjax.weights.linear import merge_tree
from reasonjax.weights.partition import path_name

TRAINING = {'supervised': supervised.run, 'online': online.run}
SAVING = (*TRAINING, 'keep')
KINDS = (*SAVING, 'collect', 'evaluate')
LISTED = 12
DEVICES = ('config.mesh.', 'config.rollout.mesh.')  # what may change: a run goes on on whatever devices there are
SHOWN = 300


def run(config: ml_collections.ConfigDict, workdir: str | os.PathLike) -> dict:
    """Runs every stage of a config that is not finished yet.

    Args:
      config: resolved, as `config.load` returns it.
      workdir: made where it does not exist; one that holds a run of another config is refused.

    Returns:
      What is written to `summary.json`: `stages`, a list of results, and `examples`, problems with each stage's answer.

    Raises:
      UserError: anything wrong with config, data or workdir.
    """
    workdir = pathlib.Path(workdir)
    check(config)
    started = (__version__, jax.__version__, configs.to_json(config))
    processes.check_equal(started, 'the config, or the version of reasonjax or jax,', 'Give all hosts equal copies and the same command.')
    processes.check_shared(workdir)
    processes.on_main(lambda: claim(config, workdir))
    context = open_run(config, workdir)
    with context.writer:
        context.writer.environment()
        evaluation = evaluate.make(context) if config.evaluation.enabled else None
        finished = processes.on_main(lambda: _finished(config, workdir))
        left, results, concluded = None, [], False
        for place in places(config, workdir):
            if place.name in finished:
                results.append(finished[place.name])
                left = None
                continue
            found = Arriving(functools.partial(arriving, context, place, evaluation), left)
            left = None  # only the stage has them now
            left, result = _run_stage(context, place, found, evaluation)
            results.append(result)
            processes.on_main(functools.partial(_conclude, workdir, results, place))
            concluded = True
    if not concluded:
        # All stages were done already, but the process that did the last may have been killed before it concluded.
        processes.on_main(lambda: _conclude(workdir, results))
    return summary_of(results)


def _finished(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> dict[str, dict]:
    """The results of the stages that are done."""
    done = {place.name: place.folder / 'done.json' for place in places(config, workdir)}
    return {name: json.loads(path.read_text()) for name, path in done.items() if path.is_file()}


def _conclude(workdir: pathlib.Path, results: list[dict], place: Place | None = None) -> None:
    """Writes down that the stage at `place` is done, and what the run has reached."""
    if place is not None:
        _write_json(place.folder / 'done.json', results[-1])
    _write_json(workdir / 'summary.json', summary_of(results))
    report.write(workdir)


def check(config: ml_collections.ConfigDict) -> None:
    """Raises UserError where `stages` names what is not there, or a value is not within its bound."""
    if not config.stages:
        raise UserError('config.stages: names no stage.')
    groups = [name for name, value in config.items() if isinstance(value, ml_collections.ConfigDict) and 'kind' in value]
    for name in config.stages:
        if name not in groups:
            raise UserError(f'config.stages: no stage "{name}".{nearest(name, groups)} Stages of this config: {listing(groups)}.')
        kind = config[name].kind
        if kind not in KINDS:
            raise UserError(f'config.{name}.kind: unknown kind "{kind}".{nearest(kind, KINDS)} Known: {listing(KINDS)}.')
        if kind == 'evaluate' and not config.evaluation.enabled:
            raise UserError(f'config.{name}: an evaluate stage needs config.evaluation.enabled=True.')
        if config[name].get('iterations_per_call', 1) != 1 and not config[name].on_device:
            raise UserError(f'config.{name}.iterations_per_call={config[name].iterations_per_call}: needs config.{name}.on_device=True.')
    # Once more, for a config that was changed after it was loaded.
    configs.check(config)
    check_fields(config.model)
    for name in dict.fromkeys(config.stages):
        if 'max_completion_length' in config[name]:
            sampling.check(config[name], name)
        if 'learning_rate' in config[name]:
            _check_decay(config[name], name)


def _check_decay(stage: ml_collections.ConfigDict, name: str) -> None:
    """Raises UserError where weight decay alone would turn the sign of weights round at every update."""
    peak, decay = stage.learning_rate.get('peak', 0.0), stage.optimizer.get('weight_decay', 0.0)
    if peak * decay >= 1:
        raise UserError(
            f'config.{name}.optimizer.weight_decay={decay:g}: with learning_rate.peak={peak:g} an update takes {peak * decay:g} times each '
            f'weight away; must be below {1 / peak:g}.'
        )


def claim(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Writes `config.json`, or compares with the one that is there once the workdir holds results.

    Raises:
      UserError: the workdir belongs to a run of another config; lists what differs.
    """
    path = workdir / 'config.json'
    produced = [*workdir.glob('stages/*/done.json'), *workdir.glob('stages/*/checkpoints/*'), *workdir.glob('stages/*/parts/*')]
    # A run that failed before its first result has no say in what the next attempt may be.
    if path.is_file() and produced:
        differing = configs.differences(configs.from_json(path.read_text()), config)
        differing = [line for line in differing if not line.startswith(DEVICES)]
        if differing:
            shown = '\n  '.join(differing[:LISTED])
            more = f'\n  and {len(differing) - LISTED} more' if len(differing) > LISTED else ''
            raise UserError(f'{path} is of another config; use a new --workdir, or undo these changes:\n  {shown}{more}')
    workdir.mkdir(parents=True, exist_ok=True)
    path.with_suffix('.tmp').write_text(configs.to_json(config) + '\n')
    path.with_suffix('.tmp').replace(path)


class Arriving:
    """Hands a stage the parameters it starts from. It keeps none: a stage that trains all weights can let go of those it started from,
    and one that has to begin again calls again, which loads them.

    Args:
      load: loads them.
      params: those that the stage before has left, if it ran just now.
    """

    def __init__(self, load: Callable[[], Any], params: Any = None):
        self._load, self._params = load, params

    def __call__(self) -> Any:
        params, self._params = self._params, None
        return self._load() if params is None else params


def arriving(run: Run, place: Place, evaluation: Callable | None) -> Any:
    """Parameters as a stage finds them: those of the last stage before it that saved some, else those `config.init` names.

    Where the last checkpoint of that stage is damaged, what followed the one before is done again.
    """
    before = [p for p in places(run.config, run.workdir)[: place.number] if settings(run.config, p).kind in SAVING]
    if before:
        last = before[-1]
        params, meta, step = load_params(last.folder / 'checkpoints', abstract_params(run, last.number))
        finite.check(params, f'stage {last.name}: its checkpoint of step {step}', dtype=run.model.compute_dtype)
        stage = settings(run.config, last)
        clocked = meta.get('clock', {}).get('steps', 0.0)
        whole = step == stage.get('steps', 0) or spent(stage, meta.get('counted', {}).get('num_tokens', 0), clocked)
        return params if whole else _run_stage(run, last, Arriving(functools.partial(arriving, run, last, evaluation)), evaluation)[0]
    return initial(run)


def initial(run: Run) -> Any:
    """Parameters before the first stage: fresh, of a Hugging Face folder, or of another run, its adapters merged.

    Raises:
      UserError: no such folder or run, or a model of another shape.
    """
    init = run.config.init
    if not init:
        return fresh_params(run)
    scheme, _, place = init.partition(':')
    if scheme not in ('checkpoint', 'hf') or not place:
        raise UserError(
            f'config.init="{init}": expected "" (fresh), "hf:FOLDER" (a Hugging Face model), or "checkpoint:WORKDIR", '
            'with ":STAGE" behind it to take that stage.'
        )
    if scheme == 'hf':
        with metrics.Progress('import', 100) as progress:
            return pretrained.load(
                pretrained.read_folder(place), run.model, run.mesh, lambda done, of: progress.update(100 * done // of, {})
            )
    workdir, _, stage = place.partition(':')
    return _fitting(run, *trained(pathlib.Path(workdir), stage))


def _fitting(run: Run, theirs: Run, params: Any) -> Any:
    """Another run's parameters, adapters merged, if they are a model of this run's shape and vocabulary."""
    if theirs.tokenizer.fingerprint() != run.tokenizer.fingerprint():
        raise UserError(
            f'config.init: {theirs.workdir} was trained with another tokenizer ({theirs.config.tokenizer.name}); use the same settings, '
            'or name its vocabulary file in config.tokenizer.path.'
        )
    dense, wanted = jax.jit(merge_tree)(params), abstract_params(run, -1)
    theirs_by_name = {path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(dense)}
    ours_by_name = {path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(wanted)}
    wrong = [
        f'{name}: expected {ours_by_name.get(name, "nothing")}, found {theirs_by_name.get(name, "nothing")}'
        for name in sorted({*ours_by_name, *theirs_by_name})
        if ours_by_name.get(name) != theirs_by_name.get(name)
    ]
    if wrong:
        raise UserError('config.init: the checkpoint is of another model shape (config.model):\n  ' + '\n  '.join(wrong[:LISTED]))
    fitting = jax.tree.map(lambda x, like: jax.device_put(x.astype(like.dtype), like.sharding), dense, wanted)
    finite.check(fitting, f'config.init: {theirs.workdir}, in {run.model.param_dtype}', dtype=run.model.compute_dtype)
    return fitting


class Saved(NamedTuple):
    """A run's parameters as one of its stages saved them."""

    run: Run
    place: Place
    step: int
    params: Any


def saved(workdir: pathlib.Path, stage: str = '', base: pathlib.Path | None = None) -> Saved:
    """Opens a run's workdir and loads the parameters of its last stage that has a checkpoint.

    Args:
      workdir: of the run.
      stage: take this stage's instead; 'STAGE@best' its best checkpoint (`keep_best`), '@best' that of the last stage.
      base: a Hugging Face folder in which the tokenizer is looked for, where its file has moved.

    Raises:
      UserError: no run or no checkpoint there.
    """
    path = workdir / 'config.json'
    if not path.is_file():
        raise UserError(f'{workdir} holds no run (no config.json).')
    config = configs.from_json(path.read_text())
    file = pathlib.Path(config.tokenizer.get('path') or '.').expanduser()
    if base is not None and not file.exists():
        config.tokenizer.path = str(base if config.tokenizer.name == 'huggingface' else base / file.name)
    theirs = open_run(_on_these_devices(configs.complete(config)), workdir, active=False)
    saving = [p for p in places(theirs.config, workdir) if settings(theirs.config, p).kind in SAVING]
    names = [p.name for p in saving]
    stage, _, which = stage.partition('@')
    if which not in ('', 'best'):
        raise UserError(f'"{stage}@{which}": behind a stage only @best is known, the checkpoint that `keep_best` kept.')
    if stage and stage not in names:
        raise UserError(f'{workdir} has no training stage "{stage}".{nearest(stage, names)} Stages: {listing(names)}.')
    found = [p for p in processes.on_main(lambda: [p for p in saving if _has_checkpoint(p)]) if stage in ('', p.name)]
    if not found:
        raise UserError(f'{workdir} holds no checkpoint of {stage or "any stage"} yet.')
    place = found[-1]
    step = _best_step(place) if which else None
    params, _, step = load_params(place.folder / 'checkpoints', abstract_params(theirs, place.number), step=step)
    finite.check(params, f'{workdir}: stage {place.name}, checkpoint of step {step}', dtype=theirs.model.compute_dtype)
    return Saved(theirs, place, step, params)


def _on_these_devices(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config of a run that is only read: where its mesh does not fit the devices, weights are split over all there are."""
    try:
        meshes.make_mesh(config.mesh)
    except UserError:
        config = config.copy_and_resolve_references()
        with config.unlocked():
            config.mesh = dict.fromkeys(meshes.AXES, 1) | {'fsdp': -1}
            config.rollout.mesh = dict.fromkeys(meshes.AXES, 0)
    return config


def _best_step(place: Place) -> int:
    """The step of the checkpoint that is best so far by the stage's `keep_best`."""
    done = place.folder / 'done.json'
    found = json.loads(done.read_text()) if done.is_file() else read_meta(place.folder / 'checkpoints').get('counted', {})
    if not found.get('best'):
        raise UserError(f'stage {place.name} has no best checkpoint: its keep_best names no metric, or nothing has been evaluated yet.')
    return found['best']['step']


def _has_checkpoint(place: Place) -> bool:
    # Only digits: a name with more is a checkpoint that is still being written, or that a kill left half-written.
    return any(path.name.isdigit() for path in (place.folder / 'checkpoints').glob('*'))


def trained(workdir: pathlib.Path, stage: str = '') -> tuple[Run, Any]:
    """The run and the parameters of `saved`."""
    found = saved(workdir, stage)
    return found.run, found.params


def _run_stage(run: Run, place: Place, incoming: Callable[[], Any], evaluation: Callable | None) -> tuple[Any, dict]:
    stage = settings(run.config, place)
    started = time.perf_counter()
    params = None if stage.kind in TRAINING else incoming()
    if stage.kind == 'collect':
        return params, {'name': place.name} | collect.run(run, place, params) | {'seconds': time.perf_counter() - started}
    if stage.kind == 'keep':
        run.writer.resume(place.name, None)
        params, seconds, last, best = keep(run, place, params), 0.0, 0, None
    elif stage.kind in TRAINING:
        train = fused.run if stage.get('on_device') else TRAINING[stage.kind]
        params, seconds, last, best = train(run, place, incoming, evaluation)
    else:
        run.writer.resume(place.name, None)
        seconds, last, best = 0.0, 0, None
    result = {'name': place.name}
    if evaluation is not None:
        started = time.perf_counter()
        found = evaluation(params)
        summary = evaluate.summarise(found)
        measured = evaluate.as_metrics(summary)
        _write_once(run, place, last, measured)
        if stage.get('keep_best'):
            result['best'] = better(best, last, measured, stage, place.name)
        result |= summary | {'examples': evaluate.examples(found)}
        seconds += time.perf_counter() - started
    return params, result | {'seconds': seconds}


def keep(run: Run, place: Place, params: Any) -> Any:
    """A stage that only writes a checkpoint of the parameters as they arrive."""
    finite.check(params, f'stage {place.name}', 'They are not saved.', run.model.compute_dtype)
    with Checkpoints(place.folder / 'checkpoints') as checkpoints:
        checkpoints.save(0, params=params, meta={'stage': place.name, 'model': to_dict(run.model)})
    return params


def _write_once(run: Run, place: Place, step: int, measured: dict) -> None:
    """Writes the record of a final evaluation, unless a run that was killed right after it has done so: no checkpoint follows it."""
    there = metrics.read(run.writer.path) if run.writer.path.is_file() and processes.is_main() else []
    if {'stage': place.name, 'step': step} | measured not in there:
        run.writer.write(place.name, step, measured)


def summary_of(results: list[dict]) -> dict:
    """What `summary.json` holds: per stage its results, and per problem the answers of all stages."""
    stages = [{k: v for k, v in r.items() if k != 'examples'} for r in results]
    shown = [(r['name'], r['examples']) for r in results if 'examples' in r]
    examples = [
        {
            'prompt': first['prompt'],
            'solution': first['solution'],
            'answers': {name: theirs[i]['answer'] for name, theirs in shown},
            'correct': {name: theirs[i]['correct'] for name, theirs in shown},
        }
        for i, first in enumerate(shown[0][1] if shown else [])
    ]
    return {'stages': stages, 'examples': examples}


def show(summary: dict) -> None:
    """Prints the final table, and the first problems as each stage answers them."""
    metrics.table(summary['stages'])
    for example in summary['examples']:
        problem = f'{_excerpt(example["prompt"])}  (solution {_excerpt(example["solution"])})'
        print(printable(f'The same problem, answered by each stage: {problem}'))
        width = max(len(name) for name in example['answers'])
        for name, answer in example['answers'].items():
            print(printable(f'  {name:{width}}  {"right" if example["correct"][name] else "wrong"}  {_excerpt(answer)}'))


def _excerpt(text: Any) -> str:
    """What fits a terminal; the report has all of it."""
    text = str(text)
    return text if len(text) <= SHOWN else f'{text[:SHOWN]} [and {len(text) - SHOWN} characters more]'


def _write_json(path: pathlib.Path, value: dict) -> None:
    temporary = path.with_suffix('.tmp')
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_text(json.dumps(value, indent=2) + '\n')
    temporary.replace(path)
