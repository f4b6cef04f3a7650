"""Texts as a batch: what `score` and the objectives read, without a data source."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reasonjax.data import packing, render
from reasonjax.data.documents import Document, document
from reasonjax.errors import UserError
from reasonjax.model.rotary import longest as positions
from reasonjax.training.context import Run
from reasonjax.training.step import with_totals


def lay_out(
    run: Run, prompts: Sequence[str | list], completions: Sequence[str | Sequence[int]]
) -> dict[str, jax.Array]:
    """Returns one row per prompt and completion, padded on the right; see `reasonjax.Model.batch`.

    Raises:
      UserError: none, not as many of one as of the other, or a row that is empty, cannot be
        rendered or is longer than the positions of the model.
    """
    for name, texts in (('prompts', prompts), ('completions', completions)):
        if isinstance(texts, str):
            raise UserError(f'{name}: expected a list; this is a text.')
    if len(prompts) != len(completions):
        raise UserError(
            f'completions: {len(completions)} for {len(prompts)} prompts; expected one each.'
        )
    if not prompts:
        raise UserError('prompts: the list is empty.')
    documents = [
        _document(number, prompt, completion, run)
        for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True), 1)
    ]
    length = max(len(one.tokens) for one in documents)
    rows = [packing.padded(one, pad_id=run.tokenizer.pad_id, length=length) for one in documents]
    return with_totals({name: jnp.asarray(x) for name, x in packing.stacked(rows).items()}, micro=1)


def _document(number: int, prompt: Any, completion: Any, run: Run) -> Document:
    try:
        if isinstance(completion, str):
            answer = completion
            if not isinstance(prompt, str):
                answer = [{'role': 'assistant', 'content': completion}]
            row = {'prompt': prompt, 'completion': answer}
            [rendered] = render.demonstration(row, run.tokenizer)
        else:
            before = render.prompt({'prompt': prompt}, run.tokenizer)
            ids = _checked_ids(completion, run.tokenizer.vocab_size)
            rendered = document([*before, *ids], [0] * len(before) + [1] * len(ids))
    except UserError as error:
        raise UserError(f'prompt {number} and its completion: {error}') from error
    limit = positions(run.model)
    if limit and len(rendered.tokens) > limit:
        raise UserError(
            f'prompt {number} and its completion have {len(rendered.tokens)} tokens, but the '
            f'positions of this model are good for {limit}.'
        )
    return rendered


def _checked_ids(completion: Any, vocab_size: int) -> list[int]:
    wanted = f'expected a text, or token ids from 0 to {vocab_size - 1}'
    if not isinstance(completion, Sequence | np.ndarray):
        raise UserError(f'completion: {wanted}, found {type(completion).__name__}.')
    for token in completion:
        number = isinstance(token, int | np.integer) and not isinstance(token, bool)
        if not number or not 0 <= token < vocab_size:
            raise UserError(f'completion: {wanted}, found {token!r}.')
    return [int(token) for token in completion]
