"""reasonjax: fine-tune language models to reason, in pure JAX. Every method is a config; start at
`python -m reasonjax.train --help`.

From Python (`reasonjax.api` has the details; nothing is imported before it is used):

    import reasonjax

    config = reasonjax.load_config('quickstart', {'grpo.steps': 100})
    reasonjax.run(config, 'runs/short')
    model = reasonjax.load_model('runs/short')
    for prompt, [answer] in model.sample(['1234+5678=', '9999+0001=']):
        print(prompt, answer['text'])
    print(model.evaluate()['accuracy'])
"""

from typing import Any

__version__ = '0.1.0'
__all__ = [
    'Model',
    'UserError',
    'load_config',
    'load_model',
    'read_completions',
    'read_metrics',
    'run',
    'show',
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f'module "reasonjax" has no attribute "{name}"')
    from reasonjax import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
