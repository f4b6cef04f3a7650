"""python -m reasonjax.sample: generate from a checkpoint."""

import argparse
import sys

from reasonjax.bounds import AtLeast, BelowOne, PositiveFraction, Seed, TemperatureOrGreedy, flag

EPILOG = """\
examples:
  python -m reasonjax.sample --workdir runs/quickstart "1234+5678=" "9999+0001="
  python -m reasonjax.sample --workdir runs/quickstart --stage sft --samples 4 --temperature 1 --logprobs "1234+5678="
  python -m reasonjax.sample --workdir runs/gsm8k --file prompts.txt --jsonl > answers.jsonl
  python -m reasonjax.sample --workdir runs/hf --chat "How many minutes are two hours?"
  echo "1234+5678=" | python -m reasonjax.sample --workdir runs/quickstart"""


def main(arguments: list[str] | None = None) -> int:
    from reasonjax.errors import UserError
    from reasonjax.programs import (
        Parser,
        add_process_options,
        add_trust_option,
        check_process_options,
        run_program,
        start,
    )

    parser = Parser(
        'python -m reasonjax.sample',
        description='Generate completions from a run.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'prompts', nargs='*', help='prompts; none: a line each of --file, or of standard input'
    )
    parser.add_argument('--workdir', required=True, help='of the run whose checkpoint is used')
    parser.add_argument(
        '--stage',
        default='',
        help='training stage to take (default: the last that has a checkpoint)',
    )
    parser.add_argument(
        '--file',
        help='prompts: one a line, or rows with a "prompt" (.jsonl, .json, .parquet); .gz too',
    )
    parser.add_argument(
        '--chat',
        action='store_true',
        help='put each prompt through the chat template, as a user message',
    )
    parser.add_argument(
        '--samples', type=flag(AtLeast(1)), default=1, help='completions per prompt (default 1)'
    )
    parser.add_argument(
        '--max_tokens',
        type=flag(AtLeast(0)),
        default=0,
        help="longest completion (default: the run's evaluation setting)",
    )
    parser.add_argument(
        '--temperature', type=flag(TemperatureOrGreedy), default=0.0, help='0 is greedy (default)'
    )
    parser.add_argument(
        '--top_k',
        type=flag(AtLeast(0)),
        default=0,
        help='keep the k most likely tokens; 0 keeps all',
    )
    parser.add_argument(
        '--top_p',
        type=flag(PositiveFraction),
        default=1.0,
        help='keep the likeliest tokens up to this mass; 1 keeps all',
    )
    parser.add_argument(
        '--min_p',
        type=flag(BelowOne),
        default=0.0,
        help='drop tokens below this share of the most likely; 0 keeps all',
    )
    parser.add_argument('--seed', type=flag(Seed), default=0)
    parser.add_argument(
        '--batch_size', type=flag(AtLeast(1)), default=64, help='prompts at once (default 64)'
    )
    parser.add_argument(
        '--logprobs', action='store_true', help="show each token's log-probability, and their sum"
    )
    parser.add_argument('--jsonl', action='store_true', help='print one JSON object a completion')
    parser.add_argument(
        '--skip_selfcheck',
        action='store_true',
        help='do not test the backend for wrong results first',
    )
    add_trust_option(parser)
    add_process_options(parser)
    options = parser.parse_args(arguments)

    def program() -> None:
        check_process_options(options)
        if options.prompts and options.file:
            raise UserError('prompts as arguments and in --file: give one of them.')
        from reasonjax.training import answer_prompts

        answer_prompts.check(options)
        start(options.skip_selfcheck, options)
        answer_prompts.run(options)

    return run_program(program)


if __name__ == '__main__':
    sys.exit(main())
