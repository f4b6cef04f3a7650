"""Problems with verifiers: a task is examples plus a rule that marks completions.

Importing it does not import jax: the rules that run on tokens are in `on_tokens` and its like,
which tasks import when one is built.
"""

from reasonjax.protocols import OnTokens, Task, TokenRule
from reasonjax.tasks.addition import addition
from reasonjax.tasks.bayes import bayes
from reasonjax.tasks.chain import chain
from reasonjax.tasks.countdown import countdown
from reasonjax.tasks.gsm8k import gsm8k
from reasonjax.tasks.knights import knights
from reasonjax.tasks.traces import traces
from reasonjax.tasks.tracking import tracking

__all__ = [
    'OnTokens',
    'Task',
    'TokenRule',
    'addition',
    'bayes',
    'chain',
    'countdown',
    'gsm8k',
    'knights',
    'traces',
    'tracking',
]
