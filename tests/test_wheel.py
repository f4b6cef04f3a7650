"""What is installed from a wheel works from any folder, with the configs inside it."""

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


def test_programs_work_from_an_empty_folder(installed, tmp_path):
    def program(name, *arguments):
        environment = os.environ | {
            'PYTHONPATH': str(installed),
            'JAX_PLATFORMS': 'cpu',
            'PYTHONSAFEPATH': '',
        }
        return subprocess.run(
            [sys.executable, '-m', f'reasonjax.{name}', *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )

    run = program(
        'train',
        '--config',
        'sft',
        '--smoke',
        '--skip_selfcheck',
        '--workdir',
        'run',
        '--config.evaluation.enabled=false',
    )
    assert run.returncode == 0 and (tmp_path / 'run' / 'summary.json').is_file(), run.stderr
    where = program('inspect', 'quickstart:worked_only', '--examples', '1')
    assert where.returncode == 0, where.stderr
    wrong = program('compare', '--recipes', 'masked_though')
    assert wrong.returncode == 2 and 'Did you mean "masked_thought"?' in wrong.stderr, wrong.stderr
    lost = program('train', '--config', 'configs/quickstart.py')
    assert lost.returncode == 2 and lost.stderr.startswith(
        'error: --config: no file configs/quickstart.py. Did you mean "quickstart"?'
    )
