"""Small configs for tests of whole runs, what a run left behind, and crashes at chosen points."""

import contextlib
import itertools
import json
import pathlib

import jax
import orbax.checkpoint as ocp
import pyarrow.parquet as pq
import pytest

from reasonjax.smoke import shrink
from reasonjax.tracking import metrics
from reasonjax.training import load_config, loop, step

ROOT = pathlib.Path(__file__).parents[1]

# Uneven rewards for an untrained model: what group advantages need in order to differ from zero.
REWARDS = """
def digits(prompts, completions, **kwargs):
    return [sum(map(str.isdigit, text)) + 0.1 * len(text) for text in completions]
"""


def small(location: str, **overrides):
    """A shrunk config; `train__steps=3` sets `train.steps`. A stage saves at its end only, unless
    asked: to write a checkpoint takes longer than a step."""
    pairs = [(key.replace('__', '.'), str(value)) for key, value in overrides.items()]
    config = load_config.load(str(ROOT / location), pairs)
    given = [pair for pair in pairs if not pair[0].endswith('.name')]
    at_the_end = [
        (f'{name}.checkpoint_every', '0')
        for name in sorted({*config.stages} & {*config.keys()})
        if 'checkpoint_every' in config[name]
    ]
    return shrink(config, at_the_end + given)


def quiet(location: str, **overrides):
    """The same without evaluations."""
    return small(location, evaluation__enabled=False, **overrides)


def install_rewards(folder: pathlib.Path, monkeypatch) -> None:
    """Makes the module `toy_rewards` importable, here and in worker processes."""
    (folder / 'toy_rewards.py').write_text(REWARDS)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv('PYTHONPATH', f'{folder}:{ROOT}')


def records(workdir: pathlib.Path, stage: str | None = None) -> list[dict]:
    """The records of a run (of one stage), without what a clock decides."""
    clocked = ('step_time', 'tokens_per_second')
    found = [r for r in metrics.read(workdir / 'metrics.jsonl') if stage in (None, r['stage'])]
    return [
        {k: v for k, v in r.items() if k not in clocked and not k.startswith('time/')}
        for r in found
    ]


def steps(workdir: pathlib.Path, stage: str) -> list[dict]:
    """The records of training steps, evaluations left out."""
    return [r for r in records(workdir, stage) if 'loss' in r]


def left_behind(workdir: pathlib.Path) -> dict:
    """All that a run leaves for its user, without what a clock decides."""
    summary = json.loads((workdir / 'summary.json').read_text())
    for stage in summary['stages']:
        stage.pop('seconds')
    tables = {
        path.name: pq.read_table(path).to_pylist()
        for path in sorted((workdir / 'completions').glob('*'))
    }
    data = {
        path.parent.name: path.read_text()
        for path in sorted(workdir.glob('stages/*/dataset.jsonl'))
    }
    return {
        'metrics': records(workdir),
        'summary': summary,
        'completions': tables,
        'datasets': data,
    }


def checkpoints(workdir: pathlib.Path) -> dict:
    """Every checkpoint of a run, in full: parameters, optimiser, position in the data, counters."""
    found = {}
    for path in sorted(workdir.glob('stages/*/checkpoints/*')):
        record = json.loads((path / 'meta' / 'metadata').read_text())
        record['meta'].pop('clock')
        with ocp.StandardCheckpointer() as reader:
            arrays = {part: reader.restore(path / part) for part in ('params', 'train')}
        found[f'{path.parent.parent.name}/{path.name}'] = (arrays, record)
    return found


SHAPING = (
    'objective',
    'corruption',
    'optimizer',
    'learning_rate',
    'accumulation',
    'spike_zscore',
    'spike_window',
)
compile_update, create_state = loop.compile_update, loop.create_state
compile_fresh = step.compile_fresh
_UPDATES: dict = {}
_FRESH: dict = {}


def share_updates(patch: pytest.MonkeyPatch) -> None:
    """Stages of the same settings share one compiled update and one compiled start: to trace them
    takes longer than the few steps of a test."""

    def start(run, settings, optimizer, params):
        knobs = json.dumps(settings.optimizer.to_dict(), sort_keys=True)

        def fresh(optimizer, homes, spike_window):
            key = (knobs, jax.tree.structure(homes), *jax.tree.leaves(homes), spike_window)
            if key not in _FRESH:
                _FRESH[key] = compile_fresh(optimizer, homes, spike_window)
            return _FRESH[key]

        with pytest.MonkeyPatch.context() as within:
            within.setattr(step, 'compile_fresh', fresh)
            return create_state(run, settings, optimizer, params)

    def shared(run, stage, source, optimizer, state, updates):
        if source.on_device is not None:  # it closes over the prompts of its run
            return compile_update(run, stage, source, optimizer, state, updates)
        settings = json.dumps(
            {name: stage.config[name] for name in SHAPING},
            default=lambda group: group.to_dict(),
            sort_keys=True,
        )
        length = (
            None
            if (stage.config.learning_rate.name, stage.config.corruption.name)
            == ('constant', 'none')
            else updates
        )
        ids = (run.tokenizer.pad_id, run.tokenizer.mask_id, run.tokenizer.vocab_size)
        form = (
            jax.tree.structure(state),
            *((x.shape, x.dtype, x.sharding) for x in jax.tree.leaves(state)),
        )
        key = (
            run.model,
            run.mesh,
            settings,
            length,
            ids,
            source.together,
            source.temperature,
            form,
        )
        if key not in _UPDATES:
            _UPDATES[key] = compile_update(run, stage, source, optimizer, state, updates)
        return _UPDATES[key]

    patch.setattr(loop, 'compile_update', shared)
    patch.setattr(loop, 'create_state', start)


class Crash(Exception):
    """What the tests raise where a real run would die."""


def _planted(real, call: int, after: bool):
    calls = itertools.count(1)

    def function(*arguments, **options):
        number = next(calls)
        if number == call and not after:
            raise Crash
        result = real(*arguments, **options)
        if number == call:
            raise Crash
        return result

    return function


@contextlib.contextmanager
def crash(owner, name: str, call: int = 1, *, after: bool = False):
    """Within it, call number `call` of `owner.name` raises, before or after it has done its work;
    it has to be reached."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        patch.setattr(owner, name, _planted(getattr(owner, name), call, after))
        yield


@contextlib.contextmanager
def crash_in_update(call: int):
    """Within it, optimiser update number `call` of a stage raises."""
    compile_ = loop.compile_update
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        patch.setattr(
            loop, 'compile_update', lambda *arguments: _planted(compile_(*arguments), call, False)
        )
        yield
