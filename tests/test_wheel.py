"""What is installed from a wheel works from any folder, with the configs inside it."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

pytest.importorskip('setuptools', '70.1')
ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """An unpacked wheel, built from a copy of the checkout, and nothing of the checkout beside
    it."""
    folder = tmp_path_factory.mktemp('wheel')
    for name in ('reasonjax', 'configs'):
        shutil.copytree(
            ROOT / name, folder / 'source' / name, ignore=shutil.ignore_patterns('__pycache__')
        )
    for name in ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md'):
        shutil.copy(ROOT / name, folder / 'source')
    command = [
        sys.executable,
        '-m',
        'pip',
        'wheel',
        '-q',
        '--no-deps',
        '--no-build-isolation',
        '-w',
        str(folder),
        str(folder / 'source'),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob('*.whl')
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / 'site')
    return folder / 'site'


def test_it_holds_the_configs_and_nothing_of_the_rest(installed):
    brought = {
        str(path.relative_to(installed / 'reasonjax' / 'shipped'))
        for path in installed.rglob('shipped/configs/**/*.py')
    }
    wanted = [
        path for path in ROOT.glob('configs/**/*.py') if 'from benchmarks' not in path.read_text()
    ]
    assert (
        brought == {str(path.relative_to(ROOT)) for path in wanted}
        and 'configs/models/tiny.py' in brought
    )
    assert {path.name for path in installed.iterdir() if path.suffix != '.dist-info'} == {
        'reasonjax'
    }


# Runs programs in turn, each as `python -m` does, in one process: to import all that they import
# takes longer than what they do here. Prints the status and the words of each. The comparison is of
# a model of one layer and stages of a few steps; its workers are processes of their own.
DRIVER = """
import contextlib, dataclasses, gc, io, json, runpy, sys

gc.set_threshold(50_000, 20, 50)  # as in these tests: less often

from reasonjax.arena import recipes, tasks

short = dict(warm_steps=2, supervised_steps=2, demonstrations=16)
for name in ('addition', tasks.ARENA['addition'].beside):
    tasks.ARENA[name] = dataclasses.replace(tasks.ARENA[name], **short)
recipes.MODEL = dict(dim=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp_dim=64)
recipes.EXAM_BATCH = 4
sys.modules['libtpu'] = None  # where it is installed, it is not here

for command in json.load(sys.stdin):
    sys.argv, out, error, status = command, io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            runpy.run_module(f'reasonjax.{command[0]}', run_name='__main__', alter_sys=True)
        except SystemExit as end:
            status = end.code
    print(json.dumps([status, out.getvalue(), error.getvalue()]))
"""
# A model that compiles quickly.
SMALL = ('--config.model.layers=1', '--config.model.dim=32', '--config.model.mlp_dim=64')
# In this order: the plan sets the number of simulated devices, and the conversion needs the run.
# That is the SFT of the quickstart, one layer and two steps, with a model that a Hugging Face
# folder can hold.
COMMANDS = {
    'plan': ('plan', '--config', 'sft', '--topology', 'cpu:2', '--no-fit', *SMALL),
    'train': (
        *('train', '--config', 'quickstart', '--smoke', '--skip_selfcheck', '--workdir', 'run'),
        *("--config.stages=('sft',)", '--config.evaluation.enabled=false'),
        *('--config.model.gated=true', '--config.model.activation=silu'),
    ),
    'plan, no compiler': ('plan', '--config', 'plan:qwen3_8b', '--topology', 'v5e:4x4'),
    'inspect': ('inspect', 'quickstart:worked_only', '--examples', '1'),
    'convert': ('convert', 'run', 'exported', '--skip_selfcheck'),
    'compare': (
        *('compare', '--recipes', 'sft', '--tasks', 'addition', '--seeds', '1'),
        *('--problems', '4', '--workers', '1', '--workdir', 'compared'),
    ),
    'compare, no such recipe': ('compare', '--recipes', 'masked_though'),
    'train, no such file': ('train', '--config', 'configs/quickstart.py'),
}


@pytest.fixture(scope='module')
def folder(installed, tmp_path_factory):
    """`folder(*command, **options)`: runs Python in a folder that was empty, with nothing but the
    wheel."""
    stage = tmp_path_factory.mktemp('empty')

    def python(*arguments, **options):
        environment = os.environ | {
            'PYTHONPATH': str(installed),
            'JAX_PLATFORMS': 'cpu',
            'PYTHONSAFEPATH': '',
        }
        environment.pop('REASONJAX_DATA', None)
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=stage,
            env=environment,
            capture_output=True,
            text=True,
            **options,
        )

    python.place = stage
    return python


@pytest.fixture(scope='module')
def ended(folder):
    """What each of COMMANDS ended with: its status, output and error output."""
    driven = folder('-c', DRIVER, input=json.dumps(list(COMMANDS.values())))
    assert driven.returncode == 0, driven.stderr
    return dict(zip(COMMANDS, map(json.loads, driven.stdout.splitlines()), strict=True))


@pytest.mark.parametrize('command', [name for name in COMMANDS if ', no ' not in name])
def test_programs_work_from_an_empty_folder(command, ended, folder):
    status, out, error = ended[command]
    assert status == 0, error
    if command == 'plan':
        assert 'train' in out and 'fits' in out, out
    if command == 'train':
        summary = json.loads((folder.place / 'run' / 'summary.json').read_text())
        assert [stage['name'] for stage in summary['stages']] == ['sft']
    if command == 'convert':
        exported = {path.name for path in (folder.place / 'exported').iterdir()}
        assert {'config.json', 'model.safetensors'} <= exported
    if command == 'compare':
        table = json.loads((folder.place / 'compared' / 'table.json').read_text())
        assert table['problems'] and (folder.place / 'compared' / 'report.html').is_file()
        cells = [json.loads(p.read_text()) for p in folder.place.rglob('cells/**/result.json')]
        assert [cell['status'] for cell in cells] == ['done'], cells


@pytest.mark.parametrize(
    ('command', 'words'),
    [
        ('plan, no compiler', 'needs their compiler: pip install libtpu.'),
        ('compare, no such recipe', 'Did you mean "masked_thought"?'),
        (
            'train, no such file',
            '--config: no file configs/quickstart.py. Did you mean "quickstart"?',
        ),
    ],
)
def test_what_programs_refuse_they_refuse_in_one_line(command, words, ended):
    status, _, error = ended[command]
    assert status == 2 and error.startswith('error: ') and words in error, error
    assert error.count('\n') == 1
