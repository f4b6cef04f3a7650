"""`import reasonjax`, and the examples that use it."""

import dataclasses
import json
import pathlib
import runpy
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

import reasonjax
from reasonjax import evaluate
from reasonjax.reporting import report
from reasonjax.tracking import completion_files
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
    for wrong, words in (([], 'prompts: .*empty'), ('12+34=', 'give a list'), ([''], 'prompt 1')):
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


def test_answers_are_those_of_the_program(workdir, model, tmp_path):
    ours = model.answer_task({'task.size': 6, 'samples': 2})
    file = tmp_path / 'answers.jsonl'
    arguments = ['--samples', '2', '--output', str(file), '--config.evaluation.task.size=6']
    assert evaluate.main(['--workdir', str(workdir), '--skip_selfcheck', *arguments]) == 0
    assert ours == [json.loads(line) for line in file.read_text().splitlines()]
    assert [a['decoding'] for a in ours] == ['greedy'] * 6 + ['sampled'] * 12
    assert sum(a['correct'] for a in ours[:6]) / 6 == model.evaluate({'task.size': 6})['accuracy']
    # They are of the parameters that the model has, which need not be those of the checkpoint.
    zeros = jax.tree.map(np.zeros_like, model.params)
    other = dataclasses.replace(model, params=zeros).answer_task({'task.size': 6, 'samples': 0})
    assert len(other) == 6 and [a['completion'] for a in other] != [
        a['completion'] for a in ours[:6]
    ]
    with pytest.raises(reasonjax.UserError, match='config.evaluation: .*samples=0'):
        model.answer_task({'samples': 0, 'greedy': False})


def test_a_batch_is_what_training_reads(model):
    prompts, completions = ['12+34=', '5+6='], ['#046', '#11']
    batch = model.batch(prompts, completions)
    for i, (prompt, completion) in enumerate(zip(prompts, completions)):
        before, after = (model.tokenizer.encode(text) for text in (prompt, completion))
        ids = [*before, *after, model.tokenizer.eos_ids[0]]
        size = len(ids)
        assert batch['tokens'][i, :size].tolist() == ids
        assert batch['weights'][i].tolist() == [0] * len(before) + [1] * (size - len(before)) + [
            0
        ] * (batch['tokens'].shape[1] - size)
        assert batch['segments'][i].tolist() == [1] * size + [0] * (len(batch['tokens'][i]) - size)
        assert batch['positions'][i, :size].tolist() == list(range(size))
    assert (batch['step_weight'], batch['step_rows'], batch['step_micro']) == (9, 2, 1)
    # Ids stay as they are: no end is put behind them.
    ids = [model.tokenizer.encode(completion) for completion in completions]
    cut = model.batch(prompts, [ids[0], np.array(ids[1])])
    assert cut['step_weight'] == 7
    np.testing.assert_array_equal(cut['tokens'], batch['tokens'][:, :-1].at[1, 7].set(0))


@pytest.mark.parametrize(
    'prompts, completions, words',
    [
        ([], [], 'prompts: .*empty'),
        ('12+34=', ['#046'], 'prompts: expected a list'),
        (['12+34='], '#046', 'completions: expected a list'),
        (['12+34=', '5+6='], ['#046'], '1 for 2 prompts'),
        (['12+34=', '5+6='], ['#046', 'x'], 'prompt 2 and its completion: .*"x"|prompt 2 .*x'),
        ([''], [[1]], 'prompt 1 .*empty'),
        (['5+6='], [[10**6]], 'prompt 1 .*token ids from 0'),
        (['5+6='], [[-1]], 'prompt 1 .*token ids from 0'),
        (['5+6='], [[True]], 'prompt 1 .*token ids from 0'),
        (['5+6='], [[1.5]], 'prompt 1 .*token ids from 0'),
        (['5+6='], [7], 'prompt 1 .*token ids from 0'),
        (['5+6='], [[]], 'prompt 1 '),
        ([[{'role': 'user', 'content': '5+6='}]], ['#11'], 'prompt 1 .*template'),
    ],
)
def test_a_batch_that_cannot_be(model, prompts, completions, words):
    with pytest.raises(reasonjax.UserError, match=words):
        model.batch(prompts, completions)


def test_scores(model):
    [(prompt, [answer])] = model.sample(['12+34='], temperature=1.0, max_tokens=5)
    batch = model.batch([prompt], [answer['ids']])
    drawn = np.asarray(batch['weights'])[0] > 0

    @jax.jit
    def logprobs(params):
        hot = model.score(batch, params, temperature=1e4)
        return model.score(batch, params).logprob[0], hot.logprob[0]

    ours, hot = logprobs(model.params)
    np.testing.assert_allclose(ours[drawn], answer['logprobs'], atol=1e-4)
    even = -np.log(len(model.tokenizer.alphabet) - 1)  # padding is never drawn
    np.testing.assert_allclose(hot[drawn], even, atol=1e-2)
    zeros = jax.tree.map(np.zeros_like, model.params)
    np.testing.assert_allclose(logprobs(zeros)[0][drawn], even, rtol=1e-5)

    def loss(params):
        return -(model.score(batch, params).logprob * batch['weights']).sum()

    grads = jax.tree.leaves(jax.jit(jax.grad(loss))(model.params))
    assert all(np.isfinite(x).all() for x in grads) and any(np.any(x != 0) for x in grads)


def test_what_a_run_wrote(workdir, tmp_path):
    records = reasonjax.read_metrics(workdir)
    assert records == [json.loads(line) for line in (workdir / 'metrics.jsonl').open()]
    assert records == reasonjax.read_metrics(workdir, 'train') != []
    assert reasonjax.read_completions(workdir) == []  # nothing was sampled to train on
    for function in (reasonjax.read_metrics, reasonjax.read_completions):
        with pytest.raises(reasonjax.UserError, match='no stage "trian".* Did you mean "train"'):
            function(workdir, 'trian')
        with pytest.raises(reasonjax.UserError, match=str(tmp_path)):
            function(tmp_path)


def test_completions_in_order(workdir, tmp_path):
    copy = tmp_path / 'run'
    shutil.copytree(workdir, copy)
    rows = {step: [{'prompt': str(i), 'completion': str(step)} for i in (1, 0)] for step in (2, 1)}
    for step, of_step in rows.items():
        completion_files.write(copy / 'completions', 'train', step, of_step)
    completion_files.write(copy / 'completions', 'other', 2, [{'prompt': '', 'completion': ''}])
    # Of five digits and more, so that names do not sort as numbers do.
    completion_files.write(copy / 'completions', 'train', 100_000, rows[1])
    completion_files.write(copy / 'completions', 'train', 99_999, rows[1])
    ours = reasonjax.read_completions(copy, 'train')
    assert [row['step'] for row in ours] == [1, 1, 2, 2, 99_999, 99_999, 100_000, 100_000]
    assert [row['prompt'] for row in ours] == ['1', '0'] * 4
    assert len(reasonjax.read_completions(copy)) == 9
    (copy / 'completions' / 'completions_00001.parquet').write_bytes(b'nothing')
    with pytest.raises(reasonjax.UserError, match='completions_00001.parquet'):
        reasonjax.read_completions(copy)


def test_the_table_of_results(capsys):
    summary = {
        'stages': [{'name': 'train', 'accuracy': 0.5, 'ci95': (0.4, 0.6)}],
        'examples': [
            {
                'prompt': '1+1=',
                'solution': '02',
                'answers': {'train': '#02'},
                'correct': {'train': True},
            }
        ],
    }
    reasonjax.show(summary)
    printed = capsys.readouterr().out
    assert '50.0 % [40.0, 60.0]' in printed and 'right  #02' in printed


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
