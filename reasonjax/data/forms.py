"""The forms a row of training data can have, named as in TRL, and the documents each is rendered
to.

    demonstration  {prompt, completion} | {messages} | {text}           one document (see `render`)
    preference     {prompt, chosen, rejected} | {chosen, rejected}      two: the chosen answer, the rejected one
    unpaired       {prompt, completion, label: bool}                    one
    stepwise       {prompt, completions: [...], labels: [bool, ...]}    one

Prompts and answers are strings or messages. What a batch holds beside tokens and weights:

    preference     `chosen` [B] bool; the two documents of an example are adjacent rows, the chosen one first
    unpaired       `label` [B] bool
    stepwise       `step_label` [B, T] float32: 1 (right) or 0 (wrong) at the last token of each step, 0 elsewhere;
                   `weights` are 1 exactly at those tokens: they say which tokens are judged, not
                   which are to be said
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from reasonjax.data import pairs, render
from reasonjax.data.documents import Document, document
from reasonjax.data.messages import THOUGHTS, checked, is_chat, words
from reasonjax.data.tokenizers import Tokenizer
from reasonjax.errors import UserError, check_choice, listing

Example = Mapping[str, Any]
# The documents of one example, which stay together.
Rows = tuple[Document, ...]

# What may hold messages.
COLUMNS = ('prompt', 'completion', 'messages', 'chosen', 'rejected')

FORMS = ('demonstration', 'preference', 'unpaired', 'stepwise')

# Columns that make a row one of a form, and the transforms that make a demonstration of it.
_COLUMNS = {
    'preference': ('chosen', 'rejected'),
    'unpaired': ('completion', 'label'),
    'stepwise': ('completions', 'labels'),
}
_TO_DEMONSTRATION = {
    'preference': 'chosen_only',
    'unpaired': 'desirable_only',
    'stepwise': 'correct_steps',
}


def renderer(
    form: str, tokenizer: Tokenizer, *, step_separator: str = '\n'
) -> Callable[[Example], list[Rows]]:
    """Returns the function that renders rows of a form.

    Args:
        form: one of `FORMS`.
        tokenizer: see `reasonjax.data.tokenizers`.
        step_separator: what follows each step of a stepwise row; its last token carries the label.

    Raises:
        UserError: at once for an unknown form; by the function, for a row that is not of the form.
    """
    check_choice(f'data.form: unknown form "{form}"', form, FORMS)

    def rendered(example: Example) -> list[Rows]:
        check(form, example)
        if form == 'preference':
            return [_preference(example, tokenizer)]
        if form == 'unpaired':
            return [_unpaired(example, tokenizer)]
        if form == 'stepwise':
            return [_stepwise(example, tokenizer, step_separator)]
        return [(document,) for document in render.demonstration(example, tokenizer)]

    return rendered


def check(form: str, example: Example) -> None:
    """Raises a UserError where the columns of a row are not those of the form, and names the form
    that fits."""
    others = [
        name for name, columns in _COLUMNS.items() if all(column in example for column in columns)
    ]
    # A completion may stand beside a label of another kind: the class of the problem, say.
    if (
        'unpaired' in others
        and form != 'unpaired'
        and not isinstance(example['label'], bool | np.bool_)
    ):
        others.remove('unpaired')
    is_demonstration = any(name in example for name in ('completion', 'messages', 'text'))
    if form in others or (
        form == 'demonstration' and is_demonstration and 'unpaired' not in others
    ):
        return
    columns_found = f'columns found: {listing(example)}'
    if others:
        way = (
            f', or add the transform {_TO_DEMONSTRATION[others[0]]}'
            if form == 'demonstration'
            else ''
        )
        raise UserError(
            f'{columns_found}; they make a row of data.form="{others[0]}", not of "{form}": set '
            f'data.form{way}'
        )
    if form != 'demonstration':
        fits = '; they make a row of data.form="demonstration"' if is_demonstration else ''
        raise UserError(
            f'data.form="{form}" needs the columns {" and ".join(_COLUMNS[form])}; {columns_found}{fits}'
        )


def _preference(example: Example, tokenizer: Tokenizer) -> Rows:
    prompt, chosen, rejected = pairs.prompt_and_answers(example)
    return (
        _one(example, prompt, chosen, 'chosen', tokenizer).marked(chosen=np.bool_(True)),
        _one(example, prompt, rejected, 'rejected', tokenizer).marked(chosen=np.bool_(False)),
    )


def _unpaired(example: Example, tokenizer: Tokenizer) -> Rows:
    prompt, completion = render.column(example, 'prompt'), render.column(example, 'completion')
    document = _one(example, prompt, completion, 'completion', tokenizer)
    return (document.marked(label=_truth(example['label'], 'label')),)


def _one(example: Example, prompt: Any, answer: Any, name: str, tokenizer: Tokenizer) -> Document:
    documents = render.answered(example, prompt, answer, name, tokenizer)
    if len(documents) > 1:
        raise UserError(
            f'column "{name}" holds several answers that the chat template renders as '
            f'{len(documents)} texts, since it '
            'renders earlier turns differently later, or writes no EOS behind them; such answers '
            'cannot be judged as one'
        )
    return documents[0]


def _stepwise(example: Example, tokenizer: Tokenizer, separator: str) -> Rows:
    steps, labels = render.column(example, 'completions'), render.column(example, 'labels')
    if (
        not isinstance(steps, list | tuple)
        or not isinstance(labels, list | tuple)
        or not steps
        or len(steps) != len(labels)
    ):
        raise UserError(
            'columns "completions" and "labels" must be lists of one length, with at least one step'
        )
    before, ids = render.asked(example, tokenizer)
    judged, right = [0] * len(ids), [0] * len(ids)
    for number, (step, label) in enumerate(zip(steps, labels, strict=True), 1):
        text = (
            step
            if isinstance(step, str)
            else ''.join(words(m) for m in _plain(step, number))
            if is_chat(step)
            else None
        )
        if not text:
            raise UserError(
                f'column "completions": step {number} must be a text or messages, and not empty'
            )
        more = tokenizer.encode_more(text + separator, before)
        ids = [*ids, *more]
        judged += [0] * (len(more) - 1) + [1]
        right += [0] * (len(more) - 1) + [_truth(label, 'labels')]
        before += text + separator
    return (document(ids, judged).marked(step_label=np.array(right, np.float32)),)


def _plain(step: Any, number: int) -> list[Mapping[str, Any]]:
    """Returns the messages of a step; raises UserError where they hold more than answers' words."""
    messages = checked(step, 'completions')
    for message in messages:
        if message['role'] != 'assistant' or any(
            message.get(key) for key in ('tool_calls', *THOUGHTS)
        ):
            raise UserError(
                f'column "completions": step {number} must hold the words of assistant messages '
                'only; found a message of role '
                f'"{message["role"]}" with {listing(message)}'
            )
    return messages


def _truth(value: Any, name: str) -> np.bool_:
    if isinstance(value, bool | np.bool_ | int) and value in (0, 1):
        return np.bool_(value)
    raise UserError(f'column "{name}" must hold true or false, found {value!r}')
