"""One device and eight (simulated, in a process of their own) agree on pairs over quantised
weights."""

import pathlib

import devices
import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
MESHES = ('fsdp=4,tensor=2', 'fsdp=2,tensor=2,sequence=2')
ONE = 'fsdp=1'


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    """By mesh, what it came to."""
    out = tmp_path_factory.mktemp('devices') / 'found.npz'
    return devices.by_mesh(HERE / 'quantised_devices.py', out, ONE, *MESHES)


@pytest.mark.parametrize('shape', MESHES)
def test_eight_devices_equal_one(found, shape):
    one, names = found[ONE], set(found[shape])
    assert names == {name for name in one if 'sequence' not in shape or name.startswith('nf4/')}
    assert sum('/gradient/' in name for name in names) == (6 if 'sequence' in shape else 12)
    for name in names:
        got, want = found[shape][name], one[name]
        if '/gradient/' in name:
            assert np.linalg.norm(got - want) <= 1e-4 * np.linalg.norm(want), name
        else:
            np.testing.assert_allclose(got, want, atol=1e-5, err_msg=name)


def test_the_bases_differ(found):
    one = found[ONE]
    assert 0 < abs(one['int8/loss'] - one['nf4/loss']) < 0.5
