"""From rewards to advantages: `(rewards_PxG, valid_PxG, *, knobs) -> (advantage_PxG, metrics)`, on
the device.

Row p of the arguments is prompt p, column g its g-th completion. `valid` is False where no reward
function had anything to say.
"""

from reasonjax.methods.advantages.groupwise import group_relative

__all__ = ['group_relative']
