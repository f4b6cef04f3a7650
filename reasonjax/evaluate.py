"""python -m reasonjax.evaluate: score a checkpoint on a task."""

import argparse
import sys

from reasonjax.bounds import AtLeast, flag, read

EPILOG = """\
examples:
  python -m reasonjax.evaluate --workdir runs/quickstart
  python -m reasonjax.evaluate --workdir runs/quickstart --stage sft --samples 16 --k 1,4,16
  python -m reasonjax.evaluate --workdir runs/gsm8k --config.evaluation.task.limit=500 --output answers.jsonl

Prints greedy accuracy, the mean over samples, pass@k (unbiased) and maj@k, each with a 95 % interval, and strict and flexible scores
where the task has both. The task and the sampling are those of the run's config.evaluation; any of it can be set with
--config.evaluation.X=Y."""


def main(arguments: list[str] | None = None) -> int:
    from reasonjax.errors import UserError
    from reasonjax.programs import (
        Parser,
        add_process_options,
        add_trust_option,
        check_process_options,
        parse,
        run_program,
        start,
    )

    parser = Parser(
        'python -m reasonjax.evaluate',
        description='Score a run on a task.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--workdir', required=True, help='of the run whose checkpoint is scored')
    parser.add_argument(
        '--stage',
        default='',
        help='training stage to take (default: the last that has a checkpoint)',
    )
    parser.add_argument(
        '--samples',
        type=flag(AtLeast(0)),
        help="answers drawn per problem (default: the run's setting); 0: greedy only",
    )
    parser.add_argument(
        '--k',
        default='',
        help='k of pass@k and maj@k, separated by commas (default: 1 and the number of samples)',
    )
    parser.add_argument('--output', help='JSONL file for every answer with its verdict')
    parser.add_argument('--json', action='store_true', help='print the result as JSON')
    parser.add_argument(
        '--skip_selfcheck',
        action='store_true',
        help='do not test the backend for wrong results first',
    )
    add_trust_option(parser)
    add_process_options(parser)
    options, overrides = parse(parser, sys.argv[1:] if arguments is None else arguments)

    def program() -> None:
        check_process_options(options)
        for part in options.k.split(','):
            if part.strip():
                read(part.strip(), AtLeast(1), '--k')
        for key, _ in overrides:
            if not key.startswith('evaluation.'):
                raise UserError(
                    f'--config.{key}: only config.evaluation can be set here; the model is the one '
                    'that was trained.'
                )
        from reasonjax.training import saved_run, score_run

        saved_run.read_config(options.workdir)
        start(options.skip_selfcheck, options)
        score_run.run(options, overrides)

    return run_program(program)


if __name__ == '__main__':
    sys.exit(main())
