"""From rollout arrays to texts."""

from typing import NamedTuple

import numpy as np

from reasonjax.data.tokenizers import Tokenizer
from reasonjax.rollout.sampler import Rollout


class Completion(NamedTuple):
    """One completion on the host.

    Attributes:
      text: decoded, without its EOS; a stop sequence that ended it is part of it.
      ids: all tokens, EOS included.
      length: number of tokens.
      terminated: ended with EOS or a stop sequence rather than by its length.
    """

    text: str
    ids: list[int]
    length: int
    terminated: bool


def completions(rollout: Rollout, tokenizer: Tokenizer) -> list[list[Completion]]:
    """Decodes a rollout that is on the host: P lists of G completions."""
    tokens_PxGxC, length_PxG = np.asarray(rollout.tokens), np.asarray(rollout.length)
    terminated_PxG = np.asarray(rollout.terminated)
    found = []
    for p in range(len(tokens_PxGxC)):
        group = []
        for g in range(tokens_PxGxC.shape[1]):
            length, terminated = int(length_PxG[p, g]), bool(terminated_PxG[p, g])
            ids = tokens_PxGxC[p, g, :length].tolist()
            group.append(Completion(tokenizer.decode(ids), ids, length, terminated))
        found.append(group)
    return found
