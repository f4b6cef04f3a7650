"""docs/METHODS.md: the method it writes can be pasted, passes its own tests, equals its parent when
switched off, and is what the runs of the page train with."""

import contextlib
import pathlib
import re
import shutil
import sys
import types
from collections.abc import Iterator

import jax
import numpy as np
import pytest
import test_configs

import reasonjax
from reasonjax.methods import objectives
from reasonjax.reporting import report

ROOT = pathlib.Path(__file__).parent.parent
PAGE = (ROOT / 'docs' / 'METHODS.md').read_text(encoding='utf-8')
FILES = dict(re.findall(r'Save\s+as `([^`]+)`:\n\n```python\n(.*?)```', PAGE, re.DOTALL))
FUNCTION = 'reasonjax/methods/objectives/truncation.py'
RECIPE = 'configs/loss_truncation.py'
TEST = 'tests/methods/test_truncation.py'
# Two steps of a tiny model a stage.
SMALL = {'evaluation.enabled': False, 'sft.checkpoint_every': 0, 'truncated.checkpoint_every': 0}


def execute(source: str, name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    exec(compile(source, name, 'exec'), module.__dict__)
    return module


@contextlib.contextmanager
def pasted(source: str) -> Iterator[None]:
    """The page's function is where the page says, and exported."""
    name = FUNCTION.removesuffix('.py').replace('/', '.')
    module = execute(source, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, name, module)
        patch.setattr(objectives, 'truncated_nll', module.truncated_nll, raising=False)
        patch.setattr(objectives, '__all__', [*objectives.__all__, 'truncated_nll'])
        yield


@pytest.fixture(scope='module')
def recipe(tmp_path_factory):
    """The page's recipe as a file."""
    path = tmp_path_factory.mktemp('recipe') / pathlib.Path(RECIPE).name
    path.write_text(FILES[RECIPE])
    with pasted(FILES[FUNCTION]):
        yield str(path)


@pytest.fixture(scope='module')
def runs(recipe, tmp_path_factory):
    """A folder with three runs of the recipe: as it is, switched off, and as its parent."""
    folder = tmp_path_factory.mktemp('page')
    stated = execute(FILES[RECIPE], 'recipe').NEUTRAL
    sides = {'truncated_0': {}, 'control_0': stated['neutral'], 'parent': stated['parent']}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, 'write', lambda workdir: None)
        for side, overrides in sides.items():
            config = reasonjax.load_config(recipe, overrides | SMALL, smoke=True)
            reasonjax.run(config, folder / 'runs' / side)
    return folder / 'runs'


def run_tests(module: types.ModuleType) -> int:
    """Calls the tests of a module, with each parameter; returns how many there were."""
    number = 0
    for name, test in vars(module).copy().items():
        if name.startswith('test_'):
            marks = getattr(test, 'pytestmark', [])
            for arguments in [(value,) for value in marks[0].args[1]] if marks else [()]:
                test(*arguments)
                number += 1
    return number


def test_the_page_has_the_files_it_names():
    assert set(FILES) == {FUNCTION, RECIPE, TEST}
    assert not [path for path in FILES if (ROOT / path).exists()]  # pasting would overwrite it


def test_the_pages_own_tests_pass():
    with pasted(FILES[FUNCTION]):
        assert run_tests(execute(FILES[TEST], 'page_tests')) == 4


@pytest.mark.parametrize(
    'before, after',
    [
        ('loss_D <= limit', 'loss_D >= limit'),
        (', 1 - drop)', ', drop)'),
        ('jnp.where(weight_D > 0, loss_D, jnp.nan)', 'loss_D'),  # padding counts as a document
        ("batch['segments'] +", "jnp.sign(batch['segments']) +"),  # rows in place of documents
        ('return nll(score, batch, key)', 'return 2 * nll(score, batch, key)[0], {}'),
    ],
)
def test_the_pages_own_tests_can_fail(before, after):
    assert FILES[FUNCTION].count(before) == 1
    with pasted(FILES[FUNCTION].replace(before, after)), pytest.raises(AssertionError):
        run_tests(execute(FILES[TEST], 'page_tests'))


def test_the_export_is_the_folders_with_one_more():
    [block] = re.findall(r'then ends with\n\n```python\n(.*?)```', PAGE, re.DOTALL)
    source = pathlib.Path(objectives.__file__).read_text(encoding='utf-8')
    ours, theirs = set(block.splitlines()), set(source[source.index('from ') :].splitlines())
    assert not [line for line in theirs - ours if not line.startswith('__all__')]
    [names] = re.findall(r'__all__ = \[(.*)\]', block)
    assert set(re.findall(r"'(\w+)'", names)) == {*objectives.__all__, 'truncated_nll'}


def test_switched_off_it_is_its_parent(runs):
    def measured(side):
        records = reasonjax.read_metrics(runs / side)
        return [
            {
                name: value
                for name, value in record.items()
                if name not in ('step_time', 'tokens_per_second') and not name.startswith('time/')
            }
            for record in records
        ]

    assert measured('control_0') == measured('parent')
    assert len(measured('parent')) == 4
    on, off, parent = (
        jax.tree.leaves(reasonjax.load_model(runs / side).params)
        for side in ('truncated_0', 'control_0', 'parent')
    )
    for ours, theirs in zip(off, parent, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert any(np.any(a != b) for a, b in zip(on, parent, strict=True))
    kept = [r['kept_tokens'] for r in reasonjax.read_metrics(runs / 'truncated_0', 'truncated')]
    assert len(kept) == 2 and all(0 < share < 1 for share in kept)


def test_the_commands_set_what_the_recipe_has(recipe):
    given = re.findall(r'--config\.([\w.]+)=(\S+)', PAGE.split('## 4. The run')[1])
    assert {key for key, _ in given} == {'seed', 'truncated.objective.drop'}
    overrides = {key: value.replace('$seed', '3') for key, value in given}
    config = reasonjax.load_config(recipe, overrides)
    assert (config.seed, config.truncated.objective.drop) == (3, 0.0)
    # One seed decides the data of both stages.
    assert [config[stage].data.source.seed for stage in config.stages] == [3, 3]


def test_the_recipe_passes_the_test_of_all_recipes(recipe, monkeypatch):
    test_configs.test_what_makes_the_method_is_spelled_out(recipe, monkeypatch)


def test_the_comparison_runs(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs.parent)
    for arm in ('truncated', 'control'):
        for seed in (1, 2):  # how runs differ is not the matter here
            shutil.copytree(runs / f'{arm}_0', runs / f'{arm}_{seed}')
    [block] = re.findall(r'Then the comparison:\n\n```python\n(.*?)```', PAGE, re.DOTALL)
    exec(compile(block, 'comparison', 'exec'), {})
    printed = capsys.readouterr().out
    assert 'truncated [' in printed and 'control [' in printed and 'Paired(mean=' in printed
