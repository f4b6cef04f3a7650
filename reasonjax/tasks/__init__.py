"""Problems with verifiers: a task is examples plus a rule that marks completions. No module here imports jax."""

from reasonjax.tasks.addition import addition
from reasonjax.tasks.base import Task
from reasonjax.tasks.gsm8k import gsm8k

__all__ = ['Task', 'addition', 'gsm8k']
