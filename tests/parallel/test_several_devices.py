"""One device and eight (simulated, in a process of their own) agree: fresh weights, steps of every kind, sampling."""

import pathlib
import sys

import devices
import jax
import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
DENSE = ('fsdp=8', 'fsdp=4,tensor=2', 'fsdp=2,tensor=2,sequence=2')
MIXED = ('data=2,expert=4', 'fsdp=2,expert=2,tensor=2', 'expert=4,sequence=2')


@pytest.fixture(scope='module')
def eight(tmp_path_factory):
    out = tmp_path_factory.mktemp('devices') / 'eight.npz'
    devices.on_eight(HERE / 'several_devices.py', out, *DENSE, *MIXED)
    return np.load(out)


@pytest.fixture(scope='module')
def one():
    if len(jax.devices()) != 1 or jax.default_backend() != 'cpu':
        pytest.skip('the reference runs on one CPU device')
    sys.path.insert(0, str(HERE))
    import several_devices as shared

    sys.path.remove(str(HERE))
    return {shape: shared.run({}, config) for shapes, config in ((DENSE, shared.CONFIG), (MIXED, shared.MIXTURE)) for shape in shapes[:1]}


@pytest.mark.parametrize('shape', DENSE + MIXED)
def test_eight_devices_equal_one(one, eight, shape):
    wanted = one[(DENSE if shape in DENSE else MIXED)[0]]
    names = {name.removeprefix(f'{shape}/') for name in eight.files if name.startswith(f'{shape}/')}
    left_out = ('lora/',) * ('sequence' in shape) + ('rollout/other/',) * ('tensor' not in shape)
    assert names == {name for name in wanted if not name.startswith(left_out)}
    for name in names:
        want = wanted[name]
        got = eight[f'{shape}/{name}']
        if name.startswith('fresh/') or name.endswith('/tokens'):
            np.testing.assert_array_equal(got, want, err_msg=name)
        elif '/gradient/' in name:
            assert np.linalg.norm(got - want) <= 1e-4 * np.linalg.norm(want) + 1e-9, name
        else:
            np.testing.assert_allclose(got, want, atol=1e-5, err_msg=name)
    norms = [np.linalg.norm(want) for name, want in wanted.items() if '/gradient/' in name]
    assert len(norms) > 20 and np.mean(np.array(norms) > 1e-4) > 0.9


def test_the_steps_learn(one):
    losses = one[DENSE[0]]['lora/losses']
    assert losses[2] < losses[0]
