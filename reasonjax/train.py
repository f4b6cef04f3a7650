"""python -m reasonjax.train: run the stages of a config."""

import argparse
import sys

EPILOG = """\
Any leaf of the config can be set: --config.sft.steps=10  --config.sft.learning_rate.name=constant
SIGTERM or Ctrl-C lets the step under way finish, saves, and exits with status 75; a second Ctrl-C ends the program at once.
A run that was stopped or killed resumes: give the same command again.
The workdir then holds config.json, metrics.jsonl, tensorboard/, completions/, stages/ (checkpoints), summary.json and report.html."""


def main(arguments: list[str] | None = None) -> int:
    from reasonjax.programs import (
        Parser,
        add_process_options,
        add_trust_option,
        check_process_options,
        parse,
        run_program,
    )

    parser = Parser(
        'python -m reasonjax.train',
        description='Run the stages of a config.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--config',
        required=True,
        metavar='FILE[:ARG]',
        help='a config file, such as configs/quickstart.py, or a name that comes with reasonjax: '
        'quickstart',
    )
    parser.add_argument(
        '--workdir', help='where results go and a stopped run resumes from (default: runs/CONFIG)'
    )
    parser.add_argument(
        '--smoke', action='store_true', help='one layer, two steps a stage: does it run at all?'
    )
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
        from reasonjax.programs import load_config, start
        from reasonjax.reporting import report
        from reasonjax.training import checks, stopping
        from reasonjax.training.run import run, show

        config, name = load_config(options.config, overrides, options.smoke, options.trust)
        checks.check(config)
        start(options.skip_selfcheck, options, config)
        workdir = options.workdir or f'runs/{name}'
        # Now, because what starts several processes installs handlers of its own.
        with stopping.listening():
            summary = run(config, workdir, options.trust, report.write)
        show(summary)
        if options.smoke:
            print('A smoke run: it shows that the config runs, its numbers mean nothing.')
        print(f'Curves, samples and timings: {workdir}/report.html')

    return run_program(program, resumable=True)


if __name__ == '__main__':
    sys.exit(main())
