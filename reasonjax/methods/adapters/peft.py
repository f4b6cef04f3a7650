"""Going on from an adapter that PEFT or an export has written."""

from typing import Any

import jax

from reasonjax.errors import UserError
from reasonjax.model.peft import put_adapter, read_adapter


def peft(params: Any, key: jax.Array, *, path: str) -> Any:
    """Puts the pairs of a PEFT LoRA folder over the matrices they were made for: W + scale A B, with A and B as the file has them.

    Ranks and scales are the folder's; layers that it leaves out get pairs of zeros, which stay zero in training. The folder is read again
    whenever the run is opened.

    Args:
      params: parameter tree, or its shapes.
      key: not used.
      path: folder with adapter_config.json and adapter_model.safetensors.

    Raises:
      UserError: no such folder, an adapter of another kind, or one for another base.
    """
    del key
    try:
        return put_adapter(params, read_adapter(path))
    except UserError as error:
        raise UserError(f'config.adapter.path: {error}') from error
