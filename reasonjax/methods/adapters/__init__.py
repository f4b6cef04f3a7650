"""Richer leaves: `(params, key, **knobs) -> params`."""

from reasonjax.methods.adapters.lora import lora, none
from reasonjax.methods.adapters.quantise import quantise

__all__ = ['lora', 'none', 'quantise']
