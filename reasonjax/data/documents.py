"""What every form of example is rendered to."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from reasonjax.errors import UserError


class Document(NamedTuple):
    """One row of training.

    Attributes:
        tokens: [T] int32 ids.
        weights: [T] float32, the weight of tokens[t] as a target; weights[0] is 0 and the sum is
          positive.
        marks: what else a batch says of it, by name: a scalar array, or one of [T].
    """

    tokens: np.ndarray
    weights: np.ndarray
    marks: Mapping[str, np.ndarray] = MappingProxyType({})

    def marked(self, **marks: Any) -> 'Document':
        """Returns a copy with these marks."""
        return self._replace(
            marks={**self.marks, **{name: np.asarray(value) for name, value in marks.items()}}
        )


def document(ids: Sequence[int], weights: Sequence[float]) -> Document:
    """Makes a document; its first token is never a target, since nothing precedes it.

    Raises:
        UserError: nothing is left to learn.
    """
    weights = np.array(weights, np.float32)
    weights[0] = 0
    if not weights.any():
        raise UserError(
            'every token weight is zero: the only token has nothing before it to be predicted from'
        )
    return Document(np.array(ids, np.int32), weights)
