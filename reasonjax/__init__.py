"""reasonjax: fine-tune language models to reason, in pure JAX. Every method is a config; start at `python -m reasonjax.train --help`."""

__version__ = '0.1.0'
