"""What an online stage measures of its rollouts: metrics, the table of completions, and warnings
where a run learns nothing."""

import sys
from collections.abc import Mapping

import numpy as np

from reasonjax.parallel import processes
from reasonjax.sampling.reward_pool import Rewards
from reasonjax.sampling.sampler import Rollout
from reasonjax.training.rollouts import ScoredRollout

FLAT_STEPS = 10
CUT_SHARE = 0.5


class Watcher:
    """Called with a step's metrics, it warns, once each, of the two ways a run silently learns
    nothing. A checkpoint holds its state."""

    def __init__(self, name: str):
        self._name = name
        self._flat, self._said = 0, []

    def get_state(self) -> dict:
        return {'flat': self._flat, 'said': list(self._said)}

    def set_state(self, state: dict) -> None:
        self._flat, self._said = state['flat'], list(state['said'])

    def __call__(self, metrics: Mapping[str, float]) -> None:
        self._flat = self._flat + 1 if metrics.get('frac_reward_zero_std') == 1 else 0
        cut = metrics['completions/clipped_ratio']
        texts = {}
        if self._flat >= FLAT_STEPS:
            texts['flat'] = (
                f'every prompt had equal rewards for {self._flat} steps (now '
                f'{metrics["reward"]:.3g}), so there is nothing to learn from. '
                'Look at the completions, and at what the reward function reads.'
            )
        if cut > CUT_SHARE:
            texts['cut'] = (
                f'{cut:.0%} of the completions were cut at max_completion_length: they have no end '
                'and seldom an answer. Raise it, or '
                'set mask_truncated_completions.'
            )
        for kind, text in texts.items():
            if kind not in self._said:
                self._said.append(kind)
                if processes.is_main():
                    print(f'warning: stage {self._name}: {text}', file=sys.stderr)


def rollout_metrics(rollout: Rollout) -> dict[str, float]:
    """Computes the metrics of completion lengths, under TRL's names."""
    length, ended = rollout.length.ravel(), rollout.terminated.ravel()
    functions = {'mean': np.mean, 'min': np.min, 'max': np.max}
    metrics = {f'completions/{name}_length': float(of(length)) for name, of in functions.items()}
    if ended.any():
        metrics |= {
            f'completions/{name}_terminated_length': float(of(length[ended]))
            for name, of in functions.items()
        }
    return metrics | {'completions/clipped_ratio': float(1 - ended.mean())}


def reward_metrics(rewards: Rewards) -> dict[str, float]:
    """Computes the mean and standard deviation of each reward, and the samples each lost."""
    metrics: dict[str, float] = dict(rewards.counts)
    for name, values in zip(rewards.names, rewards.values.T, strict=True):
        kept = values[~np.isnan(values)]
        metrics[f'rewards/{name}/mean'] = float(kept.mean()) if len(kept) else float('nan')
        metrics[f'rewards/{name}/std'] = float(kept.std(ddof=1)) if len(kept) > 1 else 0.0
    return metrics


def rows_of(scored: ScoredRollout, advantage_PxG: np.ndarray) -> list[dict]:
    """Builds the completions table: one row per sample, with its rewards and its advantage."""
    flat = [
        (row, c)
        for row, group in zip(scored.prompts['rows'], scored.texts, strict=True)
        for c in group
    ]
    return [
        {'prompt': row['prompt'], 'completion': c.text}
        | {name: float(scored.rewards.values[i, j]) for j, name in enumerate(scored.rewards.names)}
        | {'solution': row.get('solution'), 'length': c.length, 'terminated': c.terminated}
        | {'advantage': float(advantage_PxG.reshape(-1)[i])}
        for i, (row, c) in enumerate(flat)
    ]
