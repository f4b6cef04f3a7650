"""Tokens that are put rather than drawn: spans at a place or behind a token, and the length of
thinking.

A forcing is called after each draw: `(drawn [R] int32, state, memory) -> (tokens [R] int32,
memory)`, where -1 leaves what was drawn; `init(R)` gives the memory of R fresh rows, arrays with
rows in front. The log-prob recorded of a token that was put is the policy's of it, and
`Rollout.forced` says which they are: no policy gradient should run through them.
"""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from reasonjax.errors import UserError
from reasonjax.sampling.slots import Progress


class Forcing(Protocol):
    """What the sampler asks of a forcing."""

    def init(self, rows: int) -> Any:
        """Builds the memory of fresh rows."""
        ...

    def __call__(self, drawn_R: jax.Array, state: Progress, memory: Any) -> tuple[jax.Array, Any]:
        """Returns the tokens to force (-1 for none) and the memory after this token."""
        ...


@dataclasses.dataclass(frozen=True)
class Span:
    """A span of tokens, once from a place on, or every time behind a token.

    Attributes:
      tokens: the span.
      place: tokens of the completion in front of it (0: it opens the completion); -1 for none.
      behind: the token it follows each time; -1 for none.
    """

    tokens: tuple[int, ...]
    place: int = -1
    behind: int = -1

    def __post_init__(self) -> None:
        if not self.tokens:
            raise UserError('forced span: it has no tokens.')
        if (self.place < 0) == (self.behind < 0):
            raise UserError(
                f'forced span: give place (got {self.place}) or behind (got {self.behind}), one of '
                'them.'
            )
        if self.behind == self.tokens[-1]:
            raise UserError(
                f'forced span: it ends in the token {self.behind} that it follows, and would never '
                'stop.'
            )

    def init(self, rows: int) -> jax.Array:
        return jnp.zeros(rows, jnp.int32)

    def __call__(
        self, drawn_R: jax.Array, state: Progress, memory: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        due_R = (
            state.step == self.place
            if self.place >= 0
            else (state.last == self.behind) & (state.step > 0)
        )
        return _next(jnp.where((memory == 0) & due_R, 1, memory), self.tokens)


@dataclasses.dataclass(frozen=True)
class Thinking:
    """Budget forcing: thinking that ends too early is extended, thinking that is too long is ended
    (Muennighoff et al. 2025, arXiv:2501.19393, section 3.1).

    Attributes:
      ends: tokens that end the thinking when drawn.
      closing: what is put when the budget is used, once.
      budget: tokens of thinking; 0 for no limit.
      extension: what is put in the place of an end, such as the tokens of "Wait".
      times: how often it is, at most.
    """

    ends: tuple[int, ...]
    closing: tuple[int, ...] = ()
    budget: int = 0
    extension: tuple[int, ...] = ()
    times: int = 0

    def __post_init__(self) -> None:
        if not self.ends:
            raise UserError('thinking: no token ends it.')
        if self.budget < 0 or self.times < 0:
            raise UserError(
                f'thinking: budget={self.budget} and times={self.times} must be 0 (off) or more.'
            )
        if self.budget and not self.closing:
            raise UserError(f'thinking: budget={self.budget} needs the tokens that close it.')
        if self.times and not self.extension:
            raise UserError(f'thinking: times={self.times} needs the tokens of the extension.')

    def init(self, rows: int) -> dict[str, jax.Array]:
        """Builds the memory of fresh rows.

        `over`: no longer thinking; `used`: extensions so far; `extending`, `closing`: the place in
        the span that is being forced, or 0.
        """
        counts = {name: jnp.zeros(rows, jnp.int32) for name in ('used', 'extending', 'closing')}
        return counts | {'over': jnp.zeros(rows, bool)}

    def __call__(
        self, drawn_R: jax.Array, state: Progress, memory: dict[str, jax.Array]
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        free = ~memory['over'] & (memory['extending'] == 0)
        ends = free & jnp.isin(drawn_R, jnp.asarray(self.ends))
        late = free & (state.step >= self.budget) if self.budget else jnp.zeros_like(free)
        extend = ends & ~late & (memory['used'] < self.times)
        close = late & ~ends
        extension_R, extending = _next(jnp.where(extend, 1, memory['extending']), self.extension)
        closing_R, closing = _next(jnp.where(close, 1, memory['closing']), self.closing)
        memory = {
            'used': memory['used'] + extend,
            'extending': extending,
            'closing': closing,
            'over': memory['over'] | close | (ends & ~extend),
        }
        return jnp.where(extension_R >= 0, extension_R, closing_R), memory


def _next(place_R: jax.Array, tokens: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Returns the token at a place of a span, counted from 1 (-1 at 0), and the next place."""
    if not tokens:
        return jnp.full_like(place_R, -1), place_R
    put_R = jnp.asarray((-1, *tokens), jnp.int32)[place_R]
    return put_R, jnp.where((place_R == 0) | (place_R == len(tokens)), 0, place_R + 1)
