"""The attention kernel of TPUs. See `model.kernels` for what kernels have in common.

Where a row is split over devices, each takes its own queries and all keys. `splash_attention` is
imported where it is used: it brings the half of Pallas that is for TPUs.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from reasonjax.model.config import ModelConfig
from reasonjax.model.kernels_devices import KEYS, filled, heads_of_device, on_each_device
from reasonjax.parallel import layout

# The kernel's tiles are multiples of a vector register's lanes. Larger ones are faster, until they
# are mostly filling.
BLOCKS = (512, 256, 128)
QUERIES = ('batch', 'time', 'heads', None)


def segments(config: ModelConfig, segments_BxT: jax.Array, attend_BxT: None) -> tuple[jax.Array]:
    """The kernel compares segments by itself."""
    del config, attend_BxT
    return (segments_BxT,)


def of_bins(
    config: ModelConfig,
    shown_BxTp: jax.Array,
    segments_BxL: jax.Array,
    attend_BxL: None,
    distance_BxLxT: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Which keys of the prompt are seen, and the segments of the bin."""
    del config, attend_BxL, distance_BxLxT
    return shown_BxTp.astype(jnp.int32), segments_BxL


def splash(
    config: ModelConfig,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    prepared: tuple[jax.Array],
    local: bool,
) -> jax.Array:
    """Splash attention within rows; see `model.kernels.causal`."""
    (segments_BxT,) = prepared
    T = q.shape[1]
    kernel = _kernel(config, q.shape[2], T, T, 'local' if local else 'causal')

    def weigh(
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        of_q_BxT: jax.Array,
        of_k_BxT: jax.Array,
        kernel: Any,
    ) -> jax.Array:
        return jax.vmap(kernel)(*_heads_first(q, k, v), _ids(of_q_BxT, of_k_BxT)).swapaxes(1, 2)

    arrays = (
        *_of_queries(_scaled(config, q)),
        *_of_keys(k, v),
        *_of_queries(segments_BxT),
        *_of_keys(segments_BxT),
    )
    axes = (QUERIES, KEYS, KEYS, ('batch', 'time'), ('batch', None))
    return on_each_device(weigh, arrays, axes, (kernel,), (_specs(kernel),))[:, :T]


def splash_bins(
    config: ModelConfig,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    prepared: tuple[jax.Array, ...],
    local: bool,
) -> jax.Array:
    """Splash attention to prompts and bins; see `model.kernels.in_bins`.

    All completions of a bin see one prompt, which segments cannot say: what they make of the prompt
    and of the bin is computed apart.
    """
    shown_BxTp, segments_BxL = prepared
    Tp, L = shown_BxTp.shape[1], segments_BxL.shape[1]
    to_prompt = _kernel(
        config, q.shape[2], L, Tp, 'ahead' if local else 'full', save_residuals=True
    )
    to_bin = _kernel(config, q.shape[2], L, L, 'local' if local else 'causal', save_residuals=True)

    def weigh(q: jax.Array, of_q_BxL: jax.Array, *rest: Any) -> jax.Array:
        *of_keys, to_prompt, to_bin = rest
        k_prompt, v_prompt, k_bin, v_bin = _heads_first(*of_keys[:4])
        prompt = k_prompt, v_prompt, _ids(jnp.ones_like(of_q_BxL), of_keys[4])
        own = k_bin, v_bin, _ids(of_q_BxL, of_keys[5])
        one_softmax = jax.vmap(_one_softmax, in_axes=(0, 0, None))
        return one_softmax(q.swapaxes(1, 2), (prompt, own), (to_prompt, to_bin)).swapaxes(1, 2)

    arrays = (
        *_of_queries(_scaled(config, q), segments_BxL),
        *_of_keys(k[:, :Tp], v[:, :Tp]),
        *_of_keys(k[:, Tp:], v[:, Tp:]),
        *_of_keys(shown_BxTp),
        *_of_keys(segments_BxL),
    )
    axes = (QUERIES, ('batch', 'time'), KEYS, KEYS, KEYS, KEYS, ('batch', None), ('batch', None))
    specs = _specs(to_prompt) if local else PartitionSpec(), _specs(to_bin)
    return on_each_device(weigh, arrays, axes, (to_prompt, to_bin), specs)[:, :L]


@jax.custom_vjp
def _one_softmax(q: jax.Array, pieces: tuple, kernels: tuple) -> jax.Array:
    """Attention to several pieces of keys in one softmax.

    Args:
      q: [H, S, d].
      pieces: of each, keys and values [K, T, d] and the segments of queries and keys.
      kernels: one for each, that give the logarithm of their softmax's denominator too.
    """
    return _one_softmax_forward(q, pieces, kernels)[0]


def _one_softmax_forward(q: jax.Array, pieces: tuple, kernels: tuple) -> tuple[jax.Array, tuple]:
    found = [kernel(q, *piece) for kernel, piece in zip(kernels, pieces)]
    log_HxS = functools.reduce(jnp.logaddexp, [log for _, (log,) in found])
    # Where a piece ends before the window of a query, nothing was summed, and divided by that.
    parts = [
        jnp.where(jnp.isfinite(log), jnp.exp(log - log_HxS), 0)[..., None] * jnp.nan_to_num(part)
        for part, (log,) in found
    ]
    out = sum(parts).astype(q.dtype)
    return out, (q, pieces, kernels, out, log_HxS)


def _one_softmax_backward(kept: tuple, d_out: jax.Array) -> tuple:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    q, pieces, kernels, out, log_HxS = kept
    d_q, d_pieces = 0.0, []
    # A kernel's backward pass computes its weights again from the denominator that it is given:
    # that of all pieces makes them those of one softmax (Dao 2023, arXiv:2307.08691, section
    # 2.3.2), whose gradients are then sums over pieces.
    for kernel, (k, v, ids) in zip(kernels, pieces):
        kept_of_piece = (
            q,
            k,
            v,
            ids,
            None,
            out,
            log_HxS,
            kernel.dq_mask_info,
            kernel.dkv_mask_info,
        )
        settings = kernel.kwargs | {'save_residuals': False}
        *_, d_q_of_piece, d_k, d_v, _, _ = splash_attention_kernel._splash_attention_bwd(
            **settings, res=kept_of_piece, do=d_out
        )
        d_q = d_q + d_q_of_piece.astype(jnp.float32)
        d_pieces.append((d_k, d_v, None))
    return d_q.astype(q.dtype), tuple(d_pieces), None


_one_softmax.defvjp(_one_softmax_forward, _one_softmax_backward)


def block_of(length: int) -> int:
    """The largest block that fills up a length to hardly more, an eighth at most, than the smallest
    does."""
    return next(
        block for block in BLOCKS if 8 * whole(length, block) <= 9 * whole(length, BLOCKS[-1])
    )


def whole(length: int, block: int) -> int:
    """Up to whole blocks."""
    return -(-length // block) * block


def _kernel(
    config: ModelConfig,
    heads: int,
    queries: int,
    keys: int,
    kind: str,
    save_residuals: bool = False,
) -> Any:
    """A kernel for queries and keys that are filled up to whole blocks; from its mask it knows
    which blocks need not be computed.

    Kinds: a query sees keys up to its own place ('causal') and within the window ('local'); it sees
    all ('full'), or those that are within the window where the first query comes behind the last
    key ('ahead').
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    block_q, block_k, ways = _block_of_queries(queries), block_of(keys), layout.size('sequence')
    shape = whole(queries, block_q * ways), whole(keys, block_k)
    if kind == 'full':
        # The same for all queries, and splitting it fails in jax 0.10.1: each device has a kernel
        # of its own.
        shape, ways = (shape[0] // ways, shape[1]), 1
    mask = {
        'causal': lambda: masks.CausalMask(shape),
        'local': lambda: masks.LocalMask(shape, (config.window - 1, 0), 0),
        'full': lambda: masks.FullMask(shape),
        'ahead': lambda: masks.LocalMask(shape, (config.window - 1, None), keys),
    }[kind]()
    blocks = kernels.BlockSizes(
        block_q=block_q,
        block_kv=block_k,
        block_q_dkv=block_q,
        block_kv_dkv=block_k,
        block_q_dq=block_q,
        block_kv_dq=block_k,
    )
    return kernels.make_splash_mha(
        masks.MultiHeadMask([mask] * heads_of_device(heads)),
        block_sizes=blocks,
        attn_logits_soft_cap=config.attention_softcap or None,
        head_shards=1,
        q_seq_shards=ways,
        save_residuals=save_residuals,
    )


def _block_of_queries(length: int) -> int:
    return block_of(-(-length // layout.size('sequence')))


def _specs(kernel: Any) -> Any:
    """How a kernel's lists of blocks are split: those of the queries over `sequence`, all heads
    alike."""
    mesh = jax.sharding.get_abstract_mesh()
    return (
        None
        if mesh.empty
        else kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, 'sequence')))
    )


def _scaled(config: ModelConfig, q: jax.Array) -> jax.Array:
    # The kernel does not scale. In float32, so that queries are rounded once.
    return (q.astype(jnp.float32) * (config.query_scale or config.head_dim**-0.5)).astype(q.dtype)


def _of_queries(*arrays_BxT: jax.Array) -> list[jax.Array]:
    T = arrays_BxT[0].shape[1]
    return [
        filled(x, 1, whole(T, _block_of_queries(T) * layout.size('sequence'))) for x in arrays_BxT
    ]


def _of_keys(*arrays_BxT: jax.Array) -> list[jax.Array]:
    T = arrays_BxT[0].shape[1]
    return [filled(x, 1, whole(T, block_of(T))) for x in arrays_BxT]


def _heads_first(*arrays_BxTxHxd: jax.Array) -> list[jax.Array]:
    return [x.swapaxes(1, 2) for x in arrays_BxTxHxd]


def _ids(of_queries: jax.Array, of_keys: jax.Array) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    return splash_attention_kernel.SegmentIds(of_queries, of_keys)
