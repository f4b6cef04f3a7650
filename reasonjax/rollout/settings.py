"""How completions are drawn."""

import dataclasses

from reasonjax.errors import UserError, listing, nearest
from reasonjax.rollout.forcing import Forcing

CACHE_DTYPES = ('', 'int8')


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
      min_tokens: tokens before anything may end a completion; 0 for none.
      stop: token sequences that end a completion when it ends in one of them; they stay part of it.
      no_repeat_ngram_size: no so many tokens in a row come twice in prompt and completion; 0 is off.
      repetition_penalty: see `processors.RepetitionPenalty`; 1 is off.
      forcing: what puts tokens in the place of drawn ones, in turn; see `rollout.forcing`.
      cache_dtype: of keys and values; '' is the compute dtype, 'int8' rounds them by position and head.
      slots: rows that draw at the same time; a row that ends takes the next completion. 0: as many as there are completions.
      burst: with slots, steps between two looks for rows that have ended.
      cache_length: positions that the cache of a completion begins with, doubled as the longest grows; 0: C from the start.
      halvings: when no completion waits, how often half of the rows are left together as soon as they hold all that still draw.
      prefill_chunk: prompt tokens read at a time; 0: all.
    """

    num_generations: int = 1
    max_tokens: int = 512
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    eos_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    stop: tuple[tuple[int, ...], ...] = ()
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    forcing: tuple[Forcing, ...] = ()
    cache_dtype: str = ''
    slots: int = 0
    burst: int = 16
    cache_length: int = 0
    halvings: int = 0
    prefill_chunk: int = 0

    def __post_init__(self) -> None:
        checks = {
            'num_generations': (self.num_generations >= 1, 'at least 1'),
            'max_tokens': (self.max_tokens >= 1, 'at least 1'),
            'temperature': (self.temperature >= 0, '0 (greedy) or more'),
            'top_k': (self.top_k >= 0, '0 (off) or more'),
            'top_p': (0 < self.top_p <= 1, 'in (0, 1]; 1 is off'),
            'min_p': (0 <= self.min_p < 1, 'in [0, 1); 0 is off'),
            'min_tokens': (0 <= self.min_tokens < self.max_tokens, f'0 (off) or more, and below max_tokens={self.max_tokens}'),
            'stop': (all(len(sequence) for sequence in self.stop), 'sequences of at least one token'),
            'no_repeat_ngram_size': (self.no_repeat_ngram_size >= 0, '0 (off) or more'),
            'repetition_penalty': (self.repetition_penalty > 0, 'positive; 1 is off'),
            'slots': (self.slots >= 0, '0 (a row for every completion) or more'),
            'burst': (self.burst >= 1, 'at least 1'),
            'cache_length': (self.cache_length >= 0, '0 (all at once) or more'),
            'halvings': (self.halvings >= 0, '0 (off) or more'),
            'prefill_chunk': (self.prefill_chunk >= 0, '0 (all at once) or more'),
        }
        for name, (holds, wanted) in checks.items():
            if not holds:
                raise UserError(f'sampling.{name}={getattr(self, name)}: must be {wanted}.')
        if self.cache_dtype not in CACHE_DTYPES:
            known = nearest(self.cache_dtype, CACHE_DTYPES)
            raise UserError(f'sampling.cache_dtype="{self.cache_dtype}": unknown.{known} Known: {listing(CACHE_DTYPES)}.')

    def lengths(self) -> list[int]:
        """How long the cache of completions is, in turn: the last is C."""
        lengths = [self.cache_length or self.max_tokens]
        while lengths[-1] < self.max_tokens:
            lengths.append(2 * lengths[-1])
        return [*lengths[:-1], self.max_tokens]
