"""The rows that draw: which completion each is at, how a row that has ended takes the next one, and
how few rows are left together.

Completions are numbered prompt by prompt: number = prompt * G + sample. All arrays stay on the
devices, and so do all decisions.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from reasonjax.model import decoding


@flax.struct.dataclass
class Rollout:
    """Completions of P prompts, G each.

    Attributes:
      tokens: [P, G, C] int32, PAD after the end.
      logprob: [P, G, C] float32, of each token under the full temperature-scaled distribution,
        before processors, top-k, top-p and min-p; 0 after the end.
      entropy: [P, G, C] float32, of that distribution; 0 after the end.
      length: [P, G] int32, tokens produced, EOS included.
      terminated: [P, G] bool, ended with an EOS or a stop sequence; otherwise it was cut at C.
      forced: [P, G, C] bool, tokens that were put rather than drawn; None where nothing is.
    """

    tokens: jax.Array
    logprob: jax.Array
    entropy: jax.Array
    length: jax.Array
    terminated: jax.Array
    forced: jax.Array | None = None


@flax.struct.dataclass
class Progress:
    """The state of R rows, as processors see it.

    Attributes:
      time: [] int32, steps of the loop so far.
      job: [R] int32, number of the completion; P * G where a row has none.
      step: [R] int32, tokens of the completion so far: the place of the token that is about to be
        drawn.
      last: [R] int32, the token to feed next.
      done: [R] bool, has ended, or has no completion.
      terminated: [R] bool.
      tokens, logprob, entropy: [R, C], as in `Rollout`.
      forced: [R, C] bool or None, as in `Rollout`.
      prompt: [R, Tp] int32, the tokens of the row's prompt, -1 in front of it.
      tail: [R, n] int32, the last n tokens of the completion, n those of the longest stop sequence;
        -1 where there are fewer.
      memory: what each forcing remembers.
      own: per model and layer, the keys and values of the completion: `model.decoding.Cache` of R
        rows.
    """

    time: jax.Array
    job: jax.Array
    step: jax.Array
    last: jax.Array
    done: jax.Array
    terminated: jax.Array
    tokens: jax.Array
    logprob: jax.Array
    entropy: jax.Array
    forced: jax.Array | None
    prompt: jax.Array
    tail: jax.Array
    memory: Any
    own: Any


def fresh(
    first: jax.Array,
    prompt_RxTp: jax.Array,
    job_R: jax.Array,
    number: int,
    shape: tuple,
    forcing: tuple,
) -> dict[str, Any]:
    """Builds all fields of `Progress` but `time` and `own`, at the start of completions `job_R`.

    Args:
      first: [R] int32, the tokens to feed: the last of each prompt.
      prompt_RxTp: int32, the prompts, -1 in front.
      job_R: int32; numbers from `number` on are no completions.
      number: of completions.
      shape: (C, n, PAD): longest completion, longest stop sequence, the token after a completion.
      forcing: see `rollout.forcing`.
    """
    R, (C, n, pad) = len(job_R), shape
    return dict(
        job=jnp.minimum(job_R, number),
        step=jnp.zeros(R, jnp.int32),
        last=first,
        done=job_R >= number,
        terminated=jnp.zeros(R, bool),
        tokens=jnp.full((R, C), pad, jnp.int32),
        logprob=jnp.zeros((R, C)),
        entropy=jnp.zeros((R, C)),
        forced=jnp.zeros((R, C), bool) if forcing else None,
        prompt=prompt_RxTp,
        tail=jnp.full((R, n), -1, jnp.int32),
        memory=tuple(force.init(R) for force in forcing),
    )


def nothing(number: int, C: int, pad: int, forced: bool) -> Rollout:
    """Allocates the results of N completions: arrays [N, C]."""
    return Rollout(
        tokens=jnp.full((number, C), pad, jnp.int32),
        logprob=jnp.zeros((number, C)),
        entropy=jnp.zeros((number, C)),
        length=jnp.zeros(number, jnp.int32),
        terminated=jnp.zeros(number, bool),
        forced=jnp.zeros((number, C), bool) if forced else None,
    )


def completions(s: Progress) -> Rollout:
    """Returns what the rows hold: arrays [R, C]."""
    return Rollout(s.tokens, s.logprob, s.entropy, s.step, s.terminated, s.forced)


def collected(results: Rollout, s: Progress) -> Rollout:
    """Writes the completions of rows that have ended into the results, each in its place. Rows
    without one write nothing."""
    number = len(results.length)
    to_R = jnp.where(s.done, s.job, number)
    return jax.tree.map(lambda all_, x: all_.at[to_R].set(x, mode='drop'), results, completions(s))


def next_jobs(s: Progress, following: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gives the next completions to rows that have ended, in their order.

    Args:
      s: rows.
      following: [] int32, number of the first completion that no row has had.

    Returns:
      The number for each row, and the first after them.
    """
    rank_R = jnp.cumsum(s.done.astype(jnp.int32)) - 1
    return jnp.where(s.done, following + rank_R, s.job), following + jnp.sum(s.done)


def replaced(s: Progress, new: dict[str, Any]) -> Progress:
    """Replaces rows that have ended by fresh ones. Their caches stay, because places from `step` on
    are not attended to."""
    old = {name: getattr(s, name) for name in new}

    def of_ended(fresh_Rx: jax.Array, old_Rx: jax.Array) -> jax.Array:
        return jnp.where(s.done.reshape(-1, *[1] * (old_Rx.ndim - 1)), fresh_Rx, old_Rx)

    return s.replace(**jax.tree.map(of_ended, new, old))


def together(s: Progress, rows: int) -> Progress:
    """Keeps `rows` rows: those that have not ended, in order, then as many others as needed."""
    order = jnp.argsort(s.done, stable=True)[:rows]
    own = jax.tree.map(lambda cache: taken(cache, order), s.own, is_leaf=is_cache)
    rest = s.replace(own=None, time=None)
    return jax.tree.map(lambda x: x[order], rest).replace(own=own, time=s.time)


def taken(cache: decoding.Cache, rows: jax.Array) -> decoding.Cache:
    """Returns the given rows of a cache, sharded as caches are."""
    return decoding.placed(decoding.each(lambda x, axis: x[rows], cache))


def is_cache(x: Any) -> bool:
    return isinstance(x, decoding.Cache)
