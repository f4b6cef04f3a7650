"""`import reasonjax`, and the examples that use it."""

import json
import pathlib
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest

import reasonjax
from reasonjax import evaluate
from reasonjax.reporting import report
from reasonjax.training.run import trained

ROOT = pathlib.Path(__file__).parent.parent
EXAMPLES = ROOT / 'examples'
SMALL = {
    'train.steps': 3,
    'train.batch_size': 4,
    'evaluation.task.size': 8,
    'evaluation.samples': 2,
}


@pytest.fixture(scope='module', autouse=True)
def no_drawing():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, 'write', lambda workdir: None)
        yield


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('api') / 'run'
    summary = reasonjax.run(reasonjax.load_config('sft', SMALL, smoke=True), folder)
    assert [stage['name'] for stage in summary['stages']] == ['train']
    return folder


@pytest.fixture(scope='module')
def model(workdir):
    return reasonjax.load_model(workdir)


def test_importing_it_imports_no_jax():
    script = 'import sys, reasonjax; assert "jax" not in sys.modules and "run" in dir(reasonjax); reasonjax.load_config'
    subprocess.run([sys.executable, '-c', script], cwd=ROOT, check=True)
    assert not hasattr(reasonjax, 'load') and set(reasonjax.__all__) <= set(dir(reasonjax))
    # Programs keep their names.
    assert callable(evaluate.main)


def test_overrides_are_those_of_the_command_line():
    config = reasonjax.load_config(
        'grpo',
        {
            'grpo.steps': 7,
            'grpo.advantage.scale_rewards': 'none',
            'stages': ('grpo',),
            'evaluation.enabled': False,
            'seed': 3,
        },
    )
    assert (config.grpo.steps, config.grpo.advantage.scale_rewards, config.stages) == (
        7,
        'none',
        ('grpo',),
    )
    assert config.evaluation.enabled is False and config.seed == 3
    for overrides, words in (
        ({'grpo.step': 7}, 'Did you mean'),
        ({'grpo.steps': 'x'}, 'grpo.steps'),
        ({'grpo.steps': -1}, 'grpo.steps'),
    ):
        with pytest.raises(reasonjax.UserError, match=words):
            reasonjax.load_config('grpo', overrides)


def test_the_model_is_that_of_the_run(workdir, model):
    _, params = trained(workdir)
    assert (model.stage, model.step) == ('train', 3)
    for ours, theirs in zip(jax.tree.leaves(model.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_samples(model):
    prompts = ['12+34=', '5+6=', '12+34=']
    drawn = model.sample(prompts, samples=3, temperature=1.0, seed=4, batch_size=2, max_tokens=5)
    assert [prompt for prompt, _ in drawn] == prompts and all(
        len(answers) == 3 for _, answers in drawn
    )
    assert all(
        len(answer['ids']) == len(answer['logprobs']) <= 5
        for _, answers in drawn
        for answer in answers
    )
    assert drawn == model.sample(
        prompts, samples=3, temperature=1.0, seed=4, batch_size=2, max_tokens=5
    )
    assert drawn != model.sample(
        prompts, samples=3, temperature=1.0, seed=5, batch_size=2, max_tokens=5
    )
    greedy = model.sample(prompts)
    assert greedy[0] == greedy[2]
    for wrong, words in (([], 'there are none'), ('12+34=', 'give a list'), ([''], 'prompt 1')):
        with pytest.raises(reasonjax.UserError, match=words):
            model.sample(wrong)
    with pytest.raises(reasonjax.UserError, match='top_p'):
        model.sample(prompts, top_p=2.0)


def test_scores_are_those_of_the_program(workdir, model, capsys):
    ours = model.evaluate({'task.size': 6, 'samples': 4}, k=(2,))
    arguments = ['--samples', '4', '--k', '2', '--json', '--config.evaluation.task.size=6']
    capsys.readouterr()
    assert evaluate.main(['--workdir', str(workdir), '--skip_selfcheck', *arguments]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(ours))
    assert ours['problems'] == 6 and 'pass@2' in ours
    for wrong, words in (({'samplse': 4}, 'samples'), ({'samples': 1}, 'pass@2')):
        with pytest.raises(reasonjax.UserError, match=words):
            model.evaluate(wrong, k=(2,))


@pytest.mark.parametrize('path', sorted(EXAMPLES.glob('*.py')), ids=lambda path: path.stem)
def test_examples(path, workdir, tmp_path, monkeypatch, capsys):
    assert len(path.read_text().splitlines()) <= 60
    given = {'sample': [str(workdir), '1+2=', '--problems', '4']}.get(
        path.stem, ['--smoke', '--workdir', str(tmp_path / 'run')]
    )
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, 'argv', [str(path), *given])
    runpy.run_path(str(path), run_name='__main__')
    printed = capsys.readouterr().out
    assert {'sft': 'the file says', 'sample': 'at least one of 4 samples'}.get(
        path.stem, '% right'
    ) in printed
