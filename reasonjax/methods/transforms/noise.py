"""Transforms that damage demonstrations."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from reasonjax.bounds import Fraction, OneOf
from reasonjax.errors import UserError, check_choice
from reasonjax.methods.transforms.columns import Example, take

KINDS = ('character', 'line')


def static_noise(
    example: Example,
    rng: np.random.Generator,
    *,
    kind: OneOf(*KINDS) = 'character',
    contamination: Fraction = 1.0,
    intensity: Fraction = 0.0,
    characters: str = '0123456789',
    separator: str = ',',
    marker: str = '#',
    column: str = 'completion',
) -> Iterable[dict[str, Any]]:
    """Damages the finished working of a demonstration; what stands from the first marker on, the
    answer, stays.

    Static noise of Havrilla and Iyer 2024 (arXiv 2402.04004). Noise that computation goes on from
    is a knob of the task `traces`.

    Args:
        example: a demonstration, with the working, the marker and the answer in one text.
        rng: draws the noise.
        kind: 'character' replaces each character of `characters` by another one of them, with
            probability `intensity`; 'line' takes out each line with that probability.
        contamination: share of examples that are noised; neutral 0.
        intensity: probability for each character or line; neutral 0.
        characters: those that are replaced, by each other; at least two.
        separator: what stands between two lines.
        marker: what stands before the answer (also '####', of GSM8K).
        column: the column to damage.

    Raises:
        UserError: a value out of range; characters that hold or could spell the marker; or a text
            without it.
    """
    check_choice(f'static_noise.kind: unknown "{kind}"', kind, KINDS)
    for knob, share in (('contamination', contamination), ('intensity', intensity)):
        if not 0 <= share <= 1:
            raise UserError(f'static_noise.{knob}: expected a share from 0 to 1, got {share}.')
    if not marker or not separator or set(marker) & set(separator):
        raise UserError(
            'static_noise: marker and separator must share no character, and not be empty, got '
            f'{marker!r}, {separator!r}.'
        )
    if (
        len(set(characters)) < 2
        or len(set(characters)) < len(characters)
        or set(characters) & set(marker)
    ):
        raise UserError(
            'static_noise.characters: expected at least two, each once, and none of the marker '
            f'{marker!r}, got {characters!r}.'
        )
    text = take(example, column, 'static_noise.column')
    if not isinstance(text, str):
        raise UserError(
            f'column "{column}" (static_noise.column) must be a string, found {type(text).__name__}'
        )
    working, mark, answer = text.partition(marker)
    if not mark:
        raise UserError(
            f'column "{column}" (static_noise.column) holds no {marker!r} (static_noise.marker) '
            'before the answer'
        )
    if rng.random() >= contamination or intensity == 0:
        return [dict(example)]
    if kind == 'line':
        lines = working.split(separator)
        hit = rng.random(len(lines)) < intensity
        # An empty line stays: it is there to part the last one from the answer.
        damaged = separator.join(line for line, gone in zip(lines, hit) if not (gone and line))
    else:
        hit, steps = (
            rng.random(len(working)) < intensity,
            rng.integers(1, len(characters), len(working)).tolist(),
        )
        damaged = ''.join(
            characters[(characters.index(character) + step) % len(characters)]
            if struck and character in characters
            else character
            for character, struck, step in zip(working, hit, steps)
        )
    return [{**example, column: f'{damaged}{mark}{answer}'}]
