"""Transforms for rows of known word-problem sets."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from reasonjax.errors import UserError
from reasonjax.methods.transforms.columns import Example, take
from reasonjax.tasks.gsm8k import TEMPLATE, rows_to_prompt


def gsm8k(
    example: Example,
    rng: np.random.Generator,
    *,
    template: str = TEMPLATE,
    keep_calculator: bool = False,
    question: str = 'question',
    answer: str = 'answer',
) -> Iterable[dict[str, Any]]:
    """Makes a GSM8K row (Cobbe et al. 2021, arXiv 2110.14168) a prompt, a worked answer and the
    number to be found.

    The default template is that of lm-evaluation-harness.

    Args:
        example: a row whose answer ends with `#### number`.
        rng: not used.
        template: the prompt, with `{question}` in it.
        keep_calculator: keep the calculator annotations (`<<48/2=24>>`) of the answer.
        question: the column with the question.
        answer: the column with the worked answer.

    Returns:
        One example: `prompt`, `completion` (a space and the answer), `solution` (the number,
            without thousands separators), and every other column.

    Raises:
        UserError: no such column, a template without `{question}`, or an answer that does not end
            with `#### number`.
    """
    if '{question}' not in template:
        raise UserError(f'gsm8k.template: expected {{question}} in the template, got {template!r}')
    asked, worked = take(example, question, 'gsm8k.question'), take(example, answer, 'gsm8k.answer')
    try:
        texts = rows_to_prompt(asked, worked, template=template, keep_calculator=keep_calculator)
    except UserError as error:
        raise UserError(f'column "{answer}" (gsm8k.answer): {error}') from error
    return [{**example, **texts}]
