"""Every config builds, completes and runs two steps of every stage."""

import json
import pathlib
import runpy
import sys

import numpy as np
import pytest
from small_runs import share_updates

from configs import base
from reasonjax import config as configs
from reasonjax import config_files
from reasonjax.reporting import report
from reasonjax.smoke import shrink
from reasonjax.training.run import run

ROOT = pathlib.Path(__file__).parent.parent


def _all() -> list[str]:
    """Every config file with its variants, which a file names in VARIANTS."""
    found = []
    sys.path.append(str(ROOT))
    for path in sorted([*ROOT.glob('configs/*.py'), *ROOT.glob('configs/recipes/*.py')]):
        variants = runpy.run_path(str(path)).get('VARIANTS', ('',))
        relative = path.relative_to(ROOT)
        found += [f'{relative}:{variant}' if variant else str(relative) for variant in variants]
    return found


# With evaluations, checkpoints on the way, worker processes and the page; the others share that
# code, and go without.
WHOLE = ('configs/quickstart.py', 'configs/hf.py:grpo')


# Rows of a real length take longer than all else; these tasks write prompts of any length.
SHORT = {'sft.data.max_length': '256', 'grpo.data.max_prompt_length': '64'}
LONG = ('configs/device.py', 'configs/plan.py')


@pytest.fixture(scope='module', autouse=True)
def shared_updates():
    """Stages that many configs have alike (the SFT before a GRPO) compile one update."""
    with pytest.MonkeyPatch.context() as patch:
        share_updates(patch)
        yield


def _train_only(config):
    with config.unlocked():
        config.evaluation.enabled = any(config[name].kind == 'evaluate' for name in config.stages)
        for name in set(config.stages):
            config[name].update(
                {key: 0 for key in ('checkpoint_every', 'reward_workers') if key in config[name]}
            )
    return config


@pytest.mark.parametrize('location', _all())
def test_runs_two_steps(location, tmp_path, load_config):
    config = load_config(location)
    if location.startswith(LONG):
        config = load_config(
            location,
            [(key, value) for key, value in SHORT.items() if key.split('.')[0] in config.stages],
        )
    config = shrink(config)
    if location not in WHOLE:
        config = _train_only(config)
    summary = run(config, tmp_path, report=report.write if location in WHOLE else None)
    assert [s['name'] for s in summary['stages']] == list(config.stages)
    records = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    for name in config.stages:
        if config[name].kind in ('supervised', 'online'):
            losses = [r['loss'] for r in records if r['stage'] == name and 'loss' in r]
            assert len(losses) == 2 and np.isfinite(losses).all()
    assert json.loads((tmp_path / 'summary.json').read_text()) == json.loads(json.dumps(summary))
    assert location not in WHOLE or (tmp_path / 'report.html').stat().st_size > 1000


def test_the_configs_that_run_whole_are_there():
    assert set(WHOLE) <= set(_all())


# What makes a method, with values that no config has: a config that leaves one to configs/base.py
# becomes another.
METHOD = {
    'steps': 7,
    'batch_size': 7,
    'num_prompts': 7,
    'num_generations': 7,
    'max_completion_length': 7,
    'temperature': 0.7,
    'num_iterations': 7,
    'minibatches': 7,
    'min_reward': 0.7,
    'objective': {'name': 'left_out'},
    'advantage': {'name': 'left_out'},
    'rewards': {'left_out': {'name': 'left_out'}},
    'learning_rate': {'name': 'left_out'},
    'optimizer': {'name': 'left_out'},
}
# They show the defaults, or how fast a shape is, and no method.
NO_METHOD = ('configs/base.py', 'configs/benchmark.py', 'configs/device.py', 'configs/plan.py')


@pytest.mark.parametrize('location', [one for one in _all() if not one.startswith(NO_METHOD)])
def test_what_makes_the_method_is_spelled_out(location, monkeypatch):
    monkeypatch.chdir(ROOT)
    written = configs.to_json(configs.load(location))

    def otherwise(make):
        def stage(c):
            result = make(c)
            for key in set(METHOD) & set(result):
                result[key] = METHOD[key]
            return result

        return stage

    for kind in ('supervised', 'online', 'collect'):
        monkeypatch.setattr(base, kind, otherwise(getattr(base, kind)))
    assert configs.to_json(configs.load(location)) == written


def test_every_recipe_says_what_it_is():
    recipes = sorted((ROOT / 'configs' / 'recipes').glob('*.py'))
    assert recipes
    for path in recipes:
        docstring = path.read_text().split('"""')[1]
        for word in ('arXiv', 'python -m reasonjax.train', path.stem):
            assert word in docstring, f'{path.name}: docstring lacks {word}'


def test_models_have_the_published_size():
    from reasonjax.model import config as model_config
    from reasonjax.model import spec

    sizes = {
        'tiny': 18,
        'qwen3_0_6b': 596_049_920,
        'qwen3_1_7b': 1_720_574_976,
        'qwen3_8b': 8_190_735_360,
    }
    sizes |= {'qwen3_32b': 32_762_123_264, 'llama3_70b': 70_553_706_496}
    for name in sorted(p.stem for p in (ROOT / 'configs' / 'models').glob('*.py')):
        module = config_files.get_config(ROOT / 'configs' / 'models' / f'{name}.py', '')
        model = model_config.from_config(module, vocab_size=18, pad_id=0)
        counted = spec.count(spec.specs(model))
        assert counted == (335_904 if name == 'tiny' else sizes[name])
