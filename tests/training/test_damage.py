"""Damaged, half-deleted and unwritable checkpoints: named, put aside, and never mistaken for a good
one or for none."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reasonjax.errors import UserError
from reasonjax.training import checkpoint, checkpoint_files
from reasonjax.weights import quantised

PARAMS = {'w': jnp.arange(3000.0), 'b': {'c': jnp.ones((4, 4), jnp.bfloat16)}}
TRAIN = {'step': jnp.int32(0)}


class Memory:
    def __init__(self, state=None):
        self.state = state

    def get_state(self):
        return self.state

    def set_state(self, state):
        self.state = state


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp('written')
    with checkpoint.Checkpoints(folder, keep=None) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(
                step, params=PARAMS, train={'step': jnp.int32(step)}, meta={'step': step}
            )
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return pathlib.Path(shutil.copytree(written, tmp_path / 'checkpoints'))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path, bit=None):
    data = bytearray(path.read_bytes())
    bit = 8 * (len(data) // 2) if bit is None else bit
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def largest(folder):
    return max(folder.rglob('d/*'), key=lambda path: path.stat().st_size)


DAMAGES = {
    'array cut': (
        lambda step: truncate(largest(step / 'params')),
        r'params/.*/d/\w+: truncated: \d+ bytes of \d+',
    ),
    'array flipped': (
        lambda step: flip(largest(step / 'params')),
        r'params/.*/d/\w+: its bytes have changed',
    ),
    'array gone': (lambda step: largest(step / 'train').unlink(), r'train/.*d/\w+: missing'),
    'part gone': (lambda step: shutil.rmtree(step / 'train'), r'train/\S+: missing; train/'),
    'record broken': (
        lambda step: flip(step / 'meta' / 'metadata'),
        'meta/metadata: its bytes have changed',
    ),
    'record gone': (lambda step: (step / 'meta' / 'metadata').unlink(), 'meta/metadata: missing'),
    'checksums cut': (
        lambda step: truncate(step / 'checksums.json'),
        'checksums.json: cannot be read',
    ),
    'checksums odd': (
        lambda step: (step / 'checksums.json').write_text('[]'),
        'checksums.json: cannot be read',
    ),
    'checksums gone': (
        lambda step: (step / 'checksums.json').unlink(),
        'checksums.json: missing',
    ),
    'half a copy': (
        lambda step: (
            [path.unlink() for path in step.iterdir() if path.is_file()]
            + [shutil.rmtree(step / 'meta')]
        ),
        'checksums.json: missing',
    ),
}


@pytest.mark.parametrize('name', DAMAGES)
def test_the_newest_is_named_and_the_one_before_is_used(name, folder, capsys):
    damage, words = DAMAGES[name]
    damage(folder / '3')
    assert checkpoint.load_params(folder, PARAMS)[2] == 2
    capsys.readouterr().err.index('Looking for an earlier one')
    before = sorted(path.relative_to(folder / '3') for path in (folder / '3').rglob('*'))
    with pytest.raises(UserError, match=f'3 is damaged: .*{words}'):
        checkpoint.load_params(folder, PARAMS, step=3)
    with checkpoint.Checkpoints(folder) as checkpoints:
        restored = checkpoints.restore(params=PARAMS, train=TRAIN)
        assert restored.step == 2 and restored.train['step'] == 2
        np.testing.assert_array_equal(restored.params['w'], PARAMS['w'])
        error = capsys.readouterr().err
        assert error.count('is damaged') == 1 and 'Renamed to 3.damaged' in error
        assert re.search(f'checkpoint {folder / "3"} is damaged: {words}', error)
        assert (
            sorted(
                path.relative_to(folder / '3.damaged') for path in (folder / '3.damaged').rglob('*')
            )
            == before
        )
        assert checkpoints.save(3, params=PARAMS, train=TRAIN)
        assert checkpoints.latest() == 3


def test_every_single_bit_of_an_array_file_counts(folder):
    path = largest(folder / '3' / 'params')
    whole = path.read_bytes()
    for bit in np.random.default_rng(0).integers(0, 8 * len(whole), 40):
        flip(path, bit)
        assert checkpoint_files.damage(folder / '3', read=True) and not checkpoint_files.damage(
            folder / '3', read=False
        )
        path.write_bytes(whole)
    assert not checkpoint_files.damage(folder / '3', read=True)


def test_where_all_are_damaged_nothing_starts_anew(folder, capsys):
    for step in (1, 2, 3):
        flip(largest(folder / str(step)))
    with pytest.raises(UserError, match='every checkpoint in .* is damaged: 1, 2, 3'):
        checkpoint.load_params(folder, PARAMS)
    for _ in range(2):  # also when they have been put aside before
        with checkpoint.Checkpoints(folder) as checkpoints:
            with pytest.raises(
                UserError,
                match=r'is damaged \(1.damaged, 2.damaged, 3.damaged\), and a stage never',
            ):
                checkpoints.latest()
            with pytest.raises(UserError, match='is damaged'):
                checkpoints.restore(params=PARAMS)
    assert capsys.readouterr().err.count('Renamed to') == 3
    shutil.copytree(folder / '2.damaged', folder / '2')
    with checkpoint.Checkpoints(folder) as checkpoints, pytest.raises(UserError):
        checkpoints.latest()
    assert (folder / '2.damaged-2').is_dir()


def test_a_deletion_that_was_cut_short_is_finished(folder, capsys):
    """Unless the newest checkpoint says that the step was to stay: then something else has happened
    to it."""
    largest(folder / '1').unlink()
    with checkpoint.Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.steps() == [2, 3] and not (folder / '1').exists()
        checkpoints.retain([2])
        checkpoints.save(4, params=PARAMS)
        checkpoints.save(5, params=PARAMS)
        assert checkpoints.steps() == [2, 4, 5]
    assert not capsys.readouterr().err
    largest(folder / '2').unlink()
    with checkpoint.Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.steps() == [4, 5] and (folder / '2.damaged').is_dir()
    assert 'Renamed to' in capsys.readouterr().err


def test_checksums_are_those_of_the_files(folder):
    found = json.loads((folder / '3' / 'checksums.json').read_text())['files']
    there = {
        str(path.relative_to(folder / '3')) for path in (folder / '3').rglob('*') if path.is_file()
    }
    # What Orbax writes when all else is done, and holds no data.
    assert there - found.keys() == {'checksums.json', '_CHECKPOINT_METADATA', 'commit_success.txt'}
    lines = ''.join(f'{entry["sha256"]}  {name}\n' for name, entry in found.items())
    done = subprocess.run(
        ['sha256sum', '--check', '--quiet'],
        input=lines,
        cwd=folder / '3',
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_what_a_method_remembers_comes_back(tmp_path):
    state = {
        'flat': 3,
        'said': ['cut', 0.1, None],
        'rates': {'values': np.linspace(0, 1, 5), 'seen': np.int16(7)},
        'deep': [{'w': jnp.full((2, 2), 1 / 3, jnp.bfloat16)}, True],
    }
    with checkpoint.Checkpoints(tmp_path, keep=None) as checkpoints:
        checkpoints.save(1, params=PARAMS, memory=Memory(state))
        checkpoints.save(2, params=PARAMS, memory=Memory({'flat': 4}))
        checkpoints.save(3, params=PARAMS)
        found = Memory()
        checkpoints.restore(1, params=PARAMS, memory=found)
        # Growing or shrinking between saves is no difference of models.
        few = Memory()
        checkpoints.restore(2, params=PARAMS, memory=few)
        with pytest.raises(UserError, match='holds no state of the method'):
            checkpoints.restore(3, memory=Memory())
    assert few.state == {'flat': 4}
    assert (
        found.state['flat'] == 3
        and found.state['said'] == ['cut', 0.1, None]
        and found.state['deep'][1] is True
    )
    for ours, theirs in [
        (found.state['rates']['values'], state['rates']['values']),
        (found.state['rates']['seen'], state['rates']['seen']),
        (found.state['deep'][0]['w'], state['deep'][0]['w']),
    ]:
        assert ours.dtype == theirs.dtype and ours.tobytes() == np.asarray(theirs).tobytes()


def test_a_quantised_weight_of_another_block_is_refused(tmp_path):
    """Its arrays may well have the shapes of another: the block is a static field."""

    def make(block):
        return {
            'w': quantised.Quantised(
                jnp.zeros((64, 4), jnp.uint8), jnp.ones((2, 4)), format='nf4', block=block
            )
        }

    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, params=make(64))
        with pytest.raises(UserError, match='params/w.block: expected 32, found 64'):
            checkpoints.restore(params=make(32))
        assert checkpoints.restore(params=make(64)).params['w'].block == 64


def test_orbax_says_nothing_of_failures_that_are_raised(tmp_path, monkeypatch, caplog):
    def fail(folder):
        raise OSError(28, 'No space left on device')

    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, params=PARAMS)
        checkpoints.wait()
        monkeypatch.setattr(checkpoint_files, 'write_sums', fail)
        checkpoints.save(2, params=PARAMS)
        # At the latest at the next save.
        with pytest.raises(
            UserError,
            match=r'cannot write checkpoint .*2: No space left on device. Complete checkpoints there: 1',
        ):
            checkpoints.save(3, params=PARAMS)
        monkeypatch.undo()
        assert [path.name for path in tmp_path.iterdir()] == ['1']
        checkpoints.save(3, params=PARAMS)
        assert checkpoints.steps() == [1, 3]
    assert not caplog.records


FULL = """
import resource, sys
import jax.numpy as jnp
from reasonjax.training import checkpoint
from reasonjax.errors import UserError
checkpoints = checkpoint.Checkpoints(sys.argv[1])
checkpoints.save(1, params={'w': jnp.zeros(1000)})
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
checkpoints.save(2, params={'w': jnp.arange(2.0**20) ** 1.1})
try:
    checkpoints.close()
except UserError as error:
    sys.exit(str(error))
"""


def test_a_file_that_may_not_grow(tmp_path):
    """The system itself refuses the bytes; what was there before stays, and there is no litter."""
    root = pathlib.Path(checkpoint.__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, '-c', FULL, str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {'PYTHONPATH': str(root), 'JAX_PLATFORMS': 'cpu'},
    )
    assert (
        ended.returncode == 1
        and f'cannot write checkpoint {tmp_path / "2"}: File too large. Complete' in ended.stderr
    ), ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['1']
    assert checkpoint.load_params(tmp_path, {'w': jnp.ones(1000)})[2] == 1


def test_the_record_is_the_same_whatever_the_process(tmp_path):
    """Which of several processes reads which file is decided by its place alone, and together they
    read all."""
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, params=PARAMS)
    path = largest(tmp_path / '1')
    flip(path)
    found = [checkpoint_files.damage(tmp_path / '1', read=True, share=(i, 3)) for i in range(3)]
    assert sorted(map(len, found)) == [0, 0, 1]
    assert jax.process_count() == 1 and checkpoint_files.damage_all(tmp_path / '1') == sum(
        found, []
    )
