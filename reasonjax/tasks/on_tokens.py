"""Rules that mark completions by their tokens, inside a compiled program.

Only modules of this package whose names begin so import jax: tasks import them where a rule is
built, so that reward workers start fast.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from reasonjax.data.tokenizers import Tokenizer
from reasonjax.errors import UserError
from reasonjax.protocols import TokenRule
from reasonjax.tasks.answers import write_solution


def answer_after(marker: str, tokenizer: Tokenizer, max_tokens: int) -> TokenRule:
    """Builds the rule of an exact answer: 1 where it is right, 0 where not, nan without solution.
    Right are completions in which exactly the characters of the row's `solution` follow the first
    `marker`, and then the end of sequence.

    What decoding drops (padding, mask) is passed over here too, so that the rule says of tokens
    what it says of their text.

    Args:
      marker: one character.
      tokenizer: one with a character per token.
      max_tokens: longest completion.

    Raises:
      UserError: a token that is not one character, or no marker among them; from `columns`, a
        solution that is no text or number.
    """
    ids, dropped = character_ids(tokenizer)
    if marker not in ids:
        raise UserError(f'the tokenizer has no {marker!r}, which stands before the answer.')

    def columns(row: dict) -> dict[str, np.ndarray]:
        text, solution = write_solution(row.get('solution')), np.full(max_tokens, -1, np.int32)
        # A character that no token is, and a solution longer than a completion, are never answered.
        known = [ids.get(character, -1) for character in text or '']
        solution[: len(known)] = known[:max_tokens]
        return {
            'solution': solution,
            'solution_length': np.int32(-1 if text is None else len(known)),
        }

    def reward(
        tokens: jax.Array,
        length: jax.Array,
        terminated: jax.Array,
        columns: Mapping[str, jax.Array],
    ) -> jax.Array:
        answered = (jnp.arange(tokens.shape[-1]) < length[..., None]) & ~jnp.isin(
            tokens, jnp.asarray(dropped, jnp.int32)
        )
        marked = jnp.cumsum(answered & (tokens == ids[marker]), axis=-1) > 0
        # The answer starts behind the first marker; the first column has nothing before it.
        answer = answered & jnp.pad(marked[..., :-1], [(0, 0)] * (tokens.ndim - 1) + [(1, 0)])
        solution = jnp.broadcast_to(columns['solution'], (*tokens.shape[:-1], max_tokens))
        place = jnp.clip(jnp.cumsum(answer, axis=-1) - 1, 0, max_tokens - 1)
        same = ~answer | (tokens == jnp.take_along_axis(solution, place, axis=-1))
        equal = (answer.sum(-1) == columns['solution_length']) & same.all(-1)
        right = (terminated & marked[..., -1] & equal).astype(jnp.float32)
        return jnp.where(columns['solution_length'] < 0, jnp.nan, right)

    return TokenRule(columns, reward)


def character_ids(tokenizer: Tokenizer) -> tuple[dict[str, int], list[int]]:
    """Returns the id of each character, and the ids that decoding drops.

    Raises:
      UserError: a token that is not one character, or a character that is two tokens: then other
        tokens may say the same text.
    """
    ids, dropped = {}, []
    for i in range(tokenizer.vocab_size):
        text = tokenizer.decode([i])
        if not text:
            dropped.append(i)
        elif len(text) > 1 or text in ids:
            raise UserError(
                f'the tokenizer has a token {text!r} ({i}), and a rule on tokens needs one token '
                'for each character, and one character '
                'for each token: tokenizer.name="characters".'
            )
        else:
            ids[text] = i
    return ids, dropped
