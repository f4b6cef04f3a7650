"""The dtypes that parameters and products may have, by name. Here, because flags are checked before
jax is imported."""

DTYPES = ('bfloat16', 'float16', 'float32')
