"""Rollouts as part of a checkpoint: arrays stay arrays, the rows of their prompts become JSON that
gives them back exactly.

A text rather than a pickle: whoever reads a checkpoint runs nothing that is in it.
"""

import base64
import json
from typing import Any

import numpy as np

from reasonjax.errors import UserError
from reasonjax.parallel import processes
from reasonjax.sampling.reward_pool import Rewards
from reasonjax.sampling.sampler import Rollout
from reasonjax.training.batch import PROMPTS, ROLLOUT, TEXT, misfit
from reasonjax.training.rollouts import PendingRollout, Rollouts, ScoredRollout, concat_rollouts

_TAGS = ('__tuple__', '__bytes__', '__array__', '__scalar__', '__items__')


def to_state(held: PendingRollout | ScoredRollout) -> dict[str, Any]:
    """Converts a rollout to a state of plain values and arrays; waits for one that is in flight.
    Called by all processes together."""
    prompts = {name: x for name, x in held.prompts.items() if name != 'rows'}
    state = {'rows': rows_to_json(held.prompts['rows']), 'prompts': prompts, 'rewards': None}
    if isinstance(held, PendingRollout):
        rollout = concat_rollouts(processes.fetch(held.parts))
        return state | {
            'rollout': _arrays(rollout),
            'steps': np.full(len(rollout.length), held.step),
        }
    rewards = held.rewards._asdict() | {'names': list(held.rewards.names)}
    return state | {'rollout': _arrays(held.rollout), 'steps': held.steps, 'rewards': rewards}


def from_state(state: dict[str, Any], rollouts: Rollouts) -> PendingRollout | ScoredRollout:
    """Returns what `to_state` was given; a rollout that was pending is complete by now."""
    held = {name: x for name, x in state['rollout'].items() if x is not None}
    prompts = {name: state['prompts'][name] for name in TEXT}
    if error := misfit(held, ROLLOUT) or misfit(prompts, PROMPTS):
        raise UserError(
            f'checkpoint: of a rollout that waits to be trained on, {error}; resume from an earlier '
            'checkpoint, or with the version that saved it.'
        )
    rewards = state['rewards'] and Rewards(
        **(state['rewards'] | {'names': tuple(state['rewards']['names'])})
    )
    prompts = state['prompts'] | {'rows': rows_from_json(state['rows'])}
    return rollouts.restored(prompts, Rollout(**state['rollout']), rewards, state['steps'])


def _arrays(rollout: Rollout) -> dict[str, np.ndarray | None]:
    return {name: getattr(rollout, name) for name in ROLLOUT}


def rows_to_json(rows: list[dict]) -> str:
    """Encodes rows as JSON, types included. Besides what JSON has, rows may hold tuples, bytes,
    NumPy arrays and scalars.

    Raises:
      UserError: a column holds something else.
    """
    return json.dumps([_encoded(row, '') for row in rows], ensure_ascii=False)


def rows_from_json(text: str) -> list[dict]:
    """Decodes the rows that `rows_to_json` encoded."""
    return [_decoded(row) for row in json.loads(text)]


def _encoded(value: Any, column: str) -> Any:
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [_encoded(x, column) for x in value]
    if kind is tuple:
        return {'__tuple__': [_encoded(x, column) for x in value]}
    if kind is dict:
        encoded = {name: _encoded(x, column or str(name)) for name, x in value.items()}
        if all(type(name) is str and name not in _TAGS for name in value):
            return encoded
        return {'__items__': [[_encoded(name, column), encoded[name]] for name in value]}
    if kind is bytes:
        return {'__bytes__': _letters(value)}
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        tag = '__array__' if isinstance(value, np.ndarray) else '__scalar__'
        return {tag: [value.dtype.str, list(value.shape), _letters(value.tobytes())]}
    raise UserError(
        f'data: column "{column}" holds {kind.__module__}.{kind.__qualname__}. With pipelined or '
        'dynamic_sampling, rows are part of '
        'checkpoints, which hold text, numbers, lists, dicts, bytes and NumPy arrays; turn the '
        'column into one of these, or drop it.'
    )


def _decoded(node: Any) -> Any:
    if isinstance(node, list):
        return [_decoded(x) for x in node]
    if not isinstance(node, dict):
        return node
    ((tag, value),) = node.items() if len(node) == 1 else ((None, None),)
    if tag == '__tuple__':
        return tuple(_decoded(x) for x in value)
    if tag == '__bytes__':
        return base64.b64decode(value)
    if tag in ('__array__', '__scalar__'):
        dtype, shape, data = value
        array = np.frombuffer(base64.b64decode(data), dtype).reshape(shape).copy()
        return array if tag == '__array__' else array[()]
    if tag == '__items__':
        return {_decoded(name): _decoded(x) for name, x in value}
    return {name: _decoded(x) for name, x in node.items()}


def _letters(data: bytes) -> str:
    return base64.b64encode(data).decode('ascii')
