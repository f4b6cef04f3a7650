"""Before a program does its work: flags are refused while that takes a second, and libraries say
nothing that is not the user's."""

import os
import subprocess
import sys

import pytest
from small_runs import ROOT

from reasonjax import programs

NOISE = """
import logging, sys, warnings
from reasonjax import programs

def program():
    for name in ('absl', 'orbax.checkpoint', 'jax._src.xla_bridge', 'tensorflow', 'transformers.tokenization_utils', 'etils.epath'):
        logging.getLogger(name).info('noise')
        logging.getLogger(name).warning('noise')
    for module in ('jax._src.interpreters.mlir', 'orbax.checkpoint.x', 'transformers', 'tensorflow.python'):
        warnings.warn_explicit('noise', UserWarning, 'their.py', 1, module=module)
    logging.getLogger('absl').error('an error of theirs')
    logging.getLogger('my_rewards').warning('a log of mine')
    warnings.warn_explicit('a warning of mine', UserWarning, 'mine.py', 1, module='my_rewards')
    print('warning: one of ours', file=sys.stderr)

logging.basicConfig(level=logging.INFO)
sys.exit(programs.run_program(program))
"""


def test_what_libraries_say_stays_off_the_screen():
    done = subprocess.run([sys.executable, '-c', NOISE], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and 'noise' not in done.stderr + done.stdout, done.stderr
    for text in (
        'an error of theirs',
        'a log of mine',
        'a warning of mine',
        'warning: one of ours',
    ):
        assert text in done.stderr


PIPED = """
import sys
from reasonjax import programs

def program():
    sys.stdin.readline()
    for i in range(%d):
        print('text', flush=%s)

sys.exit(programs.run_program(program, resumable=%s))
"""


@pytest.mark.parametrize('flush', [True, False])
@pytest.mark.parametrize('lines', [1, 10_000])
@pytest.mark.parametrize('resumable', [False, True])
def test_output_that_nobody_reads_any_more(resumable, lines, flush):
    """As with `| head`: a program that prints results has done its work, one that was to go on says
    that it has not."""
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(
        [sys.executable, '-c', PIPED % (lines, flush, resumable)], cwd=ROOT, **pipes
    )
    process.stdout.close()
    process.stdin.write('\n')
    process.stdin.close()
    error = process.stderr.read()
    assert process.wait() == (75 if resumable else 0), error
    assert 'Traceback' not in error and 'Exception' not in error
    assert (
        error.startswith(
            'stopped: nobody reads its output any more. To resume, give the same command again'
        )
        == resumable
    )


def test_levels_of_libraries_are_the_users_where_they_are_set(monkeypatch):
    monkeypatch.setenv('TF_CPP_MIN_LOG_LEVEL', '0')
    monkeypatch.delenv('TRANSFORMERS_VERBOSITY', raising=False)
    assert programs.run_program(lambda: None) == 0
    assert (
        os.environ['TF_CPP_MIN_LOG_LEVEL'] == '0'
        and os.environ['TRANSFORMERS_VERBOSITY'] == 'error'
    )


FLAGS = {
    'sample': [
        ['--samples=0'],
        ['--temperature=-1'],
        ['--top_p=0'],
        ['--min_p=1'],
        ['--top_k=-1'],
        ['--max_tokens=-1'],
        ['--batch_size=0'],
        ['--file=x', 'y'],
        ['--temperature=nan'],
        ['--num_processes=2'],
        ['--cpu_devices=-1'],
        ['--trust=.'],
    ],
    'evaluate': [
        ['--samples=-1'],
        ['--k=0'],
        ['--k=x'],
        ['--k=²'],
        ['--config.train.steps=1'],
        ['--process_id=0'],
        ['--config.a'],
    ],
    'convert': [
        ['--merge', '--adapter'],
        ['--dtype=int8'],
        ['--coordinator=host', '--num_processes=1', '--process_id=0'],
    ],
    'train': [
        ['--num_processes=²', '--coordinator=h:1', '--process_id=0'],
        ['--cpu_devices=-2'],
        ['--config.a'],
        ['--trust=a b'],
    ],
    'compare': [
        ['--seeds=0'],
        ['--workers=-1'],
        ['--problems=-1'],
        ['--measure=test'],
        ['--budget=token=1'],
        ['--budget=tokens=nan'],
        ['--override=x'],
    ],
    'plan': [['--config.a']],
    'inspect': [['--examples=x']],
    'interop.lm_eval': [[]],
}
NEEDED = {
    'sample': ['--workdir=w'],
    'evaluate': ['--workdir=w'],
    'convert': ['a', 'b'],
    'train': ['--config=c.py'],
    'compare': ['--recipes=r'],
    'plan': ['--config=c.py', '--topology=t'],
    'inspect': ['c.py'],
    'interop.lm_eval': [],
}
LIGHT = """
import importlib, sys
program = importlib.import_module(f'reasonjax.{sys.argv[1]}')
for arguments in eval(sys.argv[2]):
    try:
        status = program.main(arguments)
    except SystemExit as leaving:
        status = leaving.code
    print(arguments, status, 'jax' in sys.modules)
"""


@pytest.mark.parametrize('name', FLAGS)
def test_flags_are_refused_before_jax_is_imported(name):
    """As is help given: a second, not ten."""
    wrong = [[*NEEDED[name], *flags] for flags in FLAGS[name]] if name != 'interop.lm_eval' else []
    asked = repr([*wrong, ['--help'], *([[]] if name == 'interop.lm_eval' else [])])
    done = subprocess.run(
        [sys.executable, '-c', LIGHT, name, asked], capture_output=True, text=True, cwd=ROOT
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('[')]
    assert [line.rpartition(']')[2].split() for line in lines if "'--help'" not in line] == [
        ['2' if wrong else '0', 'False']
    ] * (len(wrong) or 1), (done.stdout, done.stderr)
    assert [line.rpartition(']')[2].split() for line in lines if "'--help'" in line] == [
        ['0', 'False']
    ]
    assert 'Traceback' not in done.stderr and done.stderr.count('rror: ') == len(wrong)
