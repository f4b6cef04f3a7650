"""The self-check accepts the backend the tests run on, and refuses a planted fault."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

from reasonjax import selfcheck

ROOT = pathlib.Path(__file__).parent.parent


def plant(name, fault):
    """The standard programs, one of them followed by `fault` on its output."""
    assert name in {program.name for program in selfcheck.PROGRAMS}
    return [
        program._replace(device=lambda *inputs, run=program.device: fault(run(*inputs)))
        if program.name == name
        else program
        for program in selfcheck.PROGRAMS
    ]


def test_accepts_this_backend():
    selfcheck.check()


def test_accepts_the_backend_as_a_user_has_it():
    """The tests' own flags (conftest.py) compile in other ways."""
    environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    code = 'from reasonjax import selfcheck; selfcheck.check()'
    done = subprocess.run(
        [sys.executable, '-c', code], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('name', [program.name for program in selfcheck.PROGRAMS])
def test_refuses_one_wrong_output(name):
    with pytest.raises(selfcheck.BackendError) as error:
        selfcheck.check(plant(name, lambda out: out.at[(-1,) * out.ndim].add(1)))
    message = str(error.value)
    assert f'{name} [' in message and '1 of ' in message
    assert jaxlib.__version__ in message and jax.default_backend() in message
    assert 'pip install' in message and '--skip_selfcheck' in message
    assert not any(
        f'{other.name} [' in message for other in selfcheck.PROGRAMS if other.name != name
    )


def test_refuses_the_known_fault():
    # What jaxlib 0.10.2 did: everything after the first 32,768 outputs is another output's value.
    def stale(out):
        flat = out.ravel()
        return jnp.where(jnp.arange(flat.size) < 32_768, flat, jnp.roll(flat, 7)).reshape(out.shape)

    with pytest.raises(
        selfcheck.BackendError,
        match=r'scaled_sum .*of 36864 outputs wrong; the first, at \(8, \d+\)',
    ):
        selfcheck.check(plant('scaled_sum', stale))


def test_refuses_nan_and_wrong_shape():
    with pytest.raises(selfcheck.BackendError, match='73782 of 73782 outputs wrong'):
        selfcheck.check(plant('log_softmax', lambda out: out * jnp.nan))
    with pytest.raises(selfcheck.BackendError, match='shape'):
        selfcheck.check(plant('argmax', lambda out: out[1:]))


def test_oracles_are_right_on_known_values():
    oracle = {program.name: program.oracle for program in selfcheck.PROGRAMS}
    x, y = np.array([[[1.0, 2.0]]]), np.array([[3.0, 4.0]])
    assert oracle['scaled_sum'](x, y).tolist() == oracle['scaled_dot'](x, y).tolist() == [[22.0]]
    np.testing.assert_allclose(
        oracle['log_softmax'](np.log([[1.0, 3.0]])), np.log([[0.25, 0.75]]), rtol=1e-12
    )
    np.testing.assert_allclose(oracle['rms_norm'](np.array([[3.0, 3.0]])), [[1, 1]], rtol=1e-6)
    assert oracle['argmax'](np.array([[0.0, 5.0, 5.0]])).tolist() == [1]
