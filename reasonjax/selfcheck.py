"""A known-answer self-check of the backend, run at the start of every program.

Some releases of the compiler return wrong numbers silently (jaxlib 0.10.2 on CPU: a sum over
the minor axis followed by any elementwise operation, once there are more than 32,768 outputs).
Training then looks like a bad learning rate. So a few tiny programs of the kinds every step is made
of are run first and compared with float64 NumPy.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np


class BackendError(RuntimeError):
    """The backend computes wrong numbers. The message names the release, the platform, the program
    and the way out."""


class Program(NamedTuple):
    """A program whose answer is known.

    Attributes:
        name: the name an error prints.
        text: the program in one line, as a reader would write it.
        device: the program in jax.numpy; it is compiled with `jax.jit`. Arrays in, one array out.
        oracle: the same in NumPy; it is given float64 arrays.
        inputs: makes the float32 inputs.
        tolerance: the largest accepted error, absolute plus relative (0 asks for equality).
    """

    name: str
    text: str
    device: Callable[..., jax.Array]
    oracle: Callable[..., np.ndarray]
    inputs: Callable[[], tuple[np.ndarray, ...]]
    tolerance: float


def _integers(*shapes: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Draws float32 arrays of small whole numbers. Products and short sums of them are exact, in
    bfloat16 and TF32 units too."""
    rng = np.random.default_rng(0)
    return tuple(rng.integers(-8, 9, shape).astype(np.float32) for shape in shapes)


def _log_softmax(x_RxV: np.ndarray) -> np.ndarray:
    shifted_RxV = x_RxV - x_RxV.max(-1, keepdims=True)
    return shifted_RxV - np.log(np.exp(shifted_RxV).sum(-1, keepdims=True))


# Each has more than 32,768 outputs, or rows, of a short minor axis: small enough for milliseconds,
# large enough to be split over threads, which is where such faults begin.
PROGRAMS = (
    Program(
        'scaled_sum',
        'sum(y[None] * x, -1) * 2',
        lambda x_GxNxD, y_NxD: jnp.sum(y_NxD[None] * x_GxNxD, -1) * 2,
        lambda x_GxNxD, y_NxD: np.sum(y_NxD[None] * x_GxNxD, -1) * 2,
        lambda: _integers((9, 4096, 8), (4096, 8)),
        0.0,
    ),
    Program(
        'scaled_dot',
        'einsum("gnd,nd->gn", x, y) * 2',
        lambda x_GxNxD, y_NxD: jnp.einsum('gnd,nd->gn', x_GxNxD, y_NxD) * 2,
        lambda x_GxNxD, y_NxD: np.einsum('gnd,nd->gn', x_GxNxD, y_NxD) * 2,
        lambda: _integers((9, 4096, 8), (4096, 8)),
        0.0,
    ),
    Program(
        'log_softmax',
        'log_softmax(x, -1)',
        lambda x_RxV: jax.nn.log_softmax(x_RxV, -1),
        _log_softmax,
        lambda: _integers((4099, 18)),
        1e-4,
    ),
    Program(
        'rms_norm',
        'x * rsqrt(mean(x ** 2, -1) + 1e-6)',
        lambda x_RxD: x_RxD * jax.lax.rsqrt(jnp.mean(x_RxD**2, -1, keepdims=True) + 1e-6),
        lambda x_RxD: x_RxD / np.sqrt(np.mean(x_RxD**2, -1, keepdims=True) + 1e-6),
        lambda: _integers((4099, 16)),
        1e-4,
    ),
    Program(
        'argmax',
        'argmax(x, -1)',
        lambda x_RxV: jnp.argmax(x_RxV, -1),
        lambda x_RxV: np.argmax(x_RxV, -1),
        lambda: _integers((36_865, 6)),
        0.0,
    ),
)


def check(programs: Sequence[Program] = PROGRAMS) -> None:
    """Runs `programs` on the default device and compares with float64 NumPy.

    Args:
        programs: what to run. A test plants a fault here.

    Raises:
        BackendError: at least one program gave a wrong or non-finite output.
    """
    wrong = []
    # All are launched before the first is waited for: compilation of one overlaps with the run of
    # another.
    launched = [
        (program, inputs, jax.jit(program.device)(*inputs))
        for program, inputs in ((program, program.inputs()) for program in programs)
    ]
    for program, inputs, output in launched:
        result = np.asarray(output).astype(np.float64)
        expected = program.oracle(*(x.astype(np.float64) for x in inputs)).astype(np.float64)
        if result.shape != expected.shape:
            wrong.append(
                f'{program.name} [{program.text}]: shape {result.shape} instead of {expected.shape}'
            )
            continue
        # Written so that a nan counts as wrong.
        bad = ~(np.abs(result - expected) <= program.tolerance * (1 + np.abs(expected)))
        if bad.any():
            first = np.unravel_index(np.argmax(bad), bad.shape)
            wrong.append(
                f'{program.name} [{program.text}]: {bad.sum()} of {bad.size} outputs wrong; the '
                'first, at '
                f'{tuple(int(i) for i in first)}, is {result[first]:g} and should be '
                f'{expected[first]:g}'
            )
    if wrong:
        device = jax.devices()[0]
        raise BackendError(
            f'jaxlib {jaxlib.__version__} computes wrong numbers on {device.platform} '
            f'({device.device_kind}):\n  '
            + '\n  '.join(wrong)
            + '\nTraining on this backend would be silently wrong. Install another release, for '
            'example '
            'pip install "jax!=0.10.2" "jaxlib!=0.10.2", or run with --skip_selfcheck to continue at '
            'your own risk.'
        )
