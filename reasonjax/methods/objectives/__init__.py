"""What a step minimises: `(score, batch, key, *, knobs) -> (loss, metrics)`, on the device, inside
the step.

`score(batch)` returns log-probs, entropies and hits of shape [B, T], aligned with `batch['tokens']`
(`reasonjax.model.score.Scored`). `batch['weights']` [B, T] float32 says how much each token counts
as a target; a token of weight 0 never enters a loss or a metric. The loss is the *contribution* of
this micro-batch: contributions, like their gradients, are added up over the micro-batches of a
step, so an objective divides by totals of the step, which the step puts into the batch as float32
scalars: `step_weight` (sum of all weights), `step_rows` (number of rows) and `step_micro` (number
of micro-batches).

An objective that reads optional fields of the batch, such as a reference's log-probs, says so in a
function attribute `needs`, which maps its knobs to names of fields; `protocols.needed` asks it. One
that reads rows of another form than demonstrations (preferences, say) names the forms in a function
attribute `forms`.
"""

from reasonjax.methods.objectives.likelihood import nll
from reasonjax.methods.objectives.policy import clipped_policy_gradient

__all__ = ['clipped_policy_gradient', 'nll']
