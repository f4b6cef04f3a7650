"""Learning rate as a function of the step: `(steps, *, peak, ...) -> schedule`, steps being the
length of the stage."""

import optax

from reasonjax.bounds import AtLeast, Fraction, Real

# Beyond, nothing is learnt; 0 leaves the weights as they are, for controls.
Rate = Real(0, 1e4)


def constant(steps: int, *, peak: Rate, warmup_steps: AtLeast(0) = 0) -> optax.Schedule:
    """Builds a constant schedule: `peak`, after a linear rise from 0 over `warmup_steps`."""
    return _after_warmup(optax.constant_schedule(peak), peak, warmup_steps)


def cosine(
    steps: int, *, peak: Rate, warmup_steps: AtLeast(0) = 0, final_fraction: Fraction = 0.0
) -> optax.Schedule:
    """Builds half a cosine from `peak` to `final_fraction * peak`, reached as the stage ends
    (Loshchilov & Hutter 2017, arXiv:1608.03983)."""
    decay = optax.cosine_decay_schedule(peak, max(1, steps - warmup_steps), alpha=final_fraction)
    return _after_warmup(decay, peak, warmup_steps)


def linear(
    steps: int, *, peak: Rate, warmup_steps: AtLeast(0) = 0, final_fraction: Fraction = 0.0
) -> optax.Schedule:
    """Builds a straight line from `peak` to `final_fraction * peak`, reached as the stage ends."""
    decay = optax.linear_schedule(peak, peak * final_fraction, max(1, steps - warmup_steps))
    return _after_warmup(decay, peak, warmup_steps)


def _after_warmup(schedule: optax.Schedule, peak: float, warmup_steps: int) -> optax.Schedule:
    if not warmup_steps:
        return schedule
    # The first step already moves: rates 1/n, 2/n, ..., 1 of the peak over n warm-up steps.
    rise = optax.linear_schedule(peak / warmup_steps, peak * (1 + 1 / warmup_steps), warmup_steps)
    return optax.join_schedules([rise, schedule], [warmup_steps])
