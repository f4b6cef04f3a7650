"""One device and eight (simulated, in a process of their own) agree: fresh weights, steps of every
kind, sampling."""

import pathlib

import devices
import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
# Every axis, and both models with split rows and without; a mixture on data=2,expert=4 is in
# `test_folder_devices`.
DENSE = ('fsdp=4,tensor=2', 'fsdp=2,tensor=2,sequence=2')
MIXED = ('data=2,expert=2,tensor=2', 'fsdp=2,expert=2,sequence=2')
ONE = {DENSE: 'fsdp=1', MIXED: 'expert=1'}


@pytest.fixture(scope='module')
def found(tmp_path_factory):
    """By mesh, what it came to."""
    out = tmp_path_factory.mktemp('devices') / 'found.npz'
    return devices.by_mesh(HERE / 'several_devices.py', out, *ONE.values(), *DENSE, *MIXED)


@pytest.mark.parametrize('shape', DENSE + MIXED)
def test_eight_devices_equal_one(found, shape):
    wanted, names = found[ONE[DENSE if shape in DENSE else MIXED]], set(found[shape])
    left_out = ('lora/',) * ('sequence' in shape) + ('rollout/other/',) * ('tensor' not in shape)
    assert names == {name for name in wanted if not name.startswith(left_out)}
    for name in names:
        want = wanted[name]
        got = found[shape][name]
        if name.startswith('fresh/') or name.endswith('/tokens'):
            np.testing.assert_array_equal(got, want, err_msg=name)
        elif '/gradient/' in name:
            assert np.linalg.norm(got - want) <= 1e-4 * np.linalg.norm(want) + 1e-9, name
        else:
            np.testing.assert_allclose(got, want, atol=1e-5, err_msg=name)
    norms = [np.linalg.norm(want) for name, want in wanted.items() if '/gradient/' in name]
    assert len(norms) > 20 and np.mean(np.array(norms) > 1e-4) > 0.9


def test_the_steps_learn(found):
    losses = found[ONE[DENSE]]['lora/losses']
    assert losses[2] < losses[0]
