"""The rule of tasks with one right answer: exactly the characters of `solution` follow the first
'#', and then the end of sequence."""

from typing import Any

from reasonjax.protocols import OnTokens, TokenRule
from reasonjax.tasks.answers import write_solution


def verify(completion: str, row: dict, terminated: bool) -> dict:
    """Right iff exactly the row's solution follows the first '#', and then the end of sequence."""
    _, mark, answer = completion.partition('#')
    return {
        'correct': terminated and bool(mark) and answer == write_solution(row['solution']),
        'answer': answer if mark else None,
    }


verify.reads = ('solution',)


def on_tokens(tokenizer: Any, max_tokens: int) -> TokenRule:
    """`verify`, for the tokens of this tokenizer."""
    from reasonjax.tasks.on_tokens import answer_after  # not above: it imports jax

    return answer_after('#', tokenizer, max_tokens)


ON_TOKENS = OnTokens(
    {'name': 'accuracy', 'extract': 'hash', 'equality': 'text', 'require_termination': True},
    on_tokens,
)
