"""Richer leaves: `(params, key, **knobs) -> params`."""

from reasonjax.methods.adapters.lora import lora, none

__all__ = ['lora', 'none']
