"""Arithmetic and memory traffic of a model, counted from its shape.

The compiler's own count takes the body of a loop once, so that a scan over layers would count as
one. Here every product of two matrices is listed once, with how often it runs; everything else
(norms, rotations, softmax, optimiser arithmetic, the look-up of embeddings) is left out, a few per
cent in models of some width.

Traffic is counted by one rule: a product reads both its operands and writes its result, once, and
what stands between products costs nothing, as if it were always fused into one of them. Weights are
read in the dtype of the computation. It is the least that a program without fused attention moves.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from reasonjax.model.attention import block_length
from reasonjax.model.config import ModelConfig
from reasonjax.model.spec import is_spec
from reasonjax.weights.linear import LowRank
from reasonjax.weights.partition import path_name

# The logical axis of rows (`parallel.layout.RULES`).
ROWS = 'batch'


@dataclasses.dataclass(frozen=True)
class Product:
    """`times` products of [rows, inner] with [inner, columns].

    Attributes:
      name: of the weight, or 'scores' and 'weighted' for the two of the attention, 'head' for the
        vocabulary.
      rows, inner, columns, times: see above.
      axes: logical axes of rows, inner, columns and times; None where one is never split.
      trains: the right operand gets a gradient, as the left one always does.
      inside: part of a block, which the backward pass may recompute.
      needed: share of it that is not masked.
      wide: the result is float32.
      banks: right operands that the rows are shared among: experts.
    """

    name: str
    rows: float
    inner: float
    columns: float
    times: float
    axes: tuple[str | None, str | None, str | None, str | None]
    trains: bool = True
    inside: bool = True
    needed: float = 1.0
    wide: bool = False
    banks: int = 1

    @property
    def flops(self) -> float:
        """A multiplication and an addition per term."""
        return 2.0 * self.rows * self.inner * self.columns * self.times


def matrices(
    config: ModelConfig,
    specs: Any,
    params: Any,
    trains: Any,
    tokens: float,
    predicting: float | None = None,
) -> list[Product]:
    """Lists the products of `tokens` tokens with the weights of all layers, and with the head.

    Args:
      config: the model's shape.
      specs: its spec tree.
      params: arrays or shapes, low-rank pairs included, each of which is two products besides its
        base.
      trains: tree of bool like `params`.
      tokens: rows of every product (those of a bank of experts: tokens x experts per token).
      predicting: rows of the product with the head, where only some tokens meet it.
    """
    products = []
    leaves, structure = jax.tree_util.tree_flatten_with_path(specs, is_leaf=is_spec)
    pairs = zip(
        leaves, structure.flatten_up_to(params), structure.flatten_up_to(trains), strict=True
    )
    for (path, spec), leaf, train in pairs:
        name = path_name(path).rpartition('/')[2]
        stacked = spec.axes[0] == 'layers'
        shape, axes = (spec.shape[1:], spec.axes[1:]) if stacked else (spec.shape, spec.axes)
        if name == 'embed' and config.tied:
            shape, axes, name = shape[::-1], axes[::-1], 'head'
        if len(shape) < 2 or name == 'embed':
            continue
        bank = axes[0] == 'expert'
        rows = tokens * config.experts_per_token if bank else tokens
        if name == 'head' and predicting is not None:
            rows = predicting
        layers, banks = (spec.shape[0] if stacked else 1), (config.experts if bank else 1)
        product = Product(
            name,
            rows,
            *shape[-2:],
            layers,
            (ROWS, *axes[-2:], None),
            inside=stacked,
            wide=name == 'head',
            banks=banks,
        )
        products += _applied(product, leaf, train)
    return products


def _applied(product: Product, leaf: Any, train: Any) -> list[Product]:
    """Lists the products with a leaf: one, or with a low-rank pair its base's and two more."""
    if not isinstance(leaf, LowRank):
        # A node of another kind is made dense before it is applied; its parts train together or not
        # at all.
        return [dataclasses.replace(product, trains=any(jax.tree.leaves(train)))]
    rank, (rows, inner, columns, times) = leaf.a.shape[-1], product.axes
    low = dataclasses.replace(
        product,
        name=f'{product.name}/a',
        columns=rank,
        axes=(rows, inner, None, times),
        trains=train.a,
        wide=False,
    )
    high = dataclasses.replace(
        product,
        name=f'{product.name}/b',
        inner=rank,
        axes=(rows, None, columns, times),
        trains=train.b,
        wide=False,
    )
    return [*_applied(product, leaf.base, train.base), low, high]


def attention(config: ModelConfig, rows: int, length: int) -> list[Product]:
    """Lists the two products of self-attention in all layers, as the forward pass computes them.
    They are of all pairs of positions, or of blocks of queries with the keys up to the block's last
    (where no row is split over devices)."""
    group, heads = config.heads // config.kv_heads, rows * config.kv_heads
    keys = float(length)  # that a query meets, on average
    if config.attention_kernel == 'xla' and not 0 < config.attention_chunk < length:
        size = block_length(length)
        ends = [min(start + size, length) for start in range(0, length, size)]
        keys = sum(end * (end - start) for start, end in zip([0, *ends], ends)) / length
    common = dict(
        times=heads * config.layers,
        trains=True,
        needed=0.5 * length / keys,
        axes=(None, None, None, 'kv_heads'),
    )
    return [
        Product('scores', length * group, config.head_dim, keys, wide=True, **common),
        Product('weighted', length * group, keys, config.head_dim, **common),
    ]


def grouped_attention(
    config: ModelConfig, prompts: int, prompt_length: int, rows: int, length: int
) -> list[Product]:
    """Lists the products of attention with shared prompts. Each prompt attends to itself, each of
    `rows` completions to its prompt and to itself."""
    apart = [*attention(config, prompts, prompt_length), *attention(config, rows, length)]
    to_prompts = [
        dataclasses.replace(p, needed=1.0, **{'columns' if p.wide else 'inner': prompt_length})
        for p in attention(config, rows, length)
    ]
    return apart + to_prompts


def cached_attention(
    config: ModelConfig, prompts: int, prompt_length: int, group: int, own_length: int
) -> list[Product]:
    """Lists the attention products of one decoding step. `group` rows of each prompt share its
    keys, and each has room for `own_length` of its own."""
    heads = config.heads // config.kv_heads
    parts = ((prompts, group * heads, prompt_length), (prompts * group, heads, own_length))
    axes = (None, None, None, 'kv_heads')
    products = []
    for caches, rows, length in parts:
        times = caches * config.kv_heads * config.layers
        products.append(Product('scores', rows, config.head_dim, length, times, axes, wide=True))
        products.append(Product('weighted', rows, length, config.head_dim, times, axes))
    return products


def forward(products: Iterable[Product]) -> list[tuple[Product, float]]:
    """Pairs each product with how often it runs in a forward pass: once."""
    return [(product, 1.0) for product in products]


def training(config: ModelConfig, products: Iterable[Product]) -> list[tuple[Product, float]]:
    """Pairs each product with how often a forward and a backward pass run it, or one of its size.

    The backward pass has one product per operand that gets a gradient, and the scores of attention
    once more. What else it recomputes depends on `remat` and on `logprob_chunk`; a block's last
    product is never recomputed, because nothing of the block reads its result.
    """
    return [(product, 2.0 + product.trains + _recomputed(config, product)) for product in products]


def _recomputed(config: ModelConfig, product: Product) -> float:
    name = product.name.partition('/')[0]
    if not product.inside:
        return float(config.logprob_chunk > 0)
    kind, _, kept = config.remat.partition(':')
    of_attention = name in ('scores', 'weighted')
    # For their own gradient, whatever the block recomputes.
    again = float(name == 'scores')
    if kind == 'none' or (kind == 'dots' and not of_attention):
        return again
    if (
        name == 'down'
        and config.norms == 'before'
        or of_attention
        and 'attended' in kept.split(',')
    ):
        return again
    return again + float(name not in kept.split(','))


def flops(counted: Iterable[tuple[Product, float]]) -> float:
    """Counts the operations of all products, on all devices together."""
    return sum(product.flops * times for product, times in counted)


def useful(counted: Iterable[tuple[Product, float]], config: ModelConfig, train: bool) -> float:
    """Counts the operations that the result needs, for MFU. Nothing counts twice, and of
    self-attention only the half that is not masked."""
    once = ((p, times - (_recomputed(config, p) if train else 0)) for p, times in counted)
    return sum(p.flops * times * p.needed for p, times in once)


def traffic(counted: Iterable[tuple[Product, float]], dtype: Any, ways: Mapping[str, int]) -> float:
    """Counts the bytes that one device reads and writes for its share of the products.

    Args:
      counted: products and how often each runs.
      dtype: of operands.
      ways: logical axis -> over how many devices it is split where products are computed (weights
        are gathered along 'embed' first).
    """
    size = jnp.dtype(dtype).itemsize

    def local(number: float, axis: str | None) -> float:
        return number / min(ways.get(axis, 1), max(1.0, number)) if axis else number

    moved = 0.0
    for p, times in counted:
        rows, inner, columns = (
            local(number, axis) for number, axis in zip((p.rows, p.inner, p.columns), p.axes)
        )
        # Copies of an attention's products are rows of the batch times heads.
        copies = (
            p.times / ways.get(ROWS, 1) / ways.get('kv_heads', 1)
            if p.axes[3] == 'kv_heads'
            else p.times
        )
        # However many rows pick an expert, its matrix is read once.
        matrix = inner * columns * local(min(p.banks, p.rows), 'expert')
        moved += (
            times
            * copies
            * (rows * inner * size + matrix * size + rows * columns * (4 if p.wide else size))
        )
    return moved
