"""The programs as their user sees them: help, errors on one line, what is printed and what is
written."""

import io
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from small_runs import ROOT, install_rewards, quiet

from reasonjax import evaluate, programs, sample, selfcheck, train
from reasonjax.model.score import score
from reasonjax.programs import load_config
from reasonjax.reporting import report
from reasonjax.training.run import run, trained

QUICK = '--skip_selfcheck'
SMALL = ['--smoke', QUICK, '--config.train.steps=1', '--config.evaluation.enabled=false']


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    """A finished run of two stages, on addition."""
    folder = tmp_path_factory.mktemp('programs') / 'run'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, 'write', lambda workdir: None)
        install_rewards(folder.parent, patch)
        run(
            quiet(
                'configs/grpo.py',
                warmup__learning_rate__peak=0.03,
                grpo__learning_rate__peak=0.03,
                grpo__reward_workers=0,
                grpo__rewards__accuracy__name='toy_rewards.digits',
            ),
            folder,
        )
    return folder


def called(program, capsys, *arguments):
    """Returns (status, standard output, standard error) of a program."""
    try:
        status = program.main([str(argument) for argument in arguments])
    except SystemExit as leaving:
        status = leaving.code
    return status, *capsys.readouterr()


def test_a_cpu_can_be_several_devices():
    call = 'start(True, argparse.Namespace(cpu_devices=3))'
    code = f'import argparse, jax\nfrom reasonjax.programs import start\n{call}\nprint(jax.device_count())'
    environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'} | {
        'JAX_PLATFORMS': 'cpu'
    }
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.stdout == '3\n', done.stderr


@pytest.mark.parametrize(
    'number, message',
    [(-1, 'must be from 0 to 4096; nearest: 0'), (10**30, 'nearest: 4096'), (2, 'before')],
)
def test_devices_of_a_cpu_are_refused_in_one_line(number, message, capsys, workdir):
    jax.devices()  # in use from here on
    status, _, error = called(
        sample, capsys, '--workdir', workdir, QUICK, f'--cpu_devices={number}'
    )
    assert (
        status == 2 and error.startswith('error: ') and message in error and error.count('\n') == 1
    )
    assert f'--cpu_devices={number}: ' in error or f'--cpu_devices: {number}: ' in error


def test_devices_of_a_cpu_are_refused_on_another_backend(capsys, monkeypatch, workdir):
    monkeypatch.setattr(programs, 'split_cpu', lambda number: None)
    monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
    status, _, error = called(sample, capsys, '--workdir', workdir, QUICK, '--cpu_devices=2')
    assert (
        status == 2
        and '--cpu_devices=2' in error
        and '"gpu"' in error
        and 'JAX_PLATFORMS=cpu' in error
    )


@pytest.mark.parametrize(
    ('program', 'words'),
    [
        (
            train,
            [
                '--config',
                '--workdir',
                '--smoke',
                '--skip_selfcheck',
                'configs/quickstart.py',
                '--config.sft.steps=10',
                'same command again',
                'report.html',
                'summary.json',
                'metrics.jsonl',
            ],
        ),
        (
            sample,
            [
                '--workdir',
                '--stage',
                '--file',
                '--samples',
                '--temperature',
                '--top_k',
                '--top_p',
                '--min_p',
                '--logprobs',
                '--jsonl',
                '--seed',
                'standard input',
                'greedy',
            ],
        ),
        (
            evaluate,
            [
                '--workdir',
                '--stage',
                '--samples',
                '--k',
                '--output',
                '--json',
                'pass@k',
                'maj@k',
                '95 %',
                'strict',
                'flexible',
                '--config.evaluation.',
            ],
        ),
    ],
)
def test_help(program, words, capsys):
    status, printed, errors = called(program, capsys, '--help')
    assert status == 0 and not errors
    for word in words:
        assert word in ' '.join(printed.split()), word


def test_help_of_a_fresh_process():
    found = subprocess.run(
        [sys.executable, '-m', 'reasonjax.train', '--help'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0 and 'usage: python -m reasonjax.train' in found.stdout


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (
            ['--config', 'configs/quickstrat.py'],
            ['no file configs/quickstrat.py', 'Did you mean "configs/quickstart.py"?'],
        ),
        (['--config', 'configs/base.py:x'], ['configs/base.py:x']),
        (
            ['--config', 'configs/base.py', '--config.train.stesp=3'],
            ['--config.train.stesp', 'no key "stesp"', 'Did you mean "steps"?'],
        ),
        (
            ['--config', 'configs/base.py', '--config.train.steps=many'],
            ['--config.train.steps=many', 'expected int', 'now 500'],
        ),
        (['--config', 'configs/base.py', '--config.train=3'], ['--config.train', 'group of keys']),
        (
            ['--config', 'configs/base.py', '--config.train.objective.name=nil'],
            ['config.train.objective.name', 'Did you mean "nll"?'],
        ),
        (
            ['--config', 'configs/grpo.py', '--config.grpo.objective.epsilom=1'],
            ['grpo.objective.epsilom', 'Did you mean "epsilon"?'],
        ),
        (
            ['--config', 'configs/base.py', '--config.stages=trian'],
            ['config.stages', 'Did you mean "train"?'],
        ),
        (
            ['--config', 'configs/base.py', '--config.train.data.source.name=jsonl'],
            ['config.train.data.source.path', 'needs this knob'],
        ),
        (
            [
                '--config',
                'configs/base.py',
                '--config.train.data.source.name=jsonl',
                '--config.train.data.source.path=no.jsonl',
                '--config.evaluation.enabled=false',
            ],
            ['no file, folder or match for no.jsonl'],
        ),
    ],
)
@pytest.mark.parametrize('smoke', [[], ['--smoke']])
def test_mistakes_are_named_without_a_traceback(
    arguments, words, smoke, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(ROOT)
    status, printed, errors = called(
        train, capsys, *arguments, *smoke, QUICK, '--workdir', tmp_path
    )
    assert status == 2 and not printed
    assert errors.startswith('error: ') and len(errors.splitlines()) == 1, errors
    for word in words:
        assert word in errors


@pytest.mark.parametrize(
    ('program', 'arguments', 'words'),
    [
        (train, [], ['--config']),
        (train, ['--config', 'configs/base.py', '--sмoke'], ['unrecognized arguments']),
        (
            train,
            ['--config', 'configs/base.py', '--config.train.steps'],
            ['--config.train.steps: no value given'],
        ),
        (sample, ['1+1='], ['--workdir']),
        (evaluate, ['--k', '1'], ['--workdir']),
    ],
)
def test_wrong_arguments_show_the_usage(program, arguments, words, capsys):
    status, printed, errors = called(program, capsys, *arguments)
    assert status == 2 and not printed and errors.startswith('usage: python -m reasonjax.')
    for word in words:
        assert word in errors


def test_train_prints_the_table_and_one_problem_of_all_stages(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    folder = tmp_path / 'run'
    status, printed, errors = called(
        train,
        capsys,
        '--config',
        'configs/quickstart.py:worked_only',
        '--smoke',
        '--workdir',
        folder,
        '--config.sft.steps',
        '1',
        '--config.evaluation.task.size=4',
        '--config.evaluation.samples',
        '0',
    )
    assert status == 0, errors
    table = [line for line in printed.splitlines() if '%' in line]
    assert 'greedy [95 %]' in table[0] and [line.split()[0] for line in table[1:]] == [
        'fresh',
        'sft',
    ]
    summary = json.loads((folder / 'summary.json').read_text())
    assert [s['name'] for s in summary['stages']] == ['fresh', 'sft']
    assert {'accuracy', 'ci95', 'mean_length', 'problems', 'seconds'} <= summary['stages'][1].keys()
    shown = printed[printed.index('The same problem') :]
    assert (
        summary['examples'][0]['prompt'] in shown
        and '\n  fresh  ' in shown
        and '\n  sft    ' in shown
    )
    assert f'{folder}/report.html' in shown
    config = json.loads((folder / 'config.json').read_text())
    assert (
        config['sft']['steps'],
        config['model']['layers'],
        config['evaluation']['task']['size'],
    ) == (1, 1, 4)


def test_smoke_lets_overrides_have_their_way(monkeypatch):
    """Functions bring their own knobs, and what is shared in the config stays shared."""
    monkeypatch.chdir(ROOT)
    overrides = [
        ('train.learning_rate.name', 'constant'),
        ('train.learning_rate.peak', '0.5'),
        ('train.steps', '7'),
        ('seed', '3'),
    ]
    config, name = load_config('configs/base.py', overrides, True)
    assert name == 'base_smoke'
    assert (
        config.train.learning_rate.name,
        config.train.learning_rate.peak,
        config.train.steps,
    ) == ('constant', 0.5, 7)
    assert 'final_fraction' not in config.train.learning_rate
    assert config.seed == config.train.data.source.seed == 3
    assert config.model.layers == 1
    config, name = load_config(
        'configs/gsm8k.py:masked_thought', [('data.path', 'elsewhere')], True
    )
    assert name == 'gsm8k_masked_thought_smoke'
    assert config.sft.data.source.path == config.evaluation.task.path == 'elsewhere'


def test_smoke_keeps_lists_that_overrides_set(monkeypatch):
    """A list of functions is set once: its entries are resolved by then."""
    monkeypatch.chdir(ROOT)
    overrides = [
        ('train.data.transforms', "({'name': 'static_noise', 'intensity': 0.25},)"),
        ('stages', "('train',)"),
        ('train.steps', '1'),
    ]
    config, _ = load_config('configs/base.py', overrides, True)
    (noise,) = config.train.data.transforms
    assert (noise.name, noise.intensity) == ('static_noise', 0.25) and config.train.steps == 1


def failing():
    raise selfcheck.BackendError(
        'jaxlib 9 computes wrong numbers; run with --skip_selfcheck to continue'
    )


def test_a_backend_that_miscomputes_is_refused(capsys, tmp_path, monkeypatch, workdir):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(selfcheck, 'check', failing)
    for program, arguments in [
        (train, ['--config', 'configs/base.py', '--workdir', tmp_path / 'x', '--smoke']),
        (sample, ['--workdir', workdir, '12+34=']),
        (evaluate, ['--workdir', workdir]),
    ]:
        status, printed, errors = called(program, capsys, *arguments)
        assert status == 2 and not printed
        assert (
            errors.startswith('error: jaxlib 9 computes wrong numbers')
            and '--skip_selfcheck' in errors
        )
    assert not (tmp_path / 'x').exists()
    status, printed, _ = called(
        sample, capsys, '--workdir', workdir, QUICK, '--max_tokens', 3, '12+34='
    )
    assert status == 0 and printed.startswith('12+34=')


def sampled(capsys, workdir, *arguments):
    """The completions of `sample --jsonl`."""
    status, printed, errors = called(
        sample, capsys, '--workdir', workdir, QUICK, '--max_tokens', 6, '--jsonl', *arguments
    )
    assert status == 0, errors
    return [json.loads(line) for line in printed.splitlines()]


def test_prompts_come_from_arguments_a_file_or_standard_input(
    capsys, workdir, tmp_path, monkeypatch
):
    given = sampled(capsys, workdir, '12+34=', '5+6=')
    assert [line['prompt'] for line in given] == ['12+34=', '5+6='] and all(
        {'text', 'terminated'} <= line.keys() for line in given
    )
    assert sampled(capsys, workdir, '12+34=', '5+6=') == given  # greedy: the same again
    (tmp_path / 'prompts.txt').write_text('12+34=\n\n5+6=\n')
    assert sampled(capsys, workdir, '--file', tmp_path / 'prompts.txt') == given
    (tmp_path / 'prompts.jsonl').write_text('{"prompt": "12+34=", "more": 1}\n{"prompt": "5+6="}\n')
    assert sampled(capsys, workdir, '--file', tmp_path / 'prompts.jsonl') == given
    monkeypatch.setattr('sys.stdin', io.TextIOWrapper(io.BytesIO(b'12+34=\n\n5+6=\n')))
    assert sampled(capsys, workdir) == given
    # The batch size changes what is compiled, not what comes out.
    assert sampled(capsys, workdir, '--batch_size', 1, '12+34=', '5+6=') == given


def test_logprobs_are_the_models(capsys, workdir):
    """Sums and single values, for greedy decoding (temperature 1) and at a temperature."""
    of_run, params = trained(workdir)
    prompt = '12+34='
    head = of_run.tokenizer.encode(prompt)
    for temperature in (0.0, 0.7):
        found = sampled(
            capsys,
            workdir,
            '--logprobs',
            '--samples',
            3,
            '--temperature',
            temperature,
            '--seed',
            5,
            prompt,
        )
        assert len(found) == 3 and (len({line['text'] for line in found}) > 1) == (temperature > 0)
        scored = jax.jit(
            lambda params, batch, t=temperature: score(
                params, of_run.model, batch, temperature=t or 1.0
            )
        )
        for line in found:
            ids = np.array([(head + line['ids'] + [of_run.tokenizer.pad_id] * 12)[:12]], np.int32)
            real = (np.arange(12) < len(head) + len(line['ids']))[None]
            batch = {
                'tokens': ids,
                'segments': real.astype(np.int32),
                'positions': np.arange(12, dtype=np.int32)[None],
            }
            logprob = np.asarray(
                scored(params, batch | {'weights': real.astype(np.float32)}).logprob
            )[0, len(head) :][: len(line['ids'])]
            np.testing.assert_allclose(line['logprobs'], logprob, atol=2e-5)
            np.testing.assert_allclose(line['logprob'], logprob.sum(), atol=1e-4)
            assert ''.join(line['tokens']) == line['text']


def test_printed_completions(capsys, workdir):
    arguments = [
        '--workdir',
        workdir,
        QUICK,
        '--max_tokens',
        4,
        '--samples',
        2,
        '--temperature',
        1,
        '--logprobs',
        '12+34=',
    ]
    status, printed, _ = called(sample, capsys, *arguments)
    assert status == 0
    lines = printed.splitlines()
    assert (
        sum(line.startswith('12+34=') for line in lines) == 2
        and sum(line.startswith('  log p = -') for line in lines) == 2
    )
    assert called(sample, capsys, *arguments)[1] == printed
    assert called(sample, capsys, *arguments, '--seed', 1)[1] != printed


def test_a_stage_can_be_chosen(capsys, workdir):
    choices = ([], ['--stage', 'grpo'], ['--stage', 'warmup'])
    last, named, first = (
        sampled(capsys, workdir, '--logprobs', *stage, '12+34=') for stage in choices
    )
    assert last == named and first[0]['logprob'] != last[0]['logprob']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--workdir', '{tmp}', 'x'], 'holds no run (no config.json)'),
        (
            ['--workdir', '{run}', '--stage', 'gpro', '1+1='],
            'no training stage "gpro". Did you mean "grpo"?',
        ),
        (['--workdir', '{run}', '--file', '{tmp}/no.txt'], 'no file {tmp}/no.txt'),
        (
            ['--workdir', '{run}', '--file', '{tmp}/bad.jsonl'],
            '{tmp}/bad.jsonl:2: no column "prompt"',
        ),
        (['--workdir', '{run}', '--file', '{tmp}/empty.txt'], 'no prompts'),
        (['--workdir', '{run}', '--file', '{tmp}/empty.txt', '1+1='], 'give one of them'),
        (
            ['--workdir', '{run}', '--temperature', '-1', '1+1='],
            '--temperature: -1: must be 0 or from 0.0001 to 10000; nearest: 0.',
        ),
        (
            ['--workdir', '{run}', '--samples', '0', '1+1='],
            '--samples: 0: must be at least 1; nearest: 1.',
        ),
        (
            ['--workdir', '{run}', '--samples', 'two', '1+1='],
            '--samples: two: must be a whole number, at least 1.',
        ),
        (['--workdir', '{run}', '--batch_size', '0', '1+1='], 'batch_size'),
        (['--workdir', '{run}', '1+1=', 'what?'], "'what?'"),
    ],
)
def test_sample_mistakes(arguments, message, capsys, workdir, tmp_path):
    (tmp_path / 'bad.jsonl').write_text('{"prompt": "1+1="}\n{"question": "1+1="}\n')
    (tmp_path / 'empty.txt').write_text('\n')
    names = {'tmp': str(tmp_path), 'run': str(workdir)}
    status, printed, errors = called(sample, capsys, QUICK, *(a.format(**names) for a in arguments))
    assert (
        status == 2 and not printed and errors.startswith('error: ') and 'Traceback' not in errors
    )
    assert message.format(**names) in errors


def test_a_half_written_checkpoint_is_passed_over(capsys, workdir, tmp_path):
    """A stage that was killed in its first save: what the stage before has learnt can still be
    used."""
    import shutil

    shutil.copytree(workdir, tmp_path / 'run')
    folder = tmp_path / 'run' / 'stages' / '01_grpo' / 'checkpoints'
    (folder / '2').rename(folder / '2.orbax-checkpoint-tmp')
    assert sampled(capsys, tmp_path / 'run', '12+34=') == sampled(
        capsys, workdir, '--stage', 'warmup', '12+34='
    )


def test_evaluate_prints_json_and_writes_answers(capsys, workdir, tmp_path):
    arguments = [
        '--workdir',
        workdir,
        QUICK,
        '--samples',
        4,
        '--k',
        '1,2,4',
        '--output',
        tmp_path / 'answers.jsonl',
    ]
    settings = ['--config.evaluation.task.size=6', '--config.evaluation.task.levels', '(2,)']
    status, printed, errors = called(evaluate, capsys, *arguments, '--json', *settings)
    assert status == 0, errors
    result = json.loads(printed)
    assert (
        result['problems'] == 6
        and {f'{name}@{k}' for name in ('pass', 'maj') for k in (1, 2, 4)} <= result.keys()
    )
    answers = [json.loads(line) for line in (tmp_path / 'answers.jsonl').read_text().splitlines()]
    assert [a['decoding'] for a in answers] == ['greedy'] * 6 + ['sampled'] * 24
    assert np.mean([a['correct'] for a in answers[6:]]) == pytest.approx(result['pass@1'])
    assert all(len(a['prompt']) == 6 for a in answers)
    status, table, _ = called(evaluate, capsys, *arguments, *settings)
    assert status == 0 and 'addition' in table and '6 problems' in table
    for row in (
        'greedy accuracy',
        'sampled accuracy',
        'pass@4',
        'maj@2',
        'mean length',
        'cut at the limit',
    ):
        assert row in table


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--k', '4', '--samples', '2'], '--k=4: pass@4 needs --samples 4 or more, there are 2'),
        (['--k', '2', '--samples', '0'], '--k=2: pass@2 needs --samples 2 or more, there are 0'),
        (['--k', 'all'], '--k="all": must be a whole number, at least 1'),
        (['--samples', '-1'], 'argument --samples: -1: must be at least 0; nearest: 0.'),
        (['--samples', '0', '--config.evaluation.greedy=false'], 'greedy=False'),
        (['--config.train.steps=3'], 'only config.evaluation can be set here'),
        (['--config.evaluation.task.sise=3'], 'Did you mean "size"?'),
        (['--stage', 'sft'], 'no training stage "sft"'),
    ],
)
def test_evaluate_mistakes(arguments, message, capsys, workdir):
    status, printed, errors = called(
        evaluate, capsys, '--workdir', workdir, QUICK, *arguments, '--config.evaluation.task.size=2'
    )
    assert status == 2 and not printed and errors.startswith('error: '), errors
    assert message in errors and len(errors.splitlines()) == 1


def test_strict_and_flexible_on_word_problems(capsys, tmp_path, monkeypatch):
    """From files of two columns to a table with both readings, by the programs alone."""
    monkeypatch.chdir(ROOT)
    folder = tmp_path / 'data'
    folder.mkdir()
    for split, number in (('train', 30), ('test', 5)):
        rows = [
            {
                'question': f'Tom has {i} apples and buys {i + 1} more. How many?',
                'answer': f'{i}+{i + 1}=<<{i}+{i + 1}={2 * i + 1}>>{2 * i + 1}\n#### {2 * i + 1}',
            }
            for i in range(number)
        ]
        (folder / f'{split}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    status, _, errors = called(
        train,
        capsys,
        '--config',
        'configs/gsm8k.py',
        '--smoke',
        QUICK,
        '--workdir',
        tmp_path / 'run',
        f'--config.data.path={folder}',
        '--config.tokenizer.vocab_size=320',
        '--config.sft.data.max_length=128',
        '--config.evaluation.enabled=false',
    )
    assert status == 0, errors
    status, printed, errors = called(
        evaluate, capsys, '--workdir', tmp_path / 'run', QUICK, '--samples', 2
    )
    assert status == 0 and '5 problems' in printed, errors
    rows = {line.split()[0]: line for line in printed.splitlines() if line.strip()}
    assert '%' in rows['strict'] and '%' in rows['flexible']
    # The same model on another task: the function that is named brings its own knobs.
    other = [
        '--config.evaluation.task.name=addition',
        '--config.evaluation.task.size=3',
        '--config.evaluation.task.levels=(2,)',
    ]
    status, printed, errors = called(
        evaluate, capsys, '--workdir', tmp_path / 'run', QUICK, '--samples', 0, *other
    )
    assert status == 0 and 'addition, 3 problems' in printed and 'strict' not in printed, errors
