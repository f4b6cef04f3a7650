"""What a stage asks of an objective before it builds batches."""

import inspect
from collections.abc import Callable


def needed(objective: Callable) -> frozenset[str]:
    """Names the optional batch fields that an objective will read, given its knobs.

    Args:
      objective: a function of `reasonjax.methods.objectives` or one's own, bare or with knobs bound by
        `functools.partial`.

    Returns:
      For instance `{'logprob_ref'}`, or the empty set where the function has no attribute `needs`.
    """
    function, given = getattr(objective, 'func', objective), getattr(objective, 'keywords', {})
    declared = getattr(function, 'needs', None)
    if declared is None:
        return frozenset()
    parameters = inspect.signature(function).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    return frozenset(declared({**defaults, **given}))


def forms(objective: Callable) -> tuple[str, ...]:
    """Names the forms of rows (`reasonjax.data.forms`) that an objective reads.

    An objective that knows of rejected answers, labels or steps says so in a function attribute `forms`. One without it
    is taken to learn whatever has a weight, so it reads demonstrations only.
    """
    return getattr(getattr(objective, 'func', objective), 'forms', ('demonstration',))
