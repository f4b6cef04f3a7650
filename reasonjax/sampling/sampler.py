"""The sampler: each prompt is read once for all its completions, and one compiled program draws
them until all have ended.

`generate` is `prefill` and then `decode`; the two are apart so that each can be compiled, and
looked at, alone. It takes the parameters as an argument, so there is no second engine, no weight
sync and no stale policy; and it calls the same forward as training, so its log-probs are the
trainer's.

The settings that are about speed and memory (`slots`, `burst`, `cache_length`, `halvings`,
`prefill_chunk`) change no draw: a token depends on the key, the prompt's number, the sample's
number and the token's place, and on logits that they change by rounding at most.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from reasonjax.errors import UserError
from reasonjax.model import decoding
from reasonjax.model.attention import causal
from reasonjax.model.config import ModelConfig
from reasonjax.model.forward import forward, unstack
from reasonjax.parallel import layout
from reasonjax.sampling import decode_loop, drawing, slots
from reasonjax.sampling import processors as limits
from reasonjax.sampling.settings import Sampling
from reasonjax.sampling.slots import Progress, Rollout
from reasonjax.weights.linear import is_weight

__all__ = [
    'Companion',
    'Processor',
    'Progress',
    'Rollout',
    'Sampling',
    'decode',
    'generate',
    'prefill',
]

DEFAULT = Sampling()

# (logits [R, V] float32 divided by the temperature, state) -> logits to draw from
Processor = Callable[[jax.Array, Progress], jax.Array]
# (logits [R, V] of the policy, those of each companion, state) -> logits to draw from; all are
# divided by the temperature
Combine = Callable[[jax.Array, tuple[jax.Array, ...], Progress], jax.Array]


@flax.struct.dataclass
class Companion:
    """Another model that reads the same completions token by token, with a cache of its own.

    Attributes:
      params: its parameters.
      prompts: its prompts, as `generate` takes them (another width, or other texts, such as prompts
        without their condition).
      config: its shape; the vocabulary is the policy's.
    """

    params: dict
    prompts: dict[str, jax.Array]
    config: ModelConfig = flax.struct.field(pytree_node=False)


def generate(
    params: dict,
    config: ModelConfig,
    prompts: dict[str, jax.Array],
    key: jax.Array,
    sampling: Sampling,
    processors: tuple[Processor, ...] = (),
    companions: tuple[Companion, ...] = (),
    combine: Combine | None = None,
) -> Rollout:
    """Draws G completions of every prompt.

    Randomness is counted: the draw of a token depends on `key`, the prompt's `index`, the sample's
    number and the token's place, never on the batch or the row it happens to be in.

    Args:
      params: parameter tree.
      config: the model's shape.
      prompts: `tokens`, `positions`, `segments` [P, Tp] int32, padded on the left (the last column
        is every prompt's last token), and `index` [P], the prompts' global numbers.
      key: PRNG key of this call: (seed, step, stream) folded in.
      sampling: see `Sampling`.
      processors: applied in turn to the temperature-scaled logits, behind those that `sampling`
        names and before top-k, top-p and min-p. The recorded log-prob is that of the distribution
        they are given: the policy's own.
      companions: other models whose logits `combine` gets.
      combine: makes of all models' logits those that processors see; needed with companions.
    """
    cache = prefill(params, config, prompts, sampling)
    return decode(params, config, prompts, cache, key, sampling, processors, companions, combine)


def prefill(
    params: dict, config: ModelConfig, prompts: dict[str, jax.Array], sampling: Sampling = DEFAULT
) -> list[decoding.Cache]:
    """Reads the prompts, once for all completions of each.

    Args:
      params: parameter tree.
      config: the model's shape.
      prompts: as `generate` takes them.
      sampling: of which `prefill_chunk` and `cache_dtype` matter.

    Returns:
      Per layer, the keys and values of every prompt position.
    """
    int8, chunk = sampling.cache_dtype == 'int8', sampling.prefill_chunk
    if chunk and chunk < prompts['tokens'].shape[1]:
        caches = _read_in_chunks(params, config, prompts, chunk)
        if int8:
            caches = [
                decoding.stored(cache.k.transpose(0, 3, 1, 2), cache.v.swapaxes(1, 2), int8)
                for cache in caches
            ]
    else:
        attention = causal(config, prompts['segments'], keep=True)
        out = forward(
            params,
            dataclasses.replace(config, remat='none'),
            prompts['tokens'],
            prompts['positions'],
            attention,
        )
        layers = (
            out.cache
            if isinstance(out.cache, list)
            else [[x[i] for x in out.cache] for i in range(config.layers)]
        )
        caches = [decoding.stored(k, v, int8) for k, v in layers]
    return [decoding.placed(cache) for cache in caches]


def decode(
    params: dict,
    config: ModelConfig,
    prompts: dict[str, jax.Array],
    prompt_cache: list[decoding.Cache],
    key: jax.Array,
    sampling: Sampling,
    processors: tuple[Processor, ...] = (),
    companions: tuple[Companion, ...] = (),
    combine: Combine | None = None,
) -> Rollout:
    """Draws completions of prompts that `prefill` has read; the other arguments are those of
    `generate`."""
    if companions and combine is None:
        raise UserError(
            f'{len(companions)} companions, but no function that combines their logits with those '
            'of the policy.'
        )
    prompts, companions = jax.tree.map(jnp.asarray, (prompts, companions))
    configs = (config, *(other.config for other in companions))
    models = zip((params, *(other.params for other in companions)), configs, strict=True)
    params, configs = zip(*(_ready(*model) for model in models), strict=True)
    read = [_read(prompts, prompt_cache)]
    read += [
        _read(other.prompts, prefill(other.params, other.config, other.prompts, sampling))
        for other in companions
    ]
    P, G, C = len(prompts['tokens']), sampling.num_generations, sampling.max_tokens
    rows = min(sampling.slots or P * G, P * G)
    fixed = decode_loop.DecodeConstants(
        sampling,
        configs,
        params,
        combine if companions else None,
        _processors(sampling) + processors,
        pad=max(config.pad_id, 0),
        aligned=rows == P * G,
    )
    # All at once: for a few rows at a time they would take as long as the rest of a draw.
    uniform = None if sampling.temperature == 0 else _uniforms(key, prompts['index'], G, C)
    rollout = _drawn(fixed, _Jobs(prompts, tuple(read), uniform, G, C), rows)
    return jax.tree.map(lambda x: x.reshape(P, G, *x.shape[1:]), rollout)


@dataclasses.dataclass(frozen=True)
class _Jobs:
    """All completions of a call: their prompts, as they are and as each model has read them, and
    the numbers they are drawn by."""

    prompts: dict[str, jax.Array]
    read: tuple[decode_loop.PromptCache, ...]
    uniform: jax.Array | None
    G: int
    C: int

    @property
    def number(self) -> int:
        return self.G * len(self.prompts['tokens'])

    def prompt_of(self, job_R: jax.Array) -> jax.Array:
        return jnp.minimum(job_R, self.number - 1) // self.G

    def begin(self, fixed: decode_loop.DecodeConstants, job_R: jax.Array) -> dict[str, Any]:
        """Builds the state of rows at the start of the completions `job_R`."""
        prompt_R = self.prompt_of(job_R)
        text_PxTp = jnp.where(self.prompts['segments'] > 0, self.prompts['tokens'], -1)
        shape = self.C, max(map(len, fixed.sampling.stop), default=0), fixed.pad
        return slots.fresh(
            self.read[0].first[prompt_R],
            text_PxTp[prompt_R],
            job_R,
            self.number,
            shape,
            fixed.sampling.forcing,
        )

    def whole(self) -> decode_loop.RowView:
        """Returns the view of one row per completion, in order; the rows of a prompt share it."""
        start, first = (
            tuple(jnp.repeat(getattr(one, name), self.G) for one in self.read)
            for name in ('start', 'first')
        )
        return decode_loop.RowView(self.read, start, first, self.uniform)

    def view(self, s: Progress) -> decode_loop.RowView:
        """Returns the view of rows that may be at any completion."""
        read = tuple(decode_loop.of_rows(one, self.prompt_of(s.job)) for one in self.read)
        uniform = (
            None if self.uniform is None else self.uniform[jnp.minimum(s.job, self.number - 1)]
        )
        return decode_loop.RowView(
            read, tuple(one.start for one in read), tuple(one.first for one in read), uniform
        )


def _drawn(fixed: decode_loop.DecodeConstants, jobs: _Jobs, rows: int) -> Rollout:
    """Draws all completions [N, C] in `rows` rows at a time, fewer towards the end."""
    sampling, lengths = fixed.sampling, fixed.sampling.lengths()
    int8 = sampling.cache_dtype == 'int8'
    own = [
        [decoding.placed(decoding.empty(c, rows, lengths[0], int8)) for _ in range(c.layers)]
        for c in fixed.configs
    ]
    s = Progress(time=jnp.zeros((), jnp.int32), own=own, **jobs.begin(fixed, jnp.arange(rows)))
    results = slots.nothing(jobs.number, jobs.C, fixed.pad, bool(sampling.forcing))
    left = [x for i in range(sampling.halvings + 1) if (x := rows >> i)]
    fits = [*left[1:], 0]  # once so few rows draw, the next number of rows is enough
    if fixed.aligned:
        for length in lengths:
            s = decode_loop.run(
                fixed,
                jobs.whole(),
                decode_loop.grown(s, length),
                lambda s, end=length: (s.time < end) & _more(s, fits[0]),
            )
    else:
        s, results = _refilled(fixed, jobs, s, results, fits[0])
    for number, enough in zip(left[1:], fits[1:], strict=True):
        results = slots.collected(results, s)
        s = slots.together(s, number)
        s = decode_loop.run(fixed, jobs.view(s), s, lambda s, enough=enough: _more(s, enough))
    return slots.completions(s) if fixed.aligned and len(left) == 1 else slots.collected(results, s)


def _refilled(
    fixed: decode_loop.DecodeConstants, jobs: _Jobs, s: Progress, results: Rollout, enough: int
) -> tuple[Progress, Rollout]:
    """Bursts of steps; between two, rows that have ended take the next completions. Until none
    waits and few enough rows draw."""
    lengths = fixed.sampling.lengths()

    def turn(state: tuple, end: int) -> tuple:
        s, results, following = state
        results = slots.collected(results, s)
        job_R, following = slots.next_jobs(s, following)
        s = slots.replaced(s, jobs.begin(fixed, job_R))
        until = jnp.minimum(s.time + fixed.sampling.burst, end)
        s = decode_loop.run(fixed, jobs.view(s), s, lambda s: (s.time < until) & _more(s, 0))
        return s, results, following

    following = jnp.asarray(len(s.job), jnp.int32)
    for length in lengths:
        # No row is further than the loop: a shorter cache is long enough for as many steps,
        # whatever has been refilled.
        end = jnp.iinfo(jnp.int32).max if length == lengths[-1] else length

        def go_on(state: tuple, end: int = end) -> jax.Array:
            s, _, following = state
            return (s.time < end) & ((following < jobs.number) | _more(s, enough))

        start = (decode_loop.grown(s, length), results, following)
        s, results, following = jax.lax.while_loop(go_on, lambda x, end=end: turn(x, end), start)
    return s, results


def _more(s: Progress, enough: int) -> jax.Array:
    """Returns whether more than `enough` rows have not ended."""
    return jnp.sum(~s.done) > enough


def _processors(sampling: Sampling) -> tuple[Processor, ...]:
    """Builds the logits processors that the settings ask for, in the order of transformers."""
    wanted = {
        limits.RepetitionPenalty(sampling.repetition_penalty): sampling.repetition_penalty != 1,
        limits.NoRepeatNgram(sampling.no_repeat_ngram_size): sampling.no_repeat_ngram_size > 0,
        limits.MinTokens(sampling.min_tokens, sampling.eos_ids): sampling.min_tokens > 0,
    }
    return tuple(process for process, on in wanted.items() if on)


def _read(prompts: dict[str, jax.Array], cache: list[decoding.Cache]) -> decode_loop.PromptCache:
    # The last prompt token is fed again as each row's first input: every token then comes from the
    # same code, and the prompt part of the attention covers the tokens before it.
    Tp = prompts['tokens'].shape[1]
    mask = (prompts['segments'] > 0) & (jnp.arange(Tp) < Tp - 1)
    return decode_loop.PromptCache(
        cache, mask, prompts['positions'][:, -1], prompts['tokens'][:, -1]
    )


def _ready(params: dict, config: ModelConfig) -> tuple[dict, ModelConfig]:
    """Parameters and shape as the loop over tokens wants them, made once."""
    # Slices of stacked weights would be copied again for every token.
    if not isinstance(params['layers'], list):
        params = params | {'layers': unstack(params['layers'], config.layers)}
    config = dataclasses.replace(config, scan=False, remat='none')
    if config.tied and not is_weight(params['embed']) and layout.platform() == 'cpu':
        # Read as it lies, the table would be turned round for every token: a fifth of the time of
        # all weights at 4,096 entries.
        head = jax.lax.optimization_barrier(params['embed'].T)
        params, config = params | {'head': head}, dataclasses.replace(config, tied=False)
    return params, config


def _uniforms(key: jax.Array, index_P: jax.Array, G: int, C: int) -> jax.Array:
    """Draws the uniform numbers of the tokens, [P * G, C, 2] float32, keyed by the numbers of
    prompt, sample and place."""

    def under(keys: jax.Array, numbers: jax.Array) -> jax.Array:
        return jax.vmap(lambda k: jax.vmap(jax.random.fold_in, (None, 0))(k, numbers))(
            keys
        ).reshape(-1)

    keys = under(key[None], index_P.astype(jnp.uint32))
    for number in (G, C):
        keys = under(keys, jnp.arange(number))
    return drawing.uniforms(keys).reshape(-1, C, 2)


def _read_in_chunks(
    params: dict, config: ModelConfig, prompts: dict[str, jax.Array], chunk: int
) -> list[decoding.Cache]:
    """Computes the prompts' keys and values, a chunk of positions at a time."""
    P, Tp = prompts['tokens'].shape
    number = -(-Tp // chunk)
    more = number * chunk - Tp
    tokens, positions, segments = (
        jnp.pad(prompts[name], ((0, 0), (more, 0))) for name in ('tokens', 'positions', 'segments')
    )
    params, config = _ready(params, config)

    def step(i: jax.Array, caches: list[decoding.Cache]) -> list[decoding.Cache]:
        def of(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1)

        attention = decoding.resumed(config, segments, i * chunk)
        return forward(params, config, of(tokens), of(positions), attention, cache=caches).cache

    empty = [
        decoding.placed(decoding.empty(config, P, number * chunk)) for _ in range(config.layers)
    ]
    caches = jax.lax.fori_loop(0, number, step, empty)
    return [
        decoding.each(lambda x, axis: jax.lax.slice_in_dim(x, more, None, axis=axis), cache)
        for cache in caches
    ]
