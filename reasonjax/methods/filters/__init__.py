"""Which weights train: `(specs, params, **knobs) -> tree of bool` with the array leaves of
`params`."""

from reasonjax.methods.filters.basic import all, lora, paths  # noqa: A004

__all__ = ['all', 'lora', 'paths']
