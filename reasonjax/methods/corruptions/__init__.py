"""What the model reads instead of the truth: `(batch, key, step, context, *, knobs) -> (batch,
metrics)`, in the step.

A corruption writes `inputs` [B, T] int32 (and may write `attend` [B, T] bool: which positions may
be attended to); `tokens`, the labels, and `weights`, `positions` and `segments` stay as they are.
`step` counts the stage's optimiser steps from 0 and is traced. Each row draws from `key` and its
own number `batch['row']` [B] int32 (its place in the step's batch; counted from 0 where the field
is absent), so that neither micro-batches nor devices change what is drawn.
"""

from reasonjax.methods.corruptions.masking import masked_thought, none
from reasonjax.protocols import Context

__all__ = ['Context', 'masked_thought', 'none']
