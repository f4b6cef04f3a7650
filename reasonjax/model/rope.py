"""Rotary frequencies: `(theta, width, *, knobs) -> (frequencies [width / 2] float64, factor of
cosines and sines)`, in NumPy.

A scaling is named in `config.model.rope_scaling` with the field's names for its knobs. None depends
on the sequence at hand: where the published method does (dynamic, longrope), the knob `length` says
for which length to compute, once for a run. Keys in a cache then stay right, a log-prob does not
depend on what else is in the batch, and sampling agrees with scoring.
"""

import math

import numpy as np

from reasonjax.bounds import AtLeast, NonNegative, Positive
from reasonjax.errors import UserError

Frequencies = tuple[np.ndarray, float]


def none(theta: float, width: int) -> Frequencies:
    """Computes the plain frequencies theta^(-2 i / width) (Su et al. 2021, arXiv:2104.09864)."""
    return theta ** (-np.arange(0, width, 2, dtype=np.float64) / width), 1.0


def linear(theta: float, width: int, *, factor: Positive) -> Frequencies:
    """Interpolates positions, dividing by `factor` (Chen et al. 2023, arXiv:2306.15595)."""
    return none(theta, width)[0] / factor, 1.0


def dynamic(
    theta: float,
    width: int,
    *,
    factor: Positive,
    original_max_position_embeddings: AtLeast(1),
    length: AtLeast(0) = 0,
) -> Frequencies:
    """Scales the base for a sequence of `length` tokens (NTK-aware), if it exceeds the original
    length.

    Args:
      theta: base.
      width: rotated part of a head.
      factor: of the context, at most.
      original_max_position_embeddings: what the model was trained with.
      length: longest sequence of this run; 0 for no longer than the original.
    """
    # Of the published factor * L / L0 - (factor - 1), the form that is exactly 1 where L is L0.
    stretch = 1 + factor * (
        max(length, original_max_position_embeddings) / original_max_position_embeddings - 1
    )
    return none(theta * stretch ** (width / (width - 2)), width)


def llama3(
    theta: float,
    width: int,
    *,
    factor: Positive,
    low_freq_factor: Positive = 1.0,
    high_freq_factor: Positive = 4.0,
    original_max_position_embeddings: AtLeast(1) = 8192,
) -> Frequencies:
    """Interpolates long waves, keeps short ones and blends those between, as Llama 3.1 does
    (arXiv:2407.21783, section 3.4.3).

    Raises:
      UserError: `low_freq_factor` is above `high_freq_factor`.
    """
    _in_order('llama3', low_freq_factor=low_freq_factor, high_freq_factor=high_freq_factor)
    frequencies, _ = none(theta, width)
    turns = original_max_position_embeddings * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return frequencies * (smooth + (1 - smooth) / factor), 1.0


def yarn(
    theta: float,
    width: int,
    *,
    factor: Positive,
    original_max_position_embeddings: AtLeast(1),
    attention_factor: Positive | None = None,
    beta_fast: Positive = 32.0,
    beta_slow: Positive = 1.0,
    mscale: NonNegative = 0.0,
    mscale_all_dim: NonNegative = 0.0,
    truncate: bool = True,
) -> Frequencies:
    """Ramps over dimensions from kept to interpolated, with warmer attention: YaRN (Peng et al.
    2023, arXiv:2309.00071).

    Args:
      theta: base.
      width: rotated part of a head.
      factor: of the context.
      original_max_position_embeddings: what the model was trained with.
      attention_factor: of cosines and sines; None for 0.1 ln(factor) + 1, or the ratio of two such
        where both mscales are given.
      beta_fast: turns over the original context from which on a dimension is kept.
      beta_slow: turns up to which it is interpolated.
      mscale: see attention_factor.
      mscale_all_dim: see attention_factor.
      truncate: round the ends of the ramp to whole dimensions.

    Raises:
      UserError: `beta_slow` is above `beta_fast`.
    """
    _in_order('yarn', beta_slow=beta_slow, beta_fast=beta_fast)

    def end(turns: float) -> float:
        return (
            width
            * math.log(original_max_position_embeddings / (turns * 2 * math.pi))
            / (2 * math.log(theta))
        )

    def warmth(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1

    low, high = end(beta_fast), end(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = np.clip((np.arange(width // 2) - low) / ((high - low) or 1e-3), 0, 1)
    if attention_factor is None:
        attention_factor = (
            warmth(mscale) / warmth(mscale_all_dim) if mscale and mscale_all_dim else warmth(1.0)
        )
    frequencies, _ = none(theta, width)
    return frequencies * (1 - ramp + ramp / factor), attention_factor


def longrope(
    theta: float,
    width: int,
    *,
    short_factor: tuple[Positive, ...],
    long_factor: tuple[Positive, ...],
    original_max_position_embeddings: AtLeast(1),
    factor: Positive = 1.0,
    attention_factor: Positive | None = None,
    length: AtLeast(0) = 0,
) -> Frequencies:
    """Divides each dimension by its own factor, one set for short and one for long contexts:
    LongRoPE (Ding et al. 2024, arXiv:2402.13753).

    Args:
      theta: base.
      width: rotated part of a head.
      short_factor: [width / 2] divisors up to the original length.
      long_factor: [width / 2] divisors beyond it.
      original_max_position_embeddings: what the model was first trained with.
      factor: longest context over the original one.
      attention_factor: of cosines and sines; None for sqrt(1 + ln(factor) / ln(original length)).
      length: longest sequence of this run; 0 for no longer than the original.

    Raises:
      UserError: divisors of another number.
    """
    divisors = long_factor if length > original_max_position_embeddings else short_factor
    if len(divisors) != width // 2:
        raise UserError(
            f'config.model.rope_scaling: longrope has {len(divisors)} divisors; heads with {width} '
            f'rotated need {width // 2}.'
        )
    if attention_factor is None:
        attention_factor = (
            math.sqrt(1 + math.log(factor) / math.log(original_max_position_embeddings))
            if factor > 1
            else 1.0
        )
    return none(theta, width)[0] / np.asarray(divisors, np.float64), attention_factor


def _in_order(name: str, **ends: float) -> None:
    """Raises UserError where the first of two knobs is above the second: the band between them
    would be inside out."""
    (low, least), (high, most) = ends.items()
    if least > most:
        raise UserError(
            f'config.model.rope_scaling: {name} needs {low} of at most {high}, got {low}={least:g} '
            f'and {high}={most:g}.'
        )
