"""What planned programs read and hold, as shapes: batches, references, and the bytes of each on one
device."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from reasonjax import config as configs
from reasonjax.errors import UserError
from reasonjax.model.spec import is_spec


@dataclasses.dataclass(frozen=True)
class Blank:
    """Stands for a tokenizer where only the model's shape matters."""

    vocab_size: int
    pad_id: int = 0
    eos_ids: tuple[int, ...] = (1,)
    bos_id: int | None = None

    @property
    def mask_id(self) -> int:
        return self.vocab_size - 1


def vocabulary(config: ml_collections.ConfigDict) -> int:
    """Returns the size of the model's vocabulary: as the config says, or else the tokenizer's.

    Raises:
      UserError: neither is there.
    """
    if config.model.get('vocab_size'):
        return config.model.vocab_size
    if config.tokenizer.name == 'sentencepiece' and not config.tokenizer.path:
        # It would be trained to this size.
        return config.tokenizer.vocab_size
    try:
        tokenizer = configs.resolve(config.tokenizer, 'tokenizer')(None, None)
    except UserError as error:
        raise UserError(
            f'{error} To plan without a tokenizer, give --config.model.vocab_size.'
        ) from error
    return max(tokenizer.vocab_size, (tokenizer.mask_id or 0) + 1)


def inherited(specs: Any, incoming: Any, params: Any, trains: Any) -> Any:
    """Finds which arrays of `params` are incoming ones, untouched: the same memory.

    Args:
      specs: the spec tree.
      incoming: parameters as the stage finds them.
      params: the same with the stage's adapter.
      trains: tree of bool like `params`.

    Returns:
      Tree over the specs' leaves: how many adapters down the array lies, or -1 where the incoming
        one is another array.
    """

    def depth(spec: Any, start: Any, leaf: Any, train: Any) -> int:
        for steps in range(8):
            if jax.tree.structure(leaf) == jax.tree.structure(start):
                return -1 if True in jax.tree.leaves(train) else steps
            if not hasattr(leaf, 'base'):
                return -1
            leaf, train = leaf.base, train.base
        return -1

    return jax.tree.map(depth, specs, incoming, params, trains, is_leaf=is_spec)


def apart(specs: Any, incoming: Any, depths: Any) -> Any:
    """Returns incoming parameters that share no memory with the stage's own; None elsewhere."""
    return jax.tree.map(
        lambda _, leaf, depth: leaf if depth < 0 else None,
        specs,
        incoming,
        depths,
        is_leaf=is_spec,
    )


def joined(specs: Any, apart: Any, params: Any, depths: Any) -> Any:
    """Rebuilds the incoming parameters, from what `apart` has and what `params` shares."""

    def pick(spec: Any, own: Any, leaf: Any, depth: int) -> Any:
        for _ in range(depth):
            leaf = leaf.base
        return own if depth < 0 else leaf

    return jax.tree.map(pick, specs, apart, params, depths, is_leaf=is_spec)


def shardings(tree: Any) -> Any:
    """Returns the shardings of a tree of shapes."""
    return jax.tree.map(lambda x: x.sharding, tree)


def bytes_of(tree: Any) -> int:
    """Counts the bytes that one device holds of shapes with shardings, without layout padding."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * _itemsize(x.dtype)
        for x in jax.tree.leaves(tree)
    )


def _itemsize(dtype: Any) -> int:
    # A key is two words.
    return 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else jnp.dtype(dtype).itemsize
