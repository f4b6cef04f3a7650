"""Attention by libraries: `config.attention_kernel` names what weighs values by keys in training,
scoring and prefill.

| name | what it is | where it runs |
|---|---|---|
| xla | `model.attention`, compiled like all else (the default) | everywhere |
| cudnn | `jax.nn.dot_product_attention(implementation='cudnn')` | NVIDIA GPUs |
| flash | `tokamax.dot_product_attention` (`pip install reasonjax[kernels]`) | NVIDIA GPUs |
| splash | `jax.experimental.pallas.ops.tpu.splash_attention` | TPUs |

All but 'xla' never have the scores [B, H, S, T] in memory, in either pass. Those of GPUs are given
a mask [B, S, T]. That of TPUs takes no such mask: it compares the segments of queries and keys, and
skips blocks in which nothing is seen. What reads a cache stays with XLA: prefill in chunks, and
decoding, one token a row, whose time is that of reading the cache once (`model.decoding`).

None has been run on its hardware yet. Tests give the plain forms of the libraries the same
arguments on a CPU, compile 'splash' for TPUs, and run the others where they find a GPU.

A kernel that cannot do what a model, a batch or a device asks of it is an error, never a silent
return to 'xla'.
"""

import functools
import importlib.util
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from reasonjax.errors import UserError, listing
from reasonjax.model.config import ModelConfig
from reasonjax.parallel import layout

# (q [B, S, H, d], k and v [B, T, K, d], whether the layer is local: a bool, or an array of one) ->
# [B, S, H, d] in the dtype of q
Weigh = Callable[[jax.Array, jax.Array, jax.Array, Any], jax.Array]

# Where each runs, and the compute dtypes that it takes.
KERNELS = {
    'cudnn': ('gpu', ('bfloat16', 'float16')),
    'flash': ('gpu', ('bfloat16', 'float16')),
    'splash': ('tpu', ('bfloat16', 'float32')),
}
# Of tokamax: on Hopper and Blackwell its kernel in Mosaic, on older GPUs the one in Triton.
CUDNN, FLASH = 'cudnn', ('mosaic', 'triton')
# Splash's tiles are multiples of a vector register's lanes. Larger ones are faster, until they are
# mostly padding.
BLOCKS = (512, 256, 128)
QUERIES, KEYS = ('batch', 'time', 'heads', None), ('batch', None, 'kv_heads', None)


def weigher(
    config: ModelConfig,
    seen: Callable[[Any], jax.Array],
    segments_BxS: jax.Array,
    segments_BxT: jax.Array,
    beyond: str = '',
) -> Weigh:
    """Builds attention by the kernel that `config` names, which is not 'xla'.

    Queries are the last S of T places. On a mesh every device weighs its own rows, heads and
    queries; keys and values of a row are on one device.

    Args:
      config: the model's shape.
      seen: (whether the layer is local) -> which keys a query sees [B, S, T].
      segments_BxS: int32, of the queries. `seen` is those of equal segments, up to the query's own
        place, and in a local layer within the window.
      segments_BxT: int32, of the keys.
      beyond: what hides more than this, if anything does.

    Raises:
      UserError: more is hidden, and the kernel cannot do that.
    """
    if config.attention_kernel != 'splash':
        return lambda q, k, v, local: _by_mask(config, q, k, v, seen(local), local)
    if beyond:
        raise UserError(
            f'config.model.attention_kernel="splash": {beyond}, which it cannot follow; use "xla".'
        )

    def weigh(q: jax.Array, k: jax.Array, v: jax.Array, local: Any) -> jax.Array:
        # A window is a constant of a kernel, so that there are two for layers of both kinds in one
        # loop.
        kinds = [
            functools.partial(_by_segments, config, segments_BxS, segments_BxT, kind)
            for kind in (True, False)
        ]
        if isinstance(local, bool):
            return kinds[not local](q, k, v)
        return jax.lax.cond(local, *kinds, q, k, v)

    return weigh


def _by_mask(
    config: ModelConfig, q: jax.Array, k: jax.Array, v: jax.Array, mask_BxSxT: jax.Array, local: Any
) -> jax.Array:
    S, T = mask_BxSxT.shape[1:]
    # The mask hides all of this too, but what a kernel is told of it, it need not compute.
    how: dict[str, Any] = dict(is_causal=S == T, scale=config.query_scale or config.head_dim**-0.5)
    if local is True and S == T:
        how['local_window_size'] = (config.window - 1, 0)
    if config.attention_kernel == 'cudnn':
        attend = functools.partial(jax.nn.dot_product_attention, implementation=CUDNN)
    else:
        import tokamax

        attend = functools.partial(tokamax.dot_product_attention, implementation=FLASH)
        how['logits_soft_cap'] = config.attention_softcap or None

    def weigh(q: jax.Array, k: jax.Array, v: jax.Array, mask_BxSxT: jax.Array) -> jax.Array:
        return attend(q, k, v, mask=mask_BxSxT[:, None], **how)

    if config.attention_kernel == 'cudnn':
        # With a bias, it differentiates even lengths only.
        q, k, v, mask_BxSxT = (_padded(x, 1, 2) for x in (q, k, v, mask_BxSxT))
        mask_BxSxT = _padded(mask_BxSxT, 2, 2)
    axes = (QUERIES, KEYS, KEYS, ('batch', 'time', None))
    return _on_each_device(weigh, (q, k, v, mask_BxSxT), axes)[:, :S]


def _by_segments(
    config: ModelConfig,
    segments_BxS: jax.Array,
    segments_BxT: jax.Array,
    local: bool,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
) -> jax.Array:
    # Imported here: it brings the half of Pallas that is for TPUs.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    S, T, ways = q.shape[1], k.shape[1], layout.size('sequence')
    block_q, block_k = _block(-(-S // ways)), _block(T)
    # The kernel does not scale. In float32, so that queries are rounded once.
    scale = config.query_scale or config.head_dim**-0.5
    q = (q.astype(jnp.float32) * scale).astype(q.dtype)
    q, segments_BxS = (_padded(x, 1, block_q * ways) for x in (q, segments_BxS))
    k, v, segments_BxT = (_padded(x, 1, block_k) for x in (k, v, segments_BxT))
    shape, before = (q.shape[1], k.shape[1]), T - S
    mask = (
        masks.LocalMask(shape, (config.window - 1, 0), before)
        if local
        else masks.CausalMask(shape, before)
    )
    kinds = ('', '_dkv', '_dq')
    blocks = {f'block_q{kind}': block_q for kind in kinds}
    blocks |= {f'block_kv{kind}': block_k for kind in kinds}
    heads = q.shape[2] // (1 if q.shape[2] % layout.size('tensor') else layout.size('tensor'))
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * heads),
        block_sizes=splash.BlockSizes(**blocks),
        attn_logits_soft_cap=config.attention_softcap or None,
        head_shards=1,
        q_seq_shards=ways,
    )

    def weigh(q: jax.Array, k: jax.Array, v: jax.Array, *rest: Any) -> jax.Array:
        of_q, of_k, kernel = rest
        heads_first = (x.swapaxes(1, 2) for x in (q, k, v))
        return jax.vmap(kernel)(*heads_first, splash.SegmentIds(of_q, of_k)).swapaxes(1, 2)

    axes = (QUERIES, KEYS, KEYS, ('batch', 'time'), ('batch', None))
    arrays = (q, k, v, segments_BxS, segments_BxT)
    return _on_each_device(weigh, arrays, axes, kernel)[:, :S]


def _block(length: int) -> int:
    """Returns the largest block that pads a length by an eighth more than the smallest, at most."""
    sizes = {block: -(-length // block) * block for block in BLOCKS}
    return next(block for block, size in sizes.items() if 8 * size <= 9 * sizes[BLOCKS[-1]])


def _padded(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, widths)


def _on_each_device(function: Callable, arrays: tuple, axes: tuple, kernel: Any = None) -> Any:
    """Calls `function(q, k, v, ..., kernel)` on each device with its part of the arrays, since a
    compiler cannot split what it cannot look into; on one device, or without a mesh, as it is."""
    q, k, v, *others = arrays
    given = () if kernel is None else (kernel,)
    if layout.size(*layout.AXES) == 1:
        return function(*arrays, *given)
    mesh, ways, keys = jax.sharding.get_abstract_mesh(), layout.size('tensor'), k.shape[2]
    if q.shape[2] % ways == 0:
        # Key heads that are too few to be split like query heads.
        k, v = (jnp.repeat(x, math.lcm(keys, ways) // keys, axis=2) for x in (k, v))
    arrays = (q, k, v, *others)
    specs = [layout.partition_spec(a, x.shape, mesh.shape) for a, x in zip(axes, arrays)]
    # Of a kernel, its lists of blocks: those of queries are split, all heads are alike.
    of_kernel = [
        x.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, 'sequence'))) for x in given
    ]
    # What the kernels of Pallas give is not annotated with the axes it varies over.
    split = jax.shard_map(
        function, in_specs=(*specs, *of_kernel), out_specs=specs[0], check_vma=False
    )
    return split(*arrays, *given)


def check(config: ModelConfig, device: Any, sizes: Mapping[str, int]) -> None:
    """Raises UserError where `config.attention_kernel` cannot run the model on such devices.

    Args:
      config: the model's shape.
      device: one of those that the program is for.
      sizes: of the mesh axes.
    """
    name = config.attention_kernel
    if name == 'xla':
        return
    (where, dtypes), key = KERNELS[name], f'config.model.attention_kernel="{name}"'
    here = [other for other, (platform, _) in KERNELS.items() if platform == device.platform]
    if name not in here:
        raise UserError(
            f'{key}: runs on {where.upper()}s, not on "{device.platform}"; use one of '
            f'{listing([*here, "xla"])}.'
        )
    dtype, cap = config.compute_dtype, config.attention_softcap
    for wrong, why in (
        (dtype not in dtypes, f'compute_dtype="{dtype}" must be one of {listing(dtypes)}'),
        (config.attention_chunk, 'it never has all scores at once; set attention_chunk=0'),
        (name == 'cudnn' and cap, f'it cannot cap scores (attention_softcap={cap})'),
        (
            where == 'gpu' and sizes.get('sequence', 1) > 1,
            'it needs the tokens of a row on one device; set mesh.sequence=1',
        ),
        (
            name == 'flash' and importlib.util.find_spec('tokamax') is None,
            'it needs tokamax: pip install reasonjax[kernels]',
        ),
    ):
        if wrong:
            raise UserError(f'{key}: {why}, or use "xla".')
    try:
        jax.eval_shape(functools.partial(_gradient, config), *_example(config))
    except Exception as error:
        # Several where a library has tried several kernels.
        reasons = [' '.join(str(e).split()) for e in getattr(error, 'exceptions', (error,))]
        raise UserError(
            f'{key}: it refuses this model on this device ({"; ".join(reasons)}); use "xla".'
        ) from error


def _example(config: ModelConfig) -> list[jax.ShapeDtypeStruct]:
    heads = (config.heads, config.kv_heads, config.kv_heads)
    shapes = [(1, BLOCKS[-1], number, config.head_dim) for number in heads]
    return [jax.ShapeDtypeStruct(shape, config.compute_dtype) for shape in shapes]


def _gradient(config: ModelConfig, *qkv: jax.Array) -> Any:
    segments = jnp.ones((1, BLOCKS[-1]), jnp.int32)
    causal = jnp.tri(BLOCKS[-1], dtype=bool)[None]
    weigh = weigher(config, lambda local: causal, segments, segments)
    return jax.grad(lambda *qkv: weigh(*qkv, False).sum().astype(jnp.float32), (0, 1, 2))(*qkv)
