"""One device and eight (simulated, in a process of their own) agree on pairs over quantised weights and on offloaded moments."""

import pathlib
import sys

import devices
import jax
import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
MESHES = ('fsdp=4,tensor=2', 'fsdp=2,tensor=2,sequence=2')


@pytest.fixture(scope='module')
def eight(tmp_path_factory):
    out = tmp_path_factory.mktemp('devices') / 'eight.npz'
    devices.on_eight(HERE / 'quantised_devices.py', out, *MESHES)
    return np.load(out)


@pytest.fixture(scope='module')
def one():
    if len(jax.devices()) != 1 or jax.default_backend() != 'cpu':
        pytest.skip('the reference runs on one CPU device')
    sys.path.insert(0, str(HERE))
    import quantised_devices as shared

    sys.path.remove(str(HERE))
    return shared.run({})


@pytest.mark.parametrize('shape', MESHES)
def test_eight_devices_equal_one(one, eight, shape):
    names = {name.removeprefix(f'{shape}/') for name in eight.files if name.startswith(f'{shape}/')}
    assert names == {name for name in one if 'sequence' not in shape or name.startswith('nf4/')}
    assert sum('/gradient/' in name for name in names) == (6 if 'sequence' in shape else 12)
    for name in names:
        got, want = eight[f'{shape}/{name}'], one[name]
        if '/gradient/' in name:
            assert np.linalg.norm(got - want) <= 1e-4 * np.linalg.norm(want), name
        else:
            np.testing.assert_allclose(got, want, atol=1e-5, err_msg=name)


def test_the_bases_differ(one):
    assert 0 < abs(one['int8/loss'] - one['nf4/loss']) < 0.5
    assert one['offloaded/loss'] < one['nf4/loss']
