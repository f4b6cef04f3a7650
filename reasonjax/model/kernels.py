"""Attention by backend: `config.attention_kernel` names who weighs values by keys in training,
scoring and prefill.

| name | what it is | where it runs |
|---|---|---|
| xla | `model.attention`, compiled like all else (the default) | everywhere |
| cudnn | `jax.nn.dot_product_attention` with cuDNN; what segments hide is a bias [B, S, T] in the compute dtype | NVIDIA GPUs |
| flash | Pallas kernels of tokamax (`pip install reasonjax[kernels]`); segments are the first key of each query | NVIDIA GPUs |
| splash | `jax.experimental.pallas.ops.tpu.splash_attention`; skips blocks in which nothing is seen | TPUs |

All but 'xla' never have the scores [B, H, S, T] in memory, in either pass. What reads a cache stays
with XLA on every backend: prefill in chunks, and decoding, one token a row, whose time is that of
reading the cache once (`model.decoding`).

None has been run on its hardware yet. Tests interpret 'splash' and compile it for TPUs, give the
plain forms of the libraries behind 'cudnn' and 'flash' the same arguments on a CPU, and run those
two where they find a GPU.

A kernel that cannot do what a model, a batch or a device asks of it is an error, never a quiet
return to 'xla'.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from reasonjax.errors import UserError, listing
from reasonjax.model import kernels_gpu, kernels_tpu
from reasonjax.model.config import ModelConfig
from reasonjax.model.kernels_devices import repeated
from reasonjax.parallel import layout

# (q [B, S, H, d], k and v [B, T, K, d], whether the layer is local: a bool, or an array of one) ->
# [B, S, H, d] in the dtype of q
Weigh = Callable[[jax.Array, jax.Array, jax.Array, Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What a kernel asks for and can do.

    Attributes:
      platform: of the devices.
      prepare, weigh: (config, segments_BxT, attend_BxT or None) -> what `weigh` has to know of the
        rows, a tuple of arrays [B, ...], and (config, q, k, v, prepared, local) -> out, where
        `local` is a bool. See `causal`.
      prepare_bins, weigh_bins: the same of `in_bins`, with its arguments.
      dtypes: compute dtypes.
      head_dim: the widest head.
      multiple: of which the width of a head is one.
      softcap: scores may be capped.
      masks: it takes any mask, with which positions can be hidden as keys, and windows followed in
        all bins.
      time: the tokens of a row may be split over devices.
    """

    platform: str
    prepare: Callable[..., tuple]
    weigh: Callable[..., jax.Array]
    prepare_bins: Callable[..., tuple]
    weigh_bins: Callable[..., jax.Array]
    dtypes: tuple[str, ...] = ('bfloat16', 'float16')
    head_dim: int = 256
    multiple: int = 8
    softcap: bool = True
    masks: bool = True
    time: bool = False


KERNELS = {
    'cudnn': Kernel(
        'gpu',
        kernels_gpu.same_segment,
        kernels_gpu.dot_product,
        kernels_gpu.of_bins,
        kernels_gpu.dot_product_bins,
        softcap=False,
    ),
    'flash': Kernel(
        'gpu',
        kernels_gpu.first_keys,
        kernels_gpu.flash,
        kernels_gpu.of_bins,
        kernels_gpu.flash_bins,
    ),
    'splash': Kernel(
        'tpu',
        kernels_tpu.segments,
        kernels_tpu.splash,
        kernels_tpu.of_bins,
        kernels_tpu.splash_bins,
        dtypes=('bfloat16', 'float32'),
        multiple=1,
        masks=False,
        time=True,
    ),
}


def causal(
    config: ModelConfig, segments_BxT: jax.Array, attend_BxT: jax.Array | None = None
) -> Weigh:
    """Causal attention within segments by the kernel that `config` names, which is not 'xla'.

    On a mesh every device weighs its own rows and heads; keys and values of a row are whole.

    Args:
      config: the model's shape.
      segments_BxT: int32; the tokens of a segment are neighbours. What padding (segment 0) is given
        is finite, and means nothing.
      attend_BxT: optional bool; False hides a position as a key (from all but itself).

    Raises:
      UserError: positions are hidden, and the kernel cannot do that.
    """
    if attend_BxT is not None:
        _needs_masks(config, 'this batch hides positions as keys (`attend`)')
    kernel = KERNELS[config.attention_kernel]
    return _by_kind(config, kernel.weigh, kernel.prepare(config, segments_BxT, attend_BxT))


def in_bins(
    config: ModelConfig,
    shown_BxTp: jax.Array,
    segments_BxL: jax.Array,
    attend_BxL: jax.Array | None,
    distance_BxLxT: jax.Array,
    packed: bool,
) -> Weigh:
    """Attention of bins of completions to their prompt and, as `causal`, among themselves, in one
    softmax; see `model.groups`.

    Args:
      config: the model's shape.
      shown_BxTp: bool, which keys are of the prompt; they come first in k and v [B, Tp + L, K, d].
      segments_BxL: int32; as in `causal`.
      attend_BxL: as in `causal`.
      distance_BxLxT: int32, how far away keys [Tp + L] are, for the window of a local layer.
      packed: a bin may have several completions. If not, keys are as far away as they are columns
        apart.

    Raises:
      UserError: positions are hidden, or windows are to be followed in bins that are packed or
        split over devices, and the kernel cannot.
    """
    if attend_BxL is not None:
        _needs_masks(config, 'this batch hides positions as keys (`attend`)')
    if any(config.local) and (packed or layout.size('sequence') > 1):
        _needs_masks(
            config,
            'prompts are shared, layers are local, and rows are '
            + ('packed' if packed else 'split over devices'),
        )
    kernel = KERNELS[config.attention_kernel]
    return _by_kind(
        config,
        kernel.weigh_bins,
        kernel.prepare_bins(config, shown_BxTp, segments_BxL, attend_BxL, distance_BxLxT),
    )


def _by_kind(config: ModelConfig, of_kind: Callable[..., jax.Array], prepared: tuple) -> Weigh:
    def weigh(q: jax.Array, k: jax.Array, v: jax.Array, local: Any) -> jax.Array:
        k, v = (repeated(x, q.shape[2]) for x in (k, v))
        if isinstance(local, bool):
            return of_kind(config, q, k, v, prepared, local)
        # Layers of both kinds in one loop: a window is a constant of a kernel, so that there are
        # two.
        kinds = [
            lambda *qkv, kind=kind: of_kind(config, *qkv, prepared, kind) for kind in (True, False)
        ]
        return jax.lax.cond(local, *kinds, q, k, v)

    return weigh


def _needs_masks(config: ModelConfig, why: str) -> None:
    if not KERNELS[config.attention_kernel].masks:
        able = listing([name for name, kernel in KERNELS.items() if kernel.masks] + ['xla'])
        raise UserError(
            f'config.model.attention_kernel="{config.attention_kernel}": {why}, which it cannot '
            f'follow; use one of {able}.'
        )


def check(config: ModelConfig, device: Any, sizes: Mapping[str, int]) -> None:
    """Raises UserError where `config.attention_kernel` cannot run the model on such devices; see
    `Kernel`.

    Args:
      config: the model's shape.
      device: one of those that the program is for.
      sizes: of the mesh axes.
    """
    name = config.attention_kernel
    if name == 'xla':
        return
    kernel, key = KERNELS[name], f'config.model.attention_kernel="{name}"'
    here = [other for other, k in KERNELS.items() if k.platform == device.platform]
    if name not in here:
        raise UserError(
            f'{key}: runs on {kernel.platform.upper()}s, not on "{device.platform}"; use one of '
            f'{listing([*here, "xla"])}.'
        )
    if config.compute_dtype not in kernel.dtypes:
        raise UserError(
            f'{key}: computes in one of {listing(kernel.dtypes)}, not in '
            f'compute_dtype="{config.compute_dtype}".'
        )
    if config.attention_chunk:
        raise UserError(
            f'{key}: never has all scores at once, so that there is nothing to chunk; set '
            'attention_chunk=0.'
        )
    if config.attention_softcap and not kernel.softcap:
        able = [other for other in here if KERNELS[other].softcap] + ['xla']
        raise UserError(
            f'{key}: cannot cap scores (attention_softcap={config.attention_softcap}); use one of '
            f'{listing(able)}.'
        )
    if sizes.get('sequence', 1) > 1 and not kernel.time:
        raise UserError(
            f'{key}: needs the tokens of a row on one device; set mesh.sequence=1, or use "xla".'
        )
    if config.head_dim > kernel.head_dim or config.head_dim % kernel.multiple:
        near = min(kernel.head_dim, -(-config.head_dim // kernel.multiple) * kernel.multiple)
        raise UserError(
            f'{key}: head_dim={config.head_dim} must be a multiple of {kernel.multiple} and at '
            f'most {kernel.head_dim} (nearest: {near}); '
            f'"xla" takes any.'
        )
    if kernel.platform == 'gpu':
        kernels_gpu.check(config, device)
