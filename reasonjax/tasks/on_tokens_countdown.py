"""Countdown's rule on tokens, inside a compiled program. It imports jax: `countdown` imports it
where a rule is built.

Values are fractions, and exact: numerator and denominator are kept as their remainders by several
primes. Let value = num / den, den the product of the numbers that divide; all of those are smaller
than a prime, so no remainder of den is 0. The value is the target t iff num - t den = 0, iff all
remainders of that are 0, because its size is below the product of the primes (bounds beside
`PRIMES`).
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from reasonjax.data.tokenizers import Tokenizer
from reasonjax.errors import UserError
from reasonjax.protocols import TokenRule
from reasonjax.tasks.countdown import MAX_COUNT, MAX_NUMBER, OPERATIONS, parsed
from reasonjax.tasks.on_tokens import character_ids

# The largest six below 2^16, so that products fit 32 bits. With up to 8 numbers below 1000, |num|
# <= 8 * 999^8, den <= 999^7, and t < 10^6:
# |num - t den| < 10^27.1, and the product of the primes is 10^28.9.
PRIMES = (65521, 65519, 65497, 65479, 65449, 65447)
SKIPPED, OTHER = 20, 21  # kinds of tokens besides 0 to 9 (digits) and 10 + place in OPERATIONS


class State(NamedTuple):
    """What was read so far, for each completion; N is MAX_COUNT, R the number of primes.

    Attributes:
      fine: [...] bool, it may still become an expression of the numbers.
      digits, value: [...] int32, of the number that is being read: how many characters, and what
        they say (at most MAX_NUMBER + 1).
      operation: [...] int32, what stands before that number, a place in OPERATIONS.
      used_N: [..., N] bool, numbers that were used.
      num_R, den_R: [..., R] uint32, remainders of the value of what was read before that number.
    """

    fine: jax.Array
    digits: jax.Array
    value: jax.Array
    operation: jax.Array
    used_N: jax.Array
    num_R: jax.Array
    den_R: jax.Array


def expression_after(marker: str, tokenizer: Tokenizer) -> TokenRule:
    """Builds Countdown's rule: 1 where an expression that reaches the target is the answer, else 0.
    The answer is what follows the first `marker`, up to the end of sequence; see
    `countdown.reaches`.

    What decoding drops (padding, mask) is passed over, so that the rule says of tokens what
    `countdown.verify` says of their text.

    Args:
      marker: one character.
      tokenizer: one with a character per token.

    Raises:
      UserError: a token that is not one character, or no marker or digit among them; from
        `columns`, a row that is no problem of countdown.
    """
    ids, dropped = character_ids(tokenizer)
    for character in (marker, *'0123456789'):
        if character not in ids:
            raise UserError(
                f'the tokenizer has no {character!r}: for countdown, tokenizer.alphabet has to '
                f'hold "{marker}0123456789".'
            )
    # the last one stands for ids that the tokenizer does not have
    kinds_V = np.full(tokenizer.vocab_size + 1, OTHER, np.int32)
    kinds_V[dropped] = SKIPPED
    for kind, character in [*enumerate('0123456789'), *enumerate(OPERATIONS, 10)]:
        if character in ids:
            kinds_V[ids[character]] = kind

    def columns(row: dict) -> dict[str, np.ndarray]:
        numbers, target = parsed(row['prompt'])
        padded_N = np.full(MAX_COUNT, -1, np.int32)
        padded_N[: len(numbers)] = numbers
        return {'numbers': padded_N, 'target': np.int32(target)}

    def reward(
        tokens: jax.Array,
        length: jax.Array,
        terminated: jax.Array,
        columns: Mapping[str, jax.Array],
    ) -> jax.Array:
        answered = jnp.arange(tokens.shape[-1]) < length[..., None]
        marks = answered & (tokens == ids[marker])
        answer = answered & (jnp.cumsum(marks, axis=-1) - marks > 0)  # behind the first marker
        known = (tokens >= 0) & (tokens < tokenizer.vocab_size)
        kinds = jnp.where(
            answer, jnp.asarray(kinds_V)[jnp.where(known, tokens, tokenizer.vocab_size)], SKIPPED
        )
        numbers_N = jnp.broadcast_to(columns['numbers'], (*length.shape, MAX_COUNT))
        target = jnp.broadcast_to(columns['target'], length.shape)
        reached = right(kinds, numbers_N, target)
        return (terminated & marks.any(-1) & reached).astype(jnp.float32)

    return TokenRule(columns, reward)


def right(kinds: jax.Array, numbers_N: jax.Array, target: jax.Array) -> jax.Array:
    """Marks expressions as `countdown.reaches` does, from the kinds of their characters.

    Args:
      kinds: [..., C] int32: a digit, 10 + place in OPERATIONS, `SKIPPED` or `OTHER`.
      numbers_N: [..., N] int32, from 0 to MAX_NUMBER; -1 where there are fewer.
      target: [...] int32, from 0 to 999999.

    Returns:
      [...] bool.
    """
    primes_R = jnp.asarray(PRIMES, jnp.uint32)
    shape, zero = target.shape, jnp.zeros(target.shape, jnp.int32)
    # It starts as 0 plus the first number.
    start = State(
        jnp.ones(shape, bool),
        zero,
        zero,
        zero,
        jnp.zeros(numbers_N.shape, bool),
        jnp.zeros((*shape, len(PRIMES)), jnp.uint32),
        jnp.ones((*shape, len(PRIMES)), jnp.uint32),
    )

    def taken(s: State) -> State:
        """Returns the state with the number that was read applied."""
        equal_N = (numbers_N == s.value[..., None]) & ~s.used_N
        first_N = equal_N & (jnp.cumsum(equal_N, axis=-1) == 1)
        x_R = s.value[..., None].astype(jnp.uint32)
        by_den_R = x_R * s.den_R % primes_R
        times, divides = (s.operation == OPERATIONS.index(o) for o in '*/')
        sums_R = jnp.where(
            (s.operation == OPERATIONS.index('-'))[..., None],
            s.num_R + primes_R - by_den_R,
            s.num_R + by_den_R,
        )
        num_R = (
            jnp.where(
                times[..., None], s.num_R * x_R, jnp.where(divides[..., None], s.num_R, sums_R)
            )
            % primes_R
        )
        den_R = jnp.where(divides[..., None], by_den_R, s.den_R)
        fine = s.fine & (s.digits > 0) & equal_N.any(-1) & ~(divides & (s.value == 0))
        return State(fine, zero, zero, s.operation, s.used_N | first_N, num_R, den_R)

    def step(s: State, kind: jax.Array) -> tuple[State, None]:
        digit, operator = kind < 10, (kind >= 10) & (kind < 10 + len(OPERATIONS))
        leading_zero = (s.digits > 0) & (s.value == 0)
        read = s._replace(
            fine=s.fine & (kind != OTHER) & ~(digit & leading_zero),
            digits=s.digits + digit,
            value=jnp.where(digit, jnp.minimum(10 * s.value + kind, MAX_NUMBER + 1), s.value),
        )
        after = taken(s)._replace(operation=kind - 10)
        return jax.tree.map(
            lambda a, b: jnp.where(operator.reshape(*shape, *[1] * (a.ndim - len(shape))), a, b),
            after,
            read,
        ), None

    end = taken(jax.lax.scan(step, start, jnp.moveaxis(kinds, -1, 0))[0])
    target_R = target[..., None].astype(jnp.uint32) % primes_R
    all_used = (end.used_N | (numbers_N < 0)).all(-1)
    return end.fine & all_used & (end.num_R == target_R * end.den_R % primes_R).all(-1)
