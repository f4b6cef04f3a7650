"""One device and eight (simulated, in a process of their own) agree: fresh weights, training, sampling."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

HERE = pathlib.Path(__file__).parent
# What runs on each mesh besides the training of all weights.
MESHES = {'8,1,1': (), '2,4,1': ('rollout',), '1,4,2': ('lora',)}


@pytest.fixture(scope='module')
def eight(tmp_path_factory):
    out = tmp_path_factory.mktemp('devices') / 'eight.npz'
    environment = os.environ | {
        'XLA_FLAGS': '--xla_force_host_platform_device_count=8',
        'JAX_PLATFORMS': 'cpu',
        'PYTHONPATH': os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)]),
    }
    command = [sys.executable, str(HERE / 'several_devices.py'), str(out), *MESHES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(out)


@pytest.fixture(scope='module')
def one():
    if len(jax.devices()) != 1 or jax.default_backend() != 'cpu':
        pytest.skip('the reference runs on one CPU device')
    sys.path.insert(0, str(HERE))
    import several_devices

    sys.path.remove(str(HERE))
    return several_devices.run(1, 1, 1)


@pytest.mark.parametrize('shape', MESHES)
def test_eight_devices_equal_one(one, eight, shape):
    names = {name.removeprefix(f'{shape}/') for name in eight.files if name.startswith(f'{shape}/')}
    kinds = ('fresh', 'dense', *MESHES[shape])
    assert names == {name for name in one if name.startswith(kinds)}
    for name in names:
        got, wanted = eight[f'{shape}/{name}'], one[name]
        if name.startswith('fresh/') or name == 'rollout/tokens':
            np.testing.assert_array_equal(got, wanted, err_msg=name)
        else:
            np.testing.assert_allclose(got, wanted, atol=1e-5, err_msg=name)
    losses = eight[f'{shape}/dense/losses']
    assert len(losses) == 3 and losses[2] < losses[0]
