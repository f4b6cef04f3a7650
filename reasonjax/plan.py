"""python -m reasonjax.plan: compile a config for a pod that is not here. Does it fit, and how fast
can it be?"""

import argparse
import sys

EPILOG = """\
Topologies: v4:2x2x2  v5e:16x16  v5p:4x4x4  v6e:16x16  tpu7x:4x4x4  2*v5e:16x16 (two slices)  cpu:8 (simulated devices)
Any leaf of the config can be set: --config.mesh.fsdp=64  --config.mesh.tensor=4  --config.grpo.accumulation=16
Nothing is run and no weights are read. TPUs need their compiler: pip install libtpu. docs/PLAN.md says what the numbers mean."""


def main(arguments: list[str] | None = None) -> int:
    from reasonjax.programs import Parser, add_trust_option, parse, run_program

    parser = Parser(
        'python -m reasonjax.plan',
        description='Compile a config for a pod that is not here: memory, arithmetic, traffic, and '
        'the least time they take.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--config',
        required=True,
        metavar='FILE[:ARG]',
        help='a config file, such as configs/plan.py:qwen3_8b, or a name that comes with reasonjax',
    )
    parser.add_argument(
        '--topology', required=True, metavar='NAME', help='what to compile for, such as v5e:16x16'
    )
    parser.add_argument(
        '--stage',
        default='',
        help='stage to plan (default: the last that reinforces, or else the last that trains)',
    )
    parser.add_argument(
        '--program',
        default='',
        metavar='NAMES',
        help='of train,score,prefill,decode,iteration (default: all there are)',
    )
    parser.add_argument(
        '--no-fit',
        action='store_true',
        help='where it does not fit, do not look for the change that makes it',
    )
    parser.add_argument(
        '--json', action='store_true', help='print one JSON document instead of tables'
    )
    add_trust_option(parser)
    options, overrides = parse(parser, sys.argv[1:] if arguments is None else arguments)

    def program() -> None:
        from reasonjax.planning import report

        report.run(options, overrides)

    return run_program(program)


if __name__ == '__main__':
    sys.exit(main())
