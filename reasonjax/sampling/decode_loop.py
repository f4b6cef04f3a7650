"""One step of drawing, and loops of steps."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from reasonjax.model import decoding
from reasonjax.model.config import ModelConfig
from reasonjax.model.forward import forward, logits
from reasonjax.sampling import drawing
from reasonjax.sampling.processors import truncate
from reasonjax.sampling.settings import Sampling
from reasonjax.sampling.slots import Progress, is_cache, taken


@dataclasses.dataclass(frozen=True)
class DecodeConstants:
    """What holds for a whole call.

    Attributes:
      sampling: its settings.
      configs: of each model, the policy first.
      params: of each, layers apart.
      combine: of several models' logits; None for one model.
      processors: all, those of `sampling` first.
      pad: the token behind a completion.
      aligned: every row began at time 0, so that one place in the cache serves all.
    """

    sampling: Sampling
    configs: tuple[ModelConfig, ...]
    params: tuple[dict, ...]
    combine: Callable | None
    processors: tuple[Callable, ...]
    pad: int
    aligned: bool


class PromptCache(NamedTuple):
    """A prompt as one model has read it, of each of P prompts or R rows.

    Attributes:
      cache: per layer, its keys and values.
      mask: [P, Tp] bool, positions to attend to.
      start: [P] int32, the rotary position of the last prompt token.
      first: [P] int32, that token, which is fed again as the first input of each completion.
    """

    cache: list[decoding.Cache]
    mask: jax.Array
    start: jax.Array
    first: jax.Array


class RowView(NamedTuple):
    """What holds for rows as long as none takes another completion.

    Attributes:
      read: per model; of prompts that an equal number of adjacent rows share, or one of each row.
      start, first: per model [R] int32, as in `PromptCache`.
      uniform: [R, C, 2] float32, the numbers that each token of the rows' completions is drawn by;
        None where decoding is greedy.
    """

    read: tuple[PromptCache, ...]
    start: tuple[jax.Array, ...]
    first: tuple[jax.Array, ...]
    uniform: jax.Array | None


def of_rows(read: PromptCache, prompt_R: jax.Array) -> PromptCache:
    """Gathers the prompt caches of rows, given each row's prompt [R]."""
    return PromptCache(
        [taken(cache, prompt_R) for cache in read.cache],
        read.mask[prompt_R],
        read.start[prompt_R],
        read.first[prompt_R],
    )


def run(
    fixed: DecodeConstants, view: RowView, s: Progress, go_on: Callable[[Progress], jax.Array]
) -> Progress:
    """Steps while `go_on(state)`; a row that has ended draws nothing and writes nothing."""
    return jax.lax.while_loop(go_on, lambda s: advance(fixed, view, s), s)


def grown(s: Progress, length: int) -> Progress:
    """Extends the rows' own caches to room for `length` tokens."""
    return s.replace(
        own=jax.tree.map(
            lambda cache: decoding.placed(decoding.grown(cache, length)), s.own, is_leaf=is_cache
        )
    )


def advance(fixed: DecodeConstants, view: RowView, s: Progress) -> Progress:
    """Draws one token for every row that has not ended."""
    sampling, greedy = fixed.sampling, fixed.sampling.temperature == 0
    scale = 1.0 if greedy else sampling.temperature
    z, own = [], []
    models = zip(fixed.configs, fixed.params, view.read, view.start, view.first, s.own, strict=True)
    for config, params, read, start, first, caches in models:
        attention = decoding.decode(
            config, read.cache, read.mask, s.time if fixed.aligned else s.step
        )
        # Prompts of different models may end in different tokens.
        last = jnp.where(s.step == 0, first, s.last) if z else s.last
        out = forward(
            params,
            config,
            last[:, None],
            (start + s.step)[:, None],
            attention,
            cache=list(enumerate(caches)),
        )
        z_RxV = logits(params, config, out.hidden[:, 0])
        z.append(z_RxV if scale == 1 else z_RxV / scale)
        own.append([cache for _, cache in out.cache])
    policy = drawing.distribution(z[0])
    wanted = z[0] if fixed.combine is None else fixed.combine(z[0], tuple(z[1:]), s)
    for process in fixed.processors:
        wanted = process(wanted, s)
    wanted = truncate(wanted, sampling.top_k, sampling.top_p, sampling.min_p)
    if greedy:
        token_R = jnp.argmax(wanted, axis=-1).astype(jnp.int32)
    else:
        mass = policy.mass if wanted is z[0] else drawing.distribution(wanted).mass
        if fixed.aligned:
            uniform_Rx2 = jax.lax.dynamic_index_in_dim(view.uniform, s.time, axis=1, keepdims=False)
        else:
            uniform_Rx2 = jnp.take_along_axis(view.uniform, s.step[:, None, None], axis=1)[:, 0]
        token_R = drawing.draw(mass, uniform_Rx2)
    token_R, forced_R, memory = _put(fixed, token_R, s)
    return _record(fixed, s, token_R, forced_R, policy).replace(
        time=s.time + 1, memory=memory, own=own
    )


def _put(
    fixed: DecodeConstants, token_R: jax.Array, s: Progress
) -> tuple[jax.Array, jax.Array, tuple]:
    """Applies forcings in turn to drawn tokens. Returns the tokens [R], whether each was forced
    [R], and the memory of each forcing."""
    forced_R, memory = jnp.zeros_like(s.done), []
    for force, remembered in zip(fixed.sampling.forcing, s.memory, strict=True):
        put_R, after = force(token_R, s, remembered)
        token_R, forced_R = jnp.where(put_R >= 0, put_R, token_R), forced_R | (put_R >= 0)
        memory.append(after)
    return token_R, forced_R, tuple(memory)


def _record(
    fixed: DecodeConstants,
    s: Progress,
    token_R: jax.Array,
    forced_R: jax.Array,
    policy: drawing.Distribution,
) -> Progress:
    C, eos, stop = s.tokens.shape[1], fixed.sampling.eos_ids, fixed.sampling.stop
    active = ~s.done
    tail = jnp.concatenate([s.tail[:, 1:], token_R[:, None]], axis=1) if stop else s.tail
    ends = jnp.isin(token_R, jnp.asarray(eos, jnp.int32)) if eos else jnp.zeros_like(active)
    late_enough = s.step >= fixed.sampling.min_tokens
    for sequence in stop:
        ends |= late_enough & jnp.all(
            tail[:, -len(sequence) :] == jnp.asarray(sequence, jnp.int32), axis=1
        )
    step = s.step + active

    def write(into_RxC: jax.Array, new_R: jax.Array, behind: Any) -> jax.Array:
        if not fixed.aligned:
            here_RxC = active[:, None] & (jnp.arange(C) == s.step[:, None])
            return jnp.where(here_RxC, new_R[:, None].astype(into_RxC.dtype), into_RxC)
        column = jnp.where(active, new_R, behind)[:, None].astype(into_RxC.dtype)
        return jax.lax.dynamic_update_slice_in_dim(into_RxC, column, s.time, axis=1)

    return s.replace(
        step=step,
        last=jnp.where(active, token_R, fixed.pad),
        done=s.done | ends | (step >= C),
        terminated=s.terminated | (active & ends),
        tokens=write(s.tokens, token_R, fixed.pad),
        logprob=write(s.logprob, policy.logprob(token_R), 0.0),
        entropy=write(s.entropy, policy.entropy(), 0.0),
        forced=None if s.forced is None else write(s.forced, forced_R, False),
        tail=tail,
    )
