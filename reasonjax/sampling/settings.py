"""How completions are drawn."""

import dataclasses

from reasonjax import bounds
from reasonjax.bounds import (
    AtLeast,
    BelowOne,
    OneOf,
    Penalty,
    PositiveFraction,
    TemperatureOrGreedy,
)
from reasonjax.errors import UserError
from reasonjax.sampling.forcing import Forcing


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How completions are drawn (static: part of the compiled program).

    Attributes:
      num_generations: G, completions per prompt.
      max_tokens: C, longest completion, its EOS included.
      temperature: logits are divided by it; 0 is greedy (log-probs are then those at temperature
        1).
      top_k: keep the k most likely tokens; 0 keeps all.
      top_p: keep the smallest set of most likely tokens whose mass reaches it; 1 keeps all.
      min_p: drop tokens less likely than this share of the most likely one; 0 keeps all.
      eos_ids: any of these ends a completion.
      min_tokens: tokens before anything may end a completion; 0 for none.
      stop: token sequences that end a completion when it ends in one of them; they stay part of it.
      no_repeat_ngram_size: no so many tokens in a row come twice in prompt and completion; 0 is
        off.
      repetition_penalty: see `processors.RepetitionPenalty`; 1 is off.
      forcing: what puts tokens in the place of drawn ones, in turn; see `rollout.forcing`.
      cache_dtype: of keys and values; '' is the compute dtype, 'int8' rounds them by position and
        head.
      slots: rows that draw at the same time; a row that ends takes the next completion. 0: as many
        as there are completions.
      burst: with slots, steps between two looks for rows that have ended.
      cache_length: positions that the cache of a completion begins with, doubled as the longest
        grows; 0: C from the start.
      halvings: when no completion waits, how often half of the rows are left together as soon as
        they hold all that still draw.
      prefill_chunk: prompt tokens read at a time; 0: all.
    """

    num_generations: AtLeast(1) = 1
    max_tokens: AtLeast(1) = 512
    temperature: TemperatureOrGreedy = 1.0
    top_k: AtLeast(0) = 0
    top_p: PositiveFraction = 1.0
    min_p: BelowOne = 0.0
    eos_ids: tuple[int, ...] = ()
    min_tokens: AtLeast(0) = 0
    stop: tuple[tuple[int, ...], ...] = ()
    no_repeat_ngram_size: AtLeast(0) = 0
    repetition_penalty: Penalty = 1.0
    forcing: tuple[Forcing, ...] = ()
    cache_dtype: OneOf('', 'int8') = ''
    slots: AtLeast(0) = 0
    burst: AtLeast(1) = 16
    cache_length: AtLeast(0) = 0
    halvings: AtLeast(0) = 0
    prefill_chunk: AtLeast(0) = 0

    def __post_init__(self) -> None:
        bounds.check_fields(self, 'sampling')
        if self.min_tokens >= self.max_tokens:
            raise UserError(
                f'sampling.min_tokens={self.min_tokens}: must be 0 (off) or more, and below '
                f'max_tokens={self.max_tokens}.'
            )
        if not all(self.stop):
            raise UserError(f'sampling.stop={self.stop}: must be sequences of at least one token.')

    def lengths(self) -> list[int]:
        """Lists the lengths that the cache of completions has in turn: the last is C."""
        lengths = [self.cache_length or self.max_tokens]
        while lengths[-1] < self.max_tokens:
            lengths.append(2 * lengths[-1])
        return [*lengths[:-1], self.max_tokens]
