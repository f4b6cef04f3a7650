"""A step whose batches are made on the device: what makes them and the updates that read them as
one program."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reasonjax import randomness
from reasonjax.training.step import State
from reasonjax.weights.partition import combine


class OnDeviceSource(NamedTuple):
    """The part of a source of batches that is compiled into one program with the updates.

    Attributes:
      produce: `(params, fixed, given, key) -> (batches, seen, kept)`, traced: what one step trains
        on, from what the host gives it. Of `batches` there are as many as a pass has updates;
        `seen` goes to the host at every step, `kept` only where it is asked for.
      fixed: arrays that `produce` reads besides, the same at every step.
      report: `(step, host, seen, kept) -> (metrics, tokens)`, on the host, in the order of the
        steps: `host` is what the feed has kept for the step, `seen` is fetched, `kept()`
        fetches.
      iterations: steps that a call of the program does.
    """

    produce: Callable[[Any, Any, Any, jax.Array], tuple[list[dict], Any, Any]]
    fixed: Any
    report: Callable[[int, Any, Any, Callable[[], Any]], tuple[dict[str, float], int]]
    iterations: int = 1


class StepInputs(NamedTuple):
    """What the host gives to a call of a program that makes its own batches, see `OnDeviceSource`.

    Attributes:
      arrays: on the mesh, the first axis of each over the steps of the call.
      host: per step, what `OnDeviceSource.report` is to know.
    """

    arrays: Any
    host: list


class Measured(NamedTuple):
    """A step that is done: its number, its metrics on the host, the tokens produced or read in
    it."""

    step: int
    metrics: dict[str, float]
    tokens: int


def make_iterations(
    produce: Callable, update: Callable, *, updates: int, stage: int
) -> Callable[[State, Any, Any, Any, jax.Array, jax.Array], tuple[State, Any]]:
    """Builds a run of steps as one function.

    Args:
      produce: see `OnDeviceSource`.
      update: what `step.make_update` returns.
      updates: per step; they go over the batches of `produce` in turn, as often as needed.
      stage: number of the stage in the run.

    Returns:
      `(state, frozen, fixed, given, seed, first) -> (state, (metrics, seen, kept))`. The leaves of
      `given` have a leading axis over steps, of which `first` is the number; so has what is
      returned besides the state, and the metrics of updates have a second one over these. `seed` is
      that of the run, an integer or an array.
    """

    def iteration(
        state: State, frozen: Any, fixed: Any, given: Any, seed: jax.Array, step: jax.Array
    ) -> tuple[State, Any]:
        batches, seen, kept = produce(
            combine(state.trainable, frozen),
            fixed,
            given,
            randomness.key(seed, stage, step, 'rollout'),
        )

        def one(state: State, i: jax.Array, batch: dict) -> tuple[State, dict]:
            return update(
                state,
                frozen,
                batch,
                randomness.key(seed, stage, (step - 1) * updates + i, 'update'),
            )

        if updates == 1:
            state, metrics = one(state, 0, *batches)
            return state, (jax.tree.map(lambda x: x[None], metrics), seen, kept)
        # A loop, so that the update is compiled once.
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches)

        def body(state: State, i: jax.Array) -> tuple[State, dict]:
            return one(
                state,
                i,
                jax.tree.map(
                    lambda x: jax.lax.dynamic_index_in_dim(x, i % len(batches), keepdims=False),
                    stacked,
                ),
            )

        state, metrics = jax.lax.scan(body, state, jnp.arange(updates))
        return state, (metrics, seen, kept)

    def iterations(
        state: State, frozen: Any, fixed: Any, given: Any, seed: jax.Array, first: jax.Array
    ) -> tuple[State, Any]:
        number = len(jax.tree.leaves(given)[0])
        if number == 1:
            state, results = iteration(
                state, frozen, fixed, jax.tree.map(lambda x: x[0], given), seed, first
            )
            return state, jax.tree.map(lambda x: x[None], results)

        def body(state: State, this: tuple) -> tuple[State, Any]:
            given, step = this
            return iteration(state, frozen, fixed, given, seed, step)

        return jax.lax.scan(body, state, (given, first + jnp.arange(number)))

    return iterations


def fetch(on_device: OnDeviceSource, first: int, host: list, device: tuple) -> list[Measured]:
    """Fetches the results of the steps from `first` on. `device` is what the program of
    `make_iterations` returned, `host` is from its `StepInputs`."""
    (metrics, seen), results = jax.device_get(device[:2]), []
    kept = functools.cache(lambda: jax.device_get(device[2]))
    for i, known in enumerate(host):
        known_metrics, tokens = on_device.report(
            first + i, known, _at(seen, i), lambda i=i: _at(kept(), i)
        )
        results.append(
            Measured(
                first + i,
                {name: float(np.mean(x[i])) for name, x in metrics.items()} | known_metrics,
                tokens,
            )
        )
    return results


def _at(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda x: x[i], tree)
