"""A reward of your own: a function with TRL's signature, named in the config by its dotted name.

python examples/custom_reward.py
"""

import argparse

import reasonjax


def brief(prompts: list, completions: list, **kwargs) -> list[float]:
    """One score per completion: nothing for ten characters or fewer, and a tenth off for each
    more."""
    return [-0.1 * max(0, len(text) - 10) for text in completions]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--workdir', default='runs/example_reward')
    parser.add_argument(
        '--smoke', action='store_true', help='two steps of a tiny model: does it run?'
    )
    options = parser.parse_args()
    config = reasonjax.load_config('grpo', smoke=options.smoke)
    with config.unlocked():  # beside the reward that is there, accuracy
        config.grpo.rewards.brief = dict(name='custom_reward.brief', weight=0.5)
    summary = reasonjax.run(config, options.workdir)
    for stage in summary['stages']:
        print(
            f'after {stage["name"]:8} {100 * stage["accuracy"]:5.1f} % right, '
            f'{stage["mean_length"]:.1f} tokens'
        )


if __name__ == '__main__':
    main()
