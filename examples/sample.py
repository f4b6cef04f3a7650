"""Sample from a run and score it.

python examples/sample.py runs/quickstart "1234+5678=" "9999+0001="
"""

import argparse

import reasonjax


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('workdir')
    parser.add_argument('prompts', nargs='+')
    parser.add_argument('--problems', type=int, default=200, help='to score it on')
    options = parser.parse_args()
    model = reasonjax.load_model(options.workdir)
    print(f'{options.workdir}: stage {model.stage}, step {model.step}')
    for prompt, answers in model.sample(options.prompts, samples=4, temperature=1.0, seed=1):
        for answer in answers:
            print(f'{prompt}{answer["text"]}    log p = {answer["logprob"]:.2f}')
    scores = model.evaluate({'task.size': options.problems, 'samples': 4})
    low, high = scores['ci95']
    print(
        f'{options.problems} problems: {100 * scores["accuracy"]:.1f} % right [{100 * low:.1f}, '
        f'{100 * high:.1f}], ',
        end='',
    )
    print(f'at least one of 4 samples {100 * scores["pass@4"]:.1f} %')


if __name__ == '__main__':
    main()
