"""python -m reasonjax.compare: many recipes, many tasks, many seeds, one table."""

import argparse
import sys

from reasonjax.bounds import AtLeast, Between, flag

EPILOG = """\
A recipe is an id (configs/recipes/ID.py or configs/ID.py) or a path; ":ARGUMENT" goes to its get_config, and "@STAGE+STAGE" takes these of
its stages only: grpo is a short SFT and then GRPO, grpo@grpo is GRPO alone. All start from one checkpoint a task and answer the same
problems. What is done is not done again: give the same command to resume.
The workdir then holds report.html, table.csv, table.json, table.md, the figures, and a folder for each cell."""


def main(arguments: list[str] | None = None) -> int:
    from reasonjax.programs import Parser, add_trust_option, run_program

    parser = Parser(
        'python -m reasonjax.compare',
        description='Compare recipes over tasks and seeds.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--recipes', default='', help='ids or paths, separated by commas')
    parser.add_argument(
        '--tasks',
        default='arena',
        help='tasks, separated by commas; "arena" is all that need no model',
    )
    parser.add_argument(
        '--seeds',
        type=flag(Between(1, 1000)),
        default=5,
        metavar='N',
        help='seeds 0 to N - 1 of each recipe on each task',
    )
    parser.add_argument(
        '--baseline',
        default='',
        help='the recipe that others are compared with (default: the first)',
    )
    parser.add_argument(
        '--measure',
        default='test/greedy',
        help='what verdicts are about: test or ood, greedy or sampled',
    )
    parser.add_argument(
        '--budget',
        default='',
        metavar='WHAT=N',
        help='stop every recipe at as many tokens, flops or seconds',
    )
    parser.add_argument(
        '--override',
        action='append',
        default=[],
        metavar='KEY=VALUE',
        help="set a leaf of every recipe's config",
    )
    parser.add_argument(
        '--workdir', default='runs/compare', help='where results go (default: %(default)s)'
    )
    parser.add_argument(
        '--workers',
        type=flag(Between(0, 1000)),
        default=0,
        metavar='N',
        help='processes (default: one a core; one on an accelerator, whose memory several would '
        'share)',
    )
    parser.add_argument(
        '--init',
        default='',
        help='the model that tasks start from which need one: hf:FOLDER or checkpoint:WORKDIR',
    )
    parser.add_argument(
        '--problems',
        type=flag(AtLeast(0)),
        default=0,
        metavar='N',
        help='of each evaluation at most (default: as the task says)',
    )
    parser.add_argument(
        '--claims',
        action='store_true',
        help='test the claims of recipes (of all that have one, or of --recipes)',
    )
    parser.add_argument(
        '--docs',
        default='',
        metavar='FOLDER',
        help='also write ARENA.md with its figures there; with --claims: CLAIMS.md '
        'and claims/ (which is then docs by default)',
    )
    add_trust_option(parser)
    options = parser.parse_args(arguments)

    def program() -> None:
        from reasonjax.arena.options import check

        check(options)
        from reasonjax.arena import compare

        (compare.run_claims if options.claims else compare.run)(options)

    return run_program(program, resumable=True)


if __name__ == '__main__':
    sys.exit(main())
