"""Completions that share a prompt: the prompt is read once for all of them, and only completions
meet the vocabulary.

A batch of rows [B, C] with their prompts beside them goes through one forward pass as S shards,
each p prompts of Tp tokens and then n bins of L tokens. A bin holds one completion, or several of
the same prompt. Its queries meet its prompt's keys and its own in one softmax, as if each
completion stood behind its prompt in a row of its own; the masks are those of a prompt and of a
bin, never of a whole shard, which would grow with the square of all its completions (Liu et al.
2025, arXiv:2506.05433, share prompts so; bins are ours).
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from reasonjax.model import kernels
from reasonjax.model.attention import causal, earlier, in_chunks, seen_by
from reasonjax.model.config import ModelConfig
from reasonjax.model.forward import Attention, Tap, forward
from reasonjax.model.logprobs import Scored, token_scores

# What is read of a batch besides its rows' tokens, segments and positions.
PROMPTS = ('prompt_tokens', 'prompt_segments', 'prompt_positions')
PLACES = ('packed_from', 'packed_at')


class Shards(NamedTuple):
    """A batch as the forward pass reads it.

    Attributes:
      of_prompt: tokens, segments and positions of the prompts [S * p, Tp], padded on the left.
      prompt_of_bin: [S, n] int32, the prompt of each bin within its shard.
      tokens, inputs, positions: of the bins [S * n, L].
      segments: [S * n, L] int32, 0 = padding; differs between the completions of a bin.
      row: [S * n, L] int32, the place's row within the shard; -1 = padding.
      attend: [S * n, L] bool, or None.
      places: [B, C] int32, where in its shard's bins each token of a row went, -1 = nowhere; None
        where bins are the rows.
    """

    of_prompt: tuple[jax.Array, jax.Array, jax.Array]
    prompt_of_bin: jax.Array
    tokens: jax.Array
    inputs: jax.Array
    positions: jax.Array
    segments: jax.Array
    row: jax.Array
    attend: jax.Array | None
    places: jax.Array | None

    def join(self, of_prompts: jax.Array, of_bins: jax.Array) -> jax.Array:
        """Joins prompts [S * p, Tp, ...] and bins [S * n, L, ...] into [S, p * Tp + n * L, ...]."""
        S = len(self.prompt_of_bin)
        return jnp.concatenate(
            [x.reshape(S, -1, *x.shape[2:]) for x in (of_prompts, of_bins)], axis=1
        )

    def split(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Undoes `join`."""
        prompts, bins = self.of_prompt[0].shape, self.tokens.shape
        at = prompts[0] // len(self.prompt_of_bin) * prompts[1]
        return x[:, :at].reshape(*prompts, *x.shape[2:]), x[:, at:].reshape(*bins, *x.shape[2:])

    def for_bins(self, of_prompts: jax.Array) -> jax.Array:
        """Gives each bin the values of its prompt: [S * p, ...] -> [S * n, ...]."""
        S, n = self.prompt_of_bin.shape
        x = of_prompts.reshape(S, -1, *of_prompts.shape[1:])
        if x.shape[1] == 1:
            x = jnp.broadcast_to(x, (S, n, *x.shape[2:]))
        else:
            x = jax.vmap(lambda of_shard, which: of_shard[which])(x, self.prompt_of_bin)
        return x.reshape(S * n, *x.shape[2:])

    def for_rows(self, of_bins: jax.Array) -> jax.Array:
        """Rearranges values of bins [S * n, L] into rows [B, C], zero at padding."""
        if self.places is None:
            return jnp.where(self.segments > 0, of_bins, jnp.zeros((), of_bins.dtype))
        return _picked(of_bins, self.places, len(self.prompt_of_bin)).reshape(self.places.shape)


def shards_of(batch: Mapping[str, jax.Array]) -> Shards:
    """Lays a batch out for the forward pass.

    Args:
      batch: `tokens`, `segments`, `positions` [B, C] of completions, one a row, B / P of each
        prompt adjacent; optionally `inputs` and `attend` [B, C], see `model.score`;
        `prompt_tokens`, `prompt_segments`, `prompt_positions` [P, Tp], padded on the left. Where
        rows are packed, `packed_from` [S, n, L]: place r * C + t of shard s, which holds rows s * B
        / S and on, or -1; and `packed_at` [B, C], its inverse: place i * L + l. Without them S = P,
        and every row is a bin.
    """
    of_prompt, (B, C) = tuple(batch[name] for name in PROMPTS), batch['tokens'].shape
    P = len(of_prompt[0])
    if 'packed_from' not in batch:
        zeros = jnp.zeros((P, B // P), jnp.int32)
        row = jnp.where(batch['segments'] > 0, jnp.arange(B)[:, None] % (B // P), -1)
        inputs = batch.get('inputs', batch['tokens'])
        return Shards(
            of_prompt,
            zeros,
            batch['tokens'],
            inputs,
            batch['positions'],
            batch['segments'],
            row,
            batch.get('attend'),
            places=None,
        )
    S, n, L = batch['packed_from'].shape
    source = batch['packed_from'].reshape(S * n, L)
    row = jnp.where(source < 0, -1, source // C)
    read = {
        name: _picked(batch[name], source, S)
        for name in ('tokens', 'inputs', 'positions', 'attend')
        if name in batch
    }
    # A bin without completions may have any prompt.
    prompt_of_bin = jnp.maximum(row[:, 0], 0).reshape(S, n) // (B // P)
    inputs = read.get('inputs', read['tokens'])
    return Shards(
        of_prompt,
        prompt_of_bin,
        read['tokens'],
        inputs,
        read['positions'],
        row + 1,
        row,
        read.get('attend'),
        batch['packed_at'],
    )


def units(batch: Mapping[str, jax.Array], together: int = 1) -> int:
    """Counts the parts of a batch that have to stay together: shards, or prompts with completions,
    or else `together` rows each."""
    name = next((name for name in ('packed_from', 'prompt_tokens') if name in batch), None)
    return len(batch[name]) if name else len(batch['tokens']) // together


def tokens_of_rows(batch: Mapping[str, jax.Array]) -> jax.Array:
    """Counts the tokens of each row's sequence, its prompt included: [B] float32."""
    tokens_B = jnp.sum(batch['segments'] > 0, axis=1, dtype=jnp.float32)
    if 'prompt_segments' not in batch:
        return tokens_B
    shared_P = jnp.sum(batch['prompt_segments'] > 0, axis=1, dtype=jnp.float32)
    return tokens_B + jnp.repeat(shared_P, len(tokens_B) // len(shared_P))


def score(
    params: dict,
    config: ModelConfig,
    batch: Mapping[str, jax.Array],
    *,
    temperature: float = 1.0,
    tap: Tap | None = None,
) -> Scored:
    """Scores the completions of a batch as `shards_of` takes it; see `model.score`.

    `tap` sees shards, [S, p * Tp + n * L, D]. `Scored.routing` is of whole sequences, as if every
    row had its prompt.
    """
    shards = shards_of(batch)
    tokens, _, positions = shards.of_prompt
    out = forward(
        params,
        config,
        shards.join(tokens, shards.inputs),
        shards.join(positions, shards.positions),
        attention(config, shards),
        tap=tap,
        counted_BxT=_counted(shards, len(batch['tokens'])) if config.experts else None,
    )
    of_prompts, of_bins = shards.split(out.hidden)
    # What predicts a completion's first token is its prompt's last.
    before = shards.for_bins(of_prompts[:, -1:])
    predicting = jnp.concatenate([before, of_bins[:, :-1]], axis=1)
    if shards.places is not None:
        begins = jnp.pad(shards.row[:, 1:] != shards.row[:, :-1], [(0, 0), (1, 0)])
        predicting = jnp.where(begins[..., None], before, predicting)
    scored = token_scores(params, config, predicting, shards.tokens, temperature)
    routing = (
        None
        if out.routing is None
        else jax.tree.map(lambda x: x.reshape(len(x), -1, *x.shape[3:]), out.routing)
    )
    return Scored(*(shards.for_rows(x) for x in scored[:3]), routing=routing)


def attention(config: ModelConfig, shards: Shards) -> Attention:
    """Builds self-attention of shards: causal in prompts; a bin's tokens also see their prompt.

    Scores of a prompt are [Tp, Tp], those of a bin [L, Tp + L]; of either, a block or
    `config.attention_chunk` rows exist at a time.
    """
    _, prompt_segments, prompt_positions = shards.of_prompt
    within_prompts = causal(config, prompt_segments)
    shown_BxTp = shards.for_bins(prompt_segments) > 0
    position_of_key_BxT = jnp.concatenate(
        [shards.for_bins(prompt_positions), shards.positions], axis=1
    )
    times_1xL = jnp.arange(shards.tokens.shape[1])[None]

    def visible(
        time_1xS: jax.Array, segments_BxS: jax.Array, positions_BxS: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        own_BxSxL = earlier(time_1xS, segments_BxS, shards.segments, shards.attend)
        shown_BxSxTp = jnp.broadcast_to(
            shown_BxTp[:, None], (*own_BxSxL.shape[:2], shown_BxTp.shape[1])
        )
        distance_BxSxT = positions_BxS[:, :, None] - position_of_key_BxT[:, None]
        return jnp.concatenate([shown_BxSxTp, own_BxSxL], axis=2), distance_BxSxT

    of_queries = (times_1xL, shards.segments, shards.positions)
    if config.attention_kernel == 'xla':
        weigh = in_chunks(config, visible, of_queries, before=shown_BxTp.shape[1])
    else:
        seen = functools.partial(seen_by, config, *visible(*of_queries))
        own_BxL = shards.segments > 0
        shown_BxT = jnp.concatenate([shown_BxTp, own_BxL], axis=1)
        beyond = 'several completions of a bin see one prompt (`packing`)'
        if shards.places is None:
            beyond = '' if shards.attend is None else 'this batch hides positions (`attend`)'
        segments = (x.astype(jnp.int32) for x in (own_BxL, shown_BxT))
        weigh = kernels.weigher(config, seen, *segments, beyond)

    def attend(
        q: jax.Array, k: jax.Array, v: jax.Array, cache: Any, local: Any
    ) -> tuple[jax.Array, None]:
        (q_prompt, q), (k_prompt, k), (v_prompt, v) = (shards.split(x) for x in (q, k, v))
        of_prompts, _ = within_prompts(q_prompt, k_prompt, v_prompt, None, local)
        k, v = (
            jnp.concatenate([shards.for_bins(x), own], axis=1)
            for x, own in ((k_prompt, k), (v_prompt, v))
        )
        return shards.join(of_prompts, weigh(q, k, v, local)), None

    return attend


def _picked(x: jax.Array, places: jax.Array, S: int) -> jax.Array:
    """Gathers values of x [S * a, b] at `places` [S * c, d]. Places count through the a * b of
    their shard; where negative, the value is zero (False)."""
    index = places.reshape(S, -1)
    picked = jnp.take_along_axis(x.reshape(S, -1), jnp.maximum(index, 0), axis=1)
    return jnp.where(index < 0, jnp.zeros((), x.dtype), picked).reshape(places.shape)


def _counted(shards: Shards, B: int) -> jax.Array:
    """Marks the tokens that belong to each row of a shard [S, B / S, p * Tp + n * L]; those of a
    prompt belong to several."""
    S, prompts = len(shards.prompt_of_bin), shards.of_prompt[1] > 0
    R, p = B // S, len(prompts) // S
    rows = jnp.arange(R)
    own_SxRxP = rows[:, None] // (R // p) == jnp.arange(p)
    of_prompts = own_SxRxP[None, :, :, None] & prompts.reshape(S, 1, p, -1)
    of_bins = shards.row.reshape(S, 1, -1) == rows[:, None]
    return jnp.concatenate([of_prompts.reshape(S, R, -1), of_bins], axis=2)
