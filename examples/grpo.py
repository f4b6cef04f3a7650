"""GRPO on additions: a short warm-up by imitation, then reinforcement from the model's own samples.

python examples/grpo.py
"""

import argparse

import reasonjax


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--workdir', default='runs/example_grpo')
    parser.add_argument(
        '--smoke', action='store_true', help='two steps of a tiny model: does it run?'
    )
    options = parser.parse_args()
    overrides = {
        'grpo.num_prompts': 16,
        'grpo.num_generations': 8,
        'grpo.objective.beta': 0.0,  # weight of the KL to the model that the stage started from
        'grpo.objective.epsilon_high': 0.28,  # DAPO's upper clip
        'grpo.advantage.scale_rewards': 'group',
    }
    config = reasonjax.load_config('grpo', overrides, smoke=options.smoke)
    summary = reasonjax.run(config, options.workdir)
    for stage in summary['stages']:
        low, high = stage['ci95']
        print(
            f'after {stage["name"]:8} {100 * stage["accuracy"]:5.1f} % right [{100 * low:.1f}, '
            f'{100 * high:.1f}]'
        )
    model = reasonjax.load_model(options.workdir)
    for prompt, answers in model.sample(['12+34=', '98+76='], samples=2, temperature=1.0):
        print(prompt, *(answer['text'] for answer in answers), sep='   ')


if __name__ == '__main__':
    main()
