"""The rule of tasks with one right answer: exactly the characters of `solution` follow the first
'#', and then the end of sequence."""

from typing import Any

from reasonjax.protocols import OnTokens, TokenRule
from reasonjax.tasks.answers import write_solution


def verify(completion: str, row: dict, terminated: bool) -> dict:
    """Marks a completion right iff the first '#' is followed by exactly the solution and EOS."""
    _, mark, answer = completion.partition('#')
    return {
        'correct': terminated and bool(mark) and answer == write_solution(row['solution']),
        'answer': answer if mark else None,
    }


verify.reads = ('solution',)


def on_tokens(tokenizer: Any, max_tokens: int) -> TokenRule:
    """Builds the rule that marks tokens of a tokenizer as `verify` marks their text."""
    from reasonjax.tasks.on_tokens import answer_after  # not above: it imports jax

    return answer_after('#', tokenizer, max_tokens)


ON_TOKENS = OnTokens(
    {'name': 'accuracy', 'extract': 'hash', 'equality': 'text', 'require_termination': True},
    on_tokens,
)
