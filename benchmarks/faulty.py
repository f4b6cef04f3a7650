"""A training program with one fault in it, for `benchmarks.faults`:  python -m benchmarks.faulty
PLAN ARGUMENTS OF reasonjax.train

PLAN is JSON. `kill`: {'point': 'module:path.of.function', 'call': which, 'after': seconds}: SIGKILL
to itself so long after that call has begun. `limit`: no file may grow beyond so many bytes. `nan`:
batches of the data, by position, that hold weights that are not numbers.
"""

import importlib
import itertools
import json
import os
import resource
import signal
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np

from reasonjax import train
from reasonjax.data import pipeline
from reasonjax.methods.objectives import nll


def digits(prompts: list, completions: list, **columns: list) -> list[float]:
    """A reward that differs from sample to sample, so that a model that knows nothing has something
    to learn."""
    del prompts, columns
    return [sum(map(str.isdigit, text)) + 0.1 * len(text) for text in completions]


def sometimes(prompts: list, completions: list, **columns: list) -> list[float]:
    """The same, but not a number for every completion that begins with an odd digit."""
    return [
        float('nan') if text[:1] in '13579' and text else value
        for text, value in zip(completions, digits(prompts, completions))
    ]


def steep(score, batch, key):
    """Negative log-likelihood; where a batch's weights are marked (see `nan`), the loss is finite
    and its gradient is not."""
    marked = jnp.isnan(batch['weights'][0, 0])
    loss, metrics = nll(
        score,
        batch | {name: jnp.nan_to_num(batch[name], nan=1.0) for name in ('weights', 'step_weight')},
        key,
    )
    return loss + jnp.sqrt(jnp.where(marked, 0.0, 1.0) + 0 * loss) - jax.lax.stop_gradient(
        jnp.where(marked, 0.0, 1.0)
    ), metrics


def plant_kill(point: str, call: int, after: float) -> None:
    """Replaces a function by one that ends the process `after` seconds from the beginning of its
    `call`th call."""
    module, _, path = point.partition(':')
    *parents, name = path.split('.')
    owner = importlib.import_module(module)
    for parent in parents:
        owner = getattr(owner, parent)
    real, calls = getattr(owner, name), itertools.count(1)

    def planted(*given, **options):
        if next(calls) == call:
            if not after:
                os.kill(os.getpid(), signal.SIGKILL)
            threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return real(*given, **options)

    setattr(owner, name, planted)


def plant_nan(positions: list[int]) -> None:
    """Spoils the weights of the batches at these positions of the data, whenever they are read."""
    real = pipeline.Batches.__next__

    def next_(batches):
        batch = real(batches)
        if batches.counters['examples'] // len(batch['tokens']) not in positions:
            return batch
        return batch | {'weights': np.full_like(batch['weights'], np.nan)}

    pipeline.Batches.__next__ = next_


def main(arguments: list[str]) -> int:
    plan = json.loads(arguments[0])
    if 'limit' in plan:
        resource.setrlimit(
            resource.RLIMIT_FSIZE, (plan['limit'], resource.getrlimit(resource.RLIMIT_FSIZE)[1])
        )
    if 'nan' in plan:
        plant_nan(plan['nan'])
    if 'kill' in plan:
        plant_kill(**plan['kill'])
    return train.main(arguments[1:])


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
