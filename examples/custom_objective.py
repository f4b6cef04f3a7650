"""A loss of your own: a pure function of scores and batch, named in the config by its dotted name.

    python examples/custom_objective.py

This one is dynamic fine-tuning (Wu et al. 2025, arXiv:2508.05629): each token's loss is weighted by
its own probability.
"""

import argparse

import jax
import jax.numpy as jnp

import reasonjax
from reasonjax import reduce


def dynamic(score, batch, key, *, power: float = 1.0):
    """-sum(w p^power log p) / step_weight, p^power a constant; power 0 is the mean negative
    log-likelihood."""
    weights_BxT = batch['weights']
    logprob_BxT = jnp.where(weights_BxT > 0, score(batch).logprob, 0)
    factor_BxT = jax.lax.stop_gradient(jnp.exp(power * logprob_BxT))
    loss = -jnp.sum(weights_BxT * factor_BxT * logprob_BxT) / batch['step_weight']
    return loss, {'factor': reduce.mean(factor_BxT, weights_BxT)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--workdir', default='runs/example_objective')
    parser.add_argument(
        '--smoke', action='store_true', help='two steps of a tiny model: does it run?'
    )
    options = parser.parse_args()
    for power in (0.0, 1.0):
        overrides = {
            'train.objective.name': 'custom_objective.dynamic',
            'train.objective.power': power,
        }
        summary = reasonjax.run(
            reasonjax.load_config('sft', overrides, smoke=options.smoke),
            f'{options.workdir}_{power:g}',
        )
        print(f'power {power:g}: {100 * summary["stages"][-1]["accuracy"]:.1f} % right')


if __name__ == '__main__':
    main()
