"""A loss of your own: a pure function of scores and batch, named in the config by its dotted name.

    python examples/custom_objective.py

This one is loss truncation (Kang & Hashimoto 2020, arXiv:2004.14589): rows with the largest loss per
token teach nothing. Most demonstrations answer at once, which cannot be predicted; it drops those.
"""

import argparse

import jax
import jax.numpy as jnp

import reasonjax
from reasonjax import reduce


def truncated(score, batch, key, *, drop: float = 0.5):
    """Mean negative log-likelihood of the target tokens, without the share `drop` of rows (one
    document each) whose loss per token is largest; 0 drops none."""
    weights_BxT = batch['weights']
    loss_BxT = jnp.where(weights_BxT > 0, -weights_BxT * score(batch).logprob, 0)
    mean_B = jax.lax.stop_gradient(loss_BxT.sum(1) / weights_BxT.sum(1))
    kept_Bx1 = (mean_B <= jnp.quantile(mean_B, 1 - drop))[:, None]
    loss = jnp.sum(loss_BxT, where=kept_Bx1) / batch['step_weight']
    return loss, {'kept_tokens': reduce.mean(kept_Bx1 & (weights_BxT > 0), weights_BxT)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--workdir', default='runs/example_objective')
    parser.add_argument(
        '--smoke', action='store_true', help='two steps of a tiny model: does it run?'
    )
    options = parser.parse_args()

    def train(name: str, steps: int, overrides: dict) -> None:
        overrides = {'stages': ('sft',), 'sft.data.packing': False} | overrides
        if not options.smoke:
            overrides |= {'sft.steps': steps, 'sft.batch_size': 64, 'sft.data.max_length': 40}
        config = reasonjax.load_config('quickstart', overrides, smoke=options.smoke)
        [result] = reasonjax.run(config, f'{options.workdir}_{name}')['stages']
        print(f'{name:9} {100 * result["accuracy"]:.1f} % right')

    train('base', 500, {})  # first it must explain the good demonstrations better than the rest
    after = {'init': f'checkpoint:{options.workdir}_base', 'sft.learning_rate.peak': 1e-3}
    for name, drop in (('control', 0.0), ('truncated', 0.5)):
        objective = {'sft.objective.name': 'custom_objective.truncated', 'sft.objective.drop': drop}
        train(name, 100, after | objective)


if __name__ == '__main__':
    main()
