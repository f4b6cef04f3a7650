"""From rollout arrays to texts."""

from typing import NamedTuple

import numpy as np

from reasonjax.data.tokenizers import Tokenizer
from reasonjax.errors import UserError
from reasonjax.sampling.sampler import Rollout


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
    """Decodes a rollout that is on the host: P lists of G completions.

    Raises:
      UserError: log-probs that are not finite numbers: the tokens then mean nothing.
    """
    if rollout.logprob is not None and (wrong := np.sum(~np.isfinite(np.asarray(rollout.logprob)))):
        raise UserError(
            f'sampling: {wrong:,} of {np.size(rollout.logprob):,} log-probabilities are not finite '
            'numbers: the model overflows. Take '
            'a wider config.model.compute_dtype, or look at the weights it started from.'
        )
    tokens_PxGxC, length_PxG = np.asarray(rollout.tokens), np.asarray(rollout.length)
    terminated_PxG = np.asarray(rollout.terminated)
    groups = []
    for p in range(len(tokens_PxGxC)):
        group = []
        for g in range(tokens_PxGxC.shape[1]):
            length, terminated = int(length_PxG[p, g]), bool(terminated_PxG[p, g])
            ids = tokens_PxGxC[p, g, :length].tolist()
            group.append(Completion(tokenizer.decode(ids), ids, length, terminated))
        groups.append(group)
    return groups
