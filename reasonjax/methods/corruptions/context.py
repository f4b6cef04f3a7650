"""What a corruption knows of the run."""

from typing import NamedTuple


class Context(NamedTuple):
    """Constants of a stage.

    Attributes:
      steps: optimiser steps of the stage.
      pad_id: the tokenizer's padding.
      mask_id: the tokenizer's mask token, None where it has none.
      vocab_size: ids are 0 .. vocab_size - 1.
    """

    steps: int
    pad_id: int
    mask_id: int | None
    vocab_size: int
