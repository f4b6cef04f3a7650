"""Functions of logits that narrow or bend what may be drawn. Each has a neutral value at which it
returns its input.

A processor of the sampler is `(logits_RxV, state) -> logits_RxV`; the state is
`rollout.slots.Progress`. What is here is what transformers has under the same names, prompt
included where it includes it.
"""

import dataclasses

import jax
import jax.numpy as jnp

from reasonjax.sampling.slots import Progress

REMOVED = -1e30


@dataclasses.dataclass(frozen=True)
class MinTokens:
    """No EOS before `number` tokens."""

    number: int
    eos_ids: tuple[int, ...]

    def __call__(self, logits_RxV: jax.Array, state: Progress) -> jax.Array:
        if not self.number or not self.eos_ids:
            return logits_RxV
        is_eos_V = jnp.isin(jnp.arange(logits_RxV.shape[1]), jnp.asarray(self.eos_ids))
        return jnp.where((state.step < self.number)[:, None] & is_eos_V, REMOVED, logits_RxV)


@dataclasses.dataclass(frozen=True)
class RepetitionPenalty:
    """Positive logits of tokens that prompt or completion have are divided by it, negative ones
    multiplied (Keskar et al. 2019, arXiv:1909.05858, section 4.1, as transformers has it); 1 is
    off.
    """

    penalty: float

    def __call__(self, logits_RxV: jax.Array, state: Progress) -> jax.Array:
        if self.penalty == 1:
            return logits_RxV
        penalised = jnp.where(logits_RxV > 0, logits_RxV / self.penalty, logits_RxV * self.penalty)
        return jnp.where(_marked(logits_RxV, so_far(state)), penalised, logits_RxV)


@dataclasses.dataclass(frozen=True)
class NoRepeatNgram:
    """No n tokens in a row that prompt and completion have had in this order before; 0 is off."""

    size: int

    def __call__(self, logits_RxV: jax.Array, state: Progress) -> jax.Array:
        if not self.size:
            return logits_RxV
        # Rows are laid so that they end in the last column: what is to be repeated is then in the
        # same columns of all.
        text_RxT = jax.vmap(jnp.roll)(so_far(state), state.tokens.shape[1] - state.step)
        before, T = self.size - 1, text_RxT.shape[1]
        if T <= before:
            return logits_RxV
        following_RxW = text_RxT[:, before:]
        matches = following_RxW >= 0
        for j in range(before):
            matches &= (text_RxT[:, j : j + T - before] == text_RxT[:, T - before + j, None]) & (
                text_RxT[:, j : j + T - before] >= 0
            )
        return jnp.where(
            _marked(logits_RxV, jnp.where(matches, following_RxW, -1)), REMOVED, logits_RxV
        )


def so_far(state: Progress) -> jax.Array:
    """Joins the tokens of prompt and completion so far: [R, Tp + C] int32. The two are
    adjacent; -1 stands before the prompt and after the last token drawn."""
    produced = jnp.arange(state.tokens.shape[1]) < state.step[:, None]
    return jnp.concatenate([state.prompt, jnp.where(produced, state.tokens, -1)], axis=1)


def _marked(logits_RxV: jax.Array, tokens_RxN: jax.Array) -> jax.Array:
    """Marks the vocabulary's tokens that occur in each row: [R, V] bool; -1 is no token."""
    R, V = logits_RxV.shape
    tokens_RxN = jnp.where(tokens_RxN < 0, V, tokens_RxN)
    return jnp.zeros((R, V), bool).at[jnp.arange(R)[:, None], tokens_RxN].set(True, mode='drop')


def truncate(
    logits_BxV: jax.Array, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> jax.Array:
    """Applies top-k, then top-p, then min-p, as transformers does; removed tokens get -1e30."""
    logits_BxV = keep_top_k(logits_BxV, top_k)
    logits_BxV = keep_top_p(logits_BxV, top_p)
    return keep_min_p(logits_BxV, min_p)


def keep_top_k(logits_BxV: jax.Array, k: int) -> jax.Array:
    """Keeps the k most likely tokens, and those tied with the last of them; 0 keeps all."""
    if k <= 0 or k >= logits_BxV.shape[-1]:
        return logits_BxV
    smallest_Bx1 = jax.lax.top_k(logits_BxV, k)[0][:, -1:]
    return jnp.where(logits_BxV < smallest_Bx1, REMOVED, logits_BxV)


def keep_top_p(logits_BxV: jax.Array, p: float) -> jax.Array:
    """Keeps the smallest set of most likely tokens whose mass reaches p (Holtzman et al. 2020,
    arXiv:1904.09751); 1 keeps all."""
    if p >= 1:
        return logits_BxV
    order = jnp.argsort(-logits_BxV, axis=-1)
    probability = jax.nn.softmax(jnp.take_along_axis(logits_BxV, order, axis=-1), axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    removed_sorted = before >= p
    removed = jnp.take_along_axis(removed_sorted, jnp.argsort(order, axis=-1), axis=-1)
    return jnp.where(removed, REMOVED, logits_BxV)


def keep_min_p(logits_BxV: jax.Array, p: float) -> jax.Array:
    """Keeps tokens at least p times as likely as the most likely one (Nguyen et al. 2024,
    arXiv:2407.01082); 0 keeps all."""
    if p <= 0:
        return logits_BxV
    return jnp.where(
        logits_BxV < logits_BxV.max(axis=-1, keepdims=True) + jnp.log(p), REMOVED, logits_BxV
    )
