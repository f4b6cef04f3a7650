"""The sampler: one prefill per prompt, one prompt cache shared by its samples, one compiled loop that stops when every row has.

`generate` is `prefill` and then `decode`; the two are apart so that each can be compiled, and looked at, alone.
It takes the parameters as an argument, so there is no second engine, no weight sync and no stale policy; and it calls the same forward as
training, so its log-probs are the trainer's.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from reasonjax.errors import UserError
from reasonjax.model.attention import Own, Prompt, causal
from reasonjax.model.attention import decode as of_one_token
from reasonjax.model.config import ModelConfig
from reasonjax.model.forward import forward, logits, unstack
from reasonjax.model.score import distribution_scores
from reasonjax.parallel import layout
from reasonjax.rollout import processors as limits

# (logits [B, V] float32 divided by the temperature, state) -> logits to draw from
Processor = Callable[[jax.Array, 'Progress'], jax.Array]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How completions are drawn (static: part of the compiled program).

    Attributes:
      num_generations: G, completions per prompt.
      max_tokens: C, longest completion, its EOS included.
      temperature: logits are divided by it; 0 is greedy (log-probs are then those at temperature 1).
      top_k: keep the k most likely tokens; 0 keeps all.
      top_p: keep the smallest set of most likely tokens whose mass reaches it; 1 keeps all.
      min_p: drop tokens less likely than this share of the most likely one; 0 keeps all.
      eos_ids: any of these ends a completion.
    """

    num_generations: int = 1
    max_tokens: int = 512
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        checks = {
            'num_generations': (self.num_generations >= 1, 'at least 1'),
            'max_tokens': (self.max_tokens >= 1, 'at least 1'),
            'temperature': (self.temperature >= 0, '0 (greedy) or more'),
            'top_k': (self.top_k >= 0, '0 (off) or more'),
            'top_p': (0 < self.top_p <= 1, 'in (0, 1]; 1 is off'),
            'min_p': (0 <= self.min_p < 1, 'in [0, 1); 0 is off'),
        }
        for name, (holds, wanted) in checks.items():
            if not holds:
                raise UserError(f'sampling.{name}={getattr(self, name)}: must be {wanted}.')


@flax.struct.dataclass
class Rollout:
    """Completions of P prompts, G each.

    Attributes:
      tokens: [P, G, C] int32, PAD after the end.
      logprob: [P, G, C] float32, of each token under the full temperature-scaled distribution, before processors, top-k, top-p and min-p;
        0 after the end.
      entropy: [P, G, C] float32, of that distribution; 0 after the end.
      length: [P, G] int32, tokens produced, EOS included.
      terminated: [P, G] bool, ended with an EOS; otherwise it was cut at C.
    """

    tokens: jax.Array
    logprob: jax.Array
    entropy: jax.Array
    length: jax.Array
    terminated: jax.Array


@flax.struct.dataclass
class Progress:
    """The loop's state, as processors see it: B = P * G rows, samples of a prompt adjacent.

    Attributes:
      step: [] int32, tokens produced by every unfinished row.
      last: [B] int32, the token to feed next.
      done: [B] bool.
      tokens, logprob, entropy: [B, C].
      cache: per layer, `(layer, Own)`.
    """

    step: jax.Array
    last: jax.Array
    done: jax.Array
    tokens: jax.Array
    logprob: jax.Array
    entropy: jax.Array
    cache: Any


def generate(
    params: dict,
    config: ModelConfig,
    prompts: dict[str, jax.Array],
    key: jax.Array,
    sampling: Sampling,
    processors: tuple[Processor, ...] = (),
) -> Rollout:
    """Draws G completions of every prompt.

    Randomness is counted: the draw of a token depends on `key`, the prompt's `index`, the sample's number and the token's place, never on
    the batch it happens to be in.

    Args:
      params: parameter tree.
      config: the model's shape.
      prompts: `tokens`, `positions`, `segments` [P, Tp] int32, padded on the left (the last column is every prompt's last token), and
        `index` [P], the prompts' global numbers.
      key: PRNG key of this call: (seed, step, stream) folded in.
      sampling: see `Sampling`.
      processors: applied in turn to the temperature-scaled logits, before top-k, top-p and min-p. The recorded log-prob is that of the
        distribution they are given: the policy's own.
    """
    return decode(params, config, prompts, prefill(params, config, prompts), key, sampling, processors)


def apart(params: dict, config: ModelConfig) -> dict:
    """Parameters with the stack of layers taken apart, once: slices of stacked weights would be copied again for every token."""
    layers = params['layers']
    return params if isinstance(layers, list) else params | {'layers': unstack(layers, config.layers)}


def prefill(params: dict, config: ModelConfig, prompts: dict[str, jax.Array]) -> list[Prompt]:
    """Reads the prompts, once for all completions of each.

    Args:
      params: parameter tree.
      config: the model's shape.
      prompts: as `generate` takes them.

    Returns:
      Per layer, the keys and values of every prompt position, in the compute dtype.
    """
    attention = causal(config, prompts['segments'], keep=True)
    out = forward(params, dataclasses.replace(config, remat='none'), prompts['tokens'], prompts['positions'], attention)
    layers = out.cache if isinstance(out.cache, list) else [[x[i] for x in out.cache] for i in range(config.layers)]
    return [Prompt(*(_cache(x.swapaxes(1, 2)) for x in layer)) for layer in layers]


def decode(
    params: dict,
    config: ModelConfig,
    prompts: dict[str, jax.Array],
    prompt_cache: list[Prompt],
    key: jax.Array,
    sampling: Sampling,
    processors: tuple[Processor, ...] = (),
) -> Rollout:
    """Draws completions of prompts that `prefill` has read; the other arguments are those of `generate`."""
    P, Tp = prompts['tokens'].shape
    G, C = sampling.num_generations, sampling.max_tokens
    B, K, d, dtype = P * G, config.kv_heads, config.head_dim, jnp.dtype(config.compute_dtype)
    params, unrolled = apart(params, config), _unrolled(config)
    # The last prompt token is fed again as each row's first input: every token then comes from the same code, and the prompt part of the
    # attention covers the tokens before it.
    prompt_mask_PxTp = (prompts['segments'] > 0) & (jnp.arange(Tp) < Tp - 1)
    start_B = jnp.repeat(prompts['positions'][:, -1], G)
    row_keys = _row_keys(key, prompts['index'], G)
    eos = jnp.asarray(sampling.eos_ids, jnp.int32)
    pad = max(config.pad_id, 0)

    def empty() -> jax.Array:
        return _cache(jnp.zeros((B, K, C, d), dtype))

    begin = Progress(
        step=jnp.zeros((), jnp.int32),
        last=jnp.repeat(prompts['tokens'][:, -1], G),
        done=jnp.zeros(B, bool),
        tokens=jnp.full((B, C), pad, jnp.int32),
        logprob=jnp.zeros((B, C)),
        entropy=jnp.zeros((B, C)),
        cache=[Own(empty(), empty()) for _ in range(config.layers)],
    )

    def advance(s: Progress) -> Progress:
        caches = list(enumerate(s.cache))
        attention = of_one_token(config, prompt_cache, prompt_mask_PxTp, s.step)
        out = forward(params, unrolled, s.last[:, None], (start_B + s.step)[:, None], attention, cache=caches)
        z_BxV = logits(params, config, out.hidden[:, 0])
        greedy = sampling.temperature == 0
        z_BxV = z_BxV if greedy else z_BxV / sampling.temperature
        drawn_from = z_BxV
        for process in processors:
            drawn_from = process(drawn_from, s)
        drawn_from = limits.truncate(drawn_from, sampling.top_k, sampling.top_p, sampling.min_p)
        if not greedy:
            keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, s.step)
            drawn_from = drawn_from + jax.vmap(lambda k: jax.random.gumbel(k, z_BxV.shape[1:]))(keys)
        drawn_B = jnp.argmax(drawn_from, axis=-1).astype(jnp.int32)
        scored = distribution_scores(z_BxV, drawn_B)

        def write(into: jax.Array, new: jax.Array, after_end: Any) -> jax.Array:
            column = jnp.where(s.done, after_end, new)[:, None].astype(into.dtype)
            return jax.lax.dynamic_update_slice_in_dim(into, column, s.step, axis=1)

        return Progress(
            step=s.step + 1,
            last=jnp.where(s.done, pad, drawn_B),
            done=s.done | jnp.isin(drawn_B, eos),
            tokens=write(s.tokens, drawn_B, pad),
            logprob=write(s.logprob, scored.logprob, 0.0),
            entropy=write(s.entropy, scored.entropy, 0.0),
            cache=[own for _, own in out.cache],
        )

    end = jax.lax.while_loop(lambda s: (s.step < C) & ~jnp.all(s.done), advance, begin)
    return _finish(end, eos, P, G)


def _unrolled(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, scan=False, remat='none')


def _cache(x_BxKxTxd: jax.Array) -> jax.Array:
    """Keys or values, where they stay: rows split over devices as those of a batch, heads as those of the weights that make them."""
    return layout.constrain(x_BxKxTxd, 'batch', 'kv_heads', None, None)


def _row_keys(key: jax.Array, index_P: jax.Array, G: int) -> jax.Array:
    per_prompt = jax.vmap(jax.random.fold_in, (None, 0))(key, index_P.astype(jnp.uint32))
    return jax.vmap(lambda k: jax.vmap(jax.random.fold_in, (None, 0))(k, jnp.arange(G)))(per_prompt).reshape(-1)


def _finish(end: Progress, eos: jax.Array, P: int, G: int) -> Rollout:
    C = end.tokens.shape[1]
    is_eos_BxC = jnp.isin(end.tokens, eos)
    terminated_B = is_eos_BxC.any(axis=1)
    length_B = jnp.where(terminated_B, is_eos_BxC.argmax(axis=1) + 1, C).astype(jnp.int32)
    shape = (P, G)
    return Rollout(
        tokens=end.tokens.reshape(*shape, C),
        logprob=end.logprob.reshape(*shape, C),
        entropy=end.entropy.reshape(*shape, C),
        length=length_B.reshape(shape),
        terminated=terminated_B.reshape(shape),
    )
