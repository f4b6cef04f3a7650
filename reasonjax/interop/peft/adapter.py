"""Going on from an adapter that PEFT or an export has written."""

from typing import Any

import jax

from reasonjax.bounds import AtLeast, OneOf
from reasonjax.errors import UserError
from reasonjax.interop.peft.put import put_adapter
from reasonjax.interop.peft.read import read_adapter
from reasonjax.methods.adapters.quantise import BLOCK, CHOICES
from reasonjax.methods.adapters.quantise import quantise as quantised
from reasonjax.methods.adapters.targets import LAYERS


def peft(
    params: Any,
    key: jax.Array,
    *,
    path: str,
    quantise: OneOf(*CHOICES) = 'none',
    quantise_block: AtLeast(1) = BLOCK,
    quantise_modules: tuple[str, ...] = LAYERS,
) -> Any:
    """Puts the pairs of a PEFT LoRA folder over the matrices they were made for: W + scale A B,
    with A and B as the file has them.

    Ranks and scales are the folder's; layers that it leaves out get pairs of zeros, which stay zero
    in training. The folder is read again whenever the run is opened.

    Args:
      params: parameter tree, or its shapes.
      key: not used.
      path: folder with adapter_config.json and adapter_model.safetensors.
      quantise: none | int8 | nf4, how the base under the pairs is kept.
      quantise_block: see `adapters.quantise`.
      quantise_modules: see `adapters.quantise`.

    Raises:
      UserError: no such folder, an adapter of another kind, one for another base, or what
        `adapters.quantise` refuses.
    """
    params = quantised(
        params,
        key,
        quantise=quantise,
        quantise_block=quantise_block,
        quantise_modules=quantise_modules,
    )
    try:
        return put_adapter(params, read_adapter(path))
    except UserError as error:
        raise UserError(f'config.adapter.path: {error}') from error
