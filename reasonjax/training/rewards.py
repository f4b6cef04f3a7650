"""The rewards of a stage: its reward functions, and what they are called with."""

from collections.abc import Mapping
from typing import Any

from reasonjax import config as configs
from reasonjax.data.tokenizers import Tokenizer
from reasonjax.parallel import processes
from reasonjax.sampling import reward_functions
from reasonjax.sampling.reward_pool import RewardPool, Rewards, RewardSpec, concat_rewards
from reasonjax.sampling.text import Completion


def reward_specs(settings: Mapping[str, Any]) -> dict[str, RewardSpec]:
    """Returns the reward functions of a stage, with their knobs bound."""
    return {
        key: RewardSpec(
            configs.resolve(node, 'rewards', f'rewards.{key}'), weight=node.get('weight', 1.0)
        )
        for key, node in settings.rewards.items()
    }


def score_completions(
    pool: RewardPool,
    rows: list[dict],
    texts: list[list[Completion]],
    first: int = 0,
    columns: frozenset[str] | None = None,
    rendered: list[str] | None = None,
) -> Rewards:
    """Calls the reward functions with TRL's arguments: every prompt repeated for its completions,
    extra columns beside.

    Each process scores its share of the prompts, and all get all rewards.

    Args:
      pool: of the functions.
      rows: of the prompts.
      texts: of their completions, G each.
      first: number of the first prompt in errors, where these are a part of a batch.
      columns: what functions are given of a row, None where it has no such column; None:
        `list_columns` these rows.
      rendered: the prompts as the model was given them, where a function reads them.
    """
    G, columns = len(texts[0]), list_columns(pool, rows) if columns is None else columns

    def of(part: slice) -> Rewards:
        flat = [(row, c) for row, group in zip(rows[part], texts[part], strict=True) for c in group]
        given = {name: [row.get(name) for row, _ in flat] for name in sorted(columns)}
        given |= {
            'completion_ids': [c.ids for _, c in flat],
            'terminated': [c.terminated for _, c in flat],
        }
        if rendered is not None:
            given['rendered_prompts'] = [text for text in rendered[part] for _ in range(G)]
        # A row's completions have the form of its own prompt.
        formed = [
            c.text if isinstance(row['prompt'], str) else [{'role': 'assistant', 'content': c.text}]
            for row, c in flat
        ]
        return pool.score(
            [row['prompt'] for row, _ in flat], formed, given, G, first=(first + part.start) * G
        )

    return concat_rewards(processes.divided(len(rows), of))


def list_columns(pool: RewardPool, rows: list[dict]) -> frozenset[str]:
    """Returns the columns that reward functions are given. These are all that any of the rows has,
    and those that a function cannot do without."""
    return pool.required.union(*rows) - {*reward_functions.RESERVED, *reward_functions.WITHHELD}


def render_prompts(prompts: Mapping[str, Any], tokenizer: Tokenizer) -> list[str]:
    """Returns the prompts of a batch as the model was given them. A text is unchanged, a
    conversation is as the chat template renders it."""
    return [
        row['prompt']
        if isinstance(row['prompt'], str)
        else tokenizer.decode(tokens[segments > 0].tolist())
        for row, tokens, segments in zip(
            prompts['rows'], prompts['tokens'], prompts['segments'], strict=True
        )
    ]
