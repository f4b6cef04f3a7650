"""python -m reasonjax.interop.lm_eval: lm-evaluation-harness on any checkpoint.

From Python: `lm_eval.simple_evaluate(model=Harness.from_workdir('runs/x'))`.
"""

import argparse
import importlib
import importlib.util
import sys
from typing import Any

EPILOG = """\
examples:
  python -m reasonjax.interop.lm_eval --model_args workdir=runs/gsm8k --tasks gsm8k
  python -m reasonjax.interop.lm_eval --model_args workdir=runs/gsm8k,stage=sft --batch_size 64 --tasks my_task --include_path tasks/
  python -m reasonjax.interop.lm_eval ls tasks

All other options are lm_eval's ("run --help" lists them; JAX chooses the device). --model_args takes workdir, stage, batch_size,
max_length, max_gen_toks, seed, add_bos_token, chat_template_args and trust."""

BATCH = 32
MISSING = 'reasonjax.interop.lm_eval needs lm-evaluation-harness: pip install "reasonjax[eval]".'


def __getattr__(name: str) -> Any:
    """Imports what needs jax and lm_eval when it is asked for, not for `--help`."""
    if name.startswith('__'):
        raise AttributeError(name)
    # Not `from reasonjax.interop.lm_eval import model`, which looks here for it first.
    return getattr(importlib.import_module('reasonjax.interop.lm_eval.model'), name)


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        'python -m reasonjax.interop.lm_eval',
        description='The command line of lm_eval, for a run.',
        epilog=EPILOG,
        add_help=False,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        '--skip_selfcheck',
        action='store_true',
        help='do not test the backend for wrong results first',
    )
    from reasonjax.errors import UserError
    from reasonjax.programs import add_trust_option, run_program, start

    add_trust_option(parser)
    if not arguments or arguments[0] in ('-h', '--help'):
        parser.print_help()
        return 0
    options, rest = parser.parse_known_args(arguments)
    runs = rest[:1] == ['run'] or ''.join(rest[:1]).startswith('-')
    # Options of the user, and of a file of theirs, win; lm_eval's own default is one request at a
    # time.
    ours = ['--model', 'reasonjax'] + ['--batch_size', str(BATCH)] * (
        not any(a.startswith(('--config', '-C')) for a in rest)
    )
    command = [*ours, *rest[rest[:1] == ['run'] :]] if runs else rest

    def program() -> None:
        if importlib.util.find_spec('lm_eval') is None:
            raise UserError(MISSING)
        helps = bool({'-h', '--help'} & set(rest))
        if runs and not helps:
            _check_workdir(rest)
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api.registry import register_model

        from reasonjax.interop.lm_eval.model import Harness

        if runs and not helps:
            start(options.skip_selfcheck)
        Harness.trust = tuple(options.trust)
        register_model('reasonjax')(Harness)
        before, sys.argv = sys.argv, ['lm-eval', *command]
        try:
            cli_evaluate()
        except ValueError as error:
            if not str(error).startswith('Tasks not found'):
                raise
            raise UserError(
                f'--tasks: {error}. `python -m reasonjax.interop.lm_eval ls tasks` lists those '
                'there are.'
            ) from error
        finally:
            sys.argv, Harness.trust = before, ()

    return run_program(program)


def _check_workdir(arguments: list[str]) -> None:
    """Raises UserError where `workdir` of --model_args is no run, before the many seconds that
    importing lm_eval takes."""
    from reasonjax.training.saved_run import read_config

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--model_args', '-a', nargs='+', action='extend', default=[])
    for pair in ','.join(parser.parse_known_args(arguments)[0].model_args).split(','):
        key, _, value = pair.partition('=')
        if key.strip() == 'workdir':
            read_config(value.strip())
