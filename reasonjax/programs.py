"""What the command-line programs share: arguments, errors, start of the backend."""

import argparse
import ctypes
import errno
import gc
import logging
import os
import pathlib
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from reasonjax import config as configs
from reasonjax import files, terminal
from reasonjax.bounds import Between, flag
from reasonjax.errors import Stopped, UserError

CPU_DEVICES = 4096  # at most; as many as reasonjax.plan simulates
# Libraries whose warnings say nothing to whoever runs a program (what goes wrong is raised too);
# their errors stay.
LIBRARIES = (
    'absl',
    'etils',
    'filelock',
    'flax',
    'fsspec',
    'grain',
    'huggingface_hub',
    'jax',
    'ml_collections',
    'optax',
    'orbax',
    'tensorflow',
    'tensorflow_datasets',
    'tokenizers',
    'torch',
    'transformers',
)
# The same for what they write themselves, where the user has not set these.
LEVELS = {
    'TF_CPP_MIN_LOG_LEVEL': '2',
    'TRANSFORMERS_VERBOSITY': 'error',
    'TRANSFORMERS_NO_ADVISORY_WARNINGS': '1',
}
# no room on the disk, or beyond what this user may have
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a value, as with every other value; arguments that are
    missing or unknown also show the usage."""

    def error(self, message: str) -> NoReturn:
        # of `bounds.flag`
        if isinstance(getattr(sys.exception(), '__context__', None), argparse.ArgumentTypeError):
            self.exit(_fail(f'error: {message}'))
        super().error(message)


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str]
) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """Parses a program's own options, and `--config.a.b=c` overrides beside them."""
    try:
        rest, overrides = configs.split_arguments(arguments)
    except UserError as error:
        parser.error(str(error))
    return parser.parse_args(rest), overrides


def add_process_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a program that may run on several devices or as several processes;
    `start` takes them."""
    parser.add_argument(
        '--cpu_devices',
        type=flag(Between(0, CPU_DEVICES)),
        default=0,
        metavar='N',
        help='devices that a CPU is taken for, for meshes of several; one a core samples faster '
        '(default: one in all)',
    )
    group = parser.add_argument_group(
        'several processes', 'docs/scaling.md has commands for TPU pods, GKE, SLURM and ssh.'
    )
    group.add_argument(
        '--distributed',
        action='store_true',
        help='find the others from the cluster (Cloud TPU, GKE, SLURM, Open MPI)',
    )
    group.add_argument(
        '--coordinator', metavar='HOST:PORT', help='where process 0 listens for the others'
    )
    group.add_argument('--num_processes', metavar='N', help='how many there are')
    group.add_argument('--process_id', metavar='I', help='which of them this is, from 0')


def _module(text: str) -> str:
    if not all(part.isidentifier() for part in text.split('.')):
        raise argparse.ArgumentTypeError(
            f'{text!r} is not the name of a module, such as my_package.rewards'
        )
    return text


def add_trust_option(parser: argparse.ArgumentParser) -> None:
    """Adds the option of a program that reads a workdir, whose config is data."""
    parser.add_argument(
        '--trust',
        action='append',
        type=_module,
        default=[],
        metavar='MODULE',
        help='also import functions of this module, or of one below it, where the config.json of a '
        'workdir that is read names them '
        '(otherwise only those of reasonjax); may be given several times',
    )


def check_process_options(options: argparse.Namespace) -> None:
    """Raises UserError where the options of `add_process_options`, or the environment, contradict
    themselves."""
    from reasonjax.parallel import launch

    launch.settings(vars(options), os.environ)


def run_program(program: Callable[[], None], *, resumable: bool = False) -> int:
    """Runs a program; what the user can mend is printed without a traceback. Returns the exit
    status.

    Args:
      program: to run.
      resumable: it resumes when the same command is given again, and ends too early
        where nobody reads its output any more.
    """
    terminal.open_streams()
    _quieten_libraries()
    try:
        program()
        if sys.stdout is not None:
            sys.stdout.flush()  # now, while an error can be handled
    except UserError as error:
        # Where it was not needed yet, there is one process; it imports jax.
        processes = sys.modules.get('reasonjax.parallel.processes')
        which = processes.label() if processes else ''
        return _fail(f'error ({which}): {error}' if which else f'error: {error}')
    except Stopped as stop:
        return _stopped(str(stop))
    except BrokenPipeError:
        # Whoever read the output has seen enough (`| head`). What Python flushes as it ends goes
        # nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _stopped('nobody reads its output any more') if resumable else 0
    except OSError as error:
        if error.errno in FULL:
            return _fail(
                f'error: {error}. What was saved before is whole; make room and give the same '
                'command again.'
            )
        if error.filename is None:
            raise
        return _fail(f'error: {error.filename}: {files.reason(error)}.')
    return 0


def _stopped(why: str) -> int:
    again = shlex.join(['python', *sys.orig_argv[1:]])
    print(
        f'stopped: {why}. To resume, give the same command again:\n  {again}',
        file=sys.stderr,
        flush=True,
    )
    return Stopped.status


def _quieten_libraries() -> None:
    for name, value in LEVELS.items():
        os.environ.setdefault(name, value)
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings('ignore', module=rf'({"|".join(LIBRARIES)})(\.|$)')


def _fail(message: str) -> int:
    print(terminal.printable(message), file=sys.stderr, flush=True)
    return 2


def load_config(
    location: str, overrides: Sequence[tuple[str, str]], smoke: bool, trust: Sequence[str] = ()
) -> tuple[Any, str]:
    """Loads a config, shrunk where it is only to be tried. Returns it with the name its workdir
    gets."""
    from reasonjax import config as configs
    from reasonjax.smoke import shrink
    from reasonjax.training.load_config import load

    config = load(location, overrides, trust)
    if smoke:
        # Loaded with the overrides, so that functions named there bring their knobs and what is
        # shared stays shared; leaves are set once more in the small config, where they have the
        # last word. Lists are not made smaller.
        leaves = [
            (key, value)
            for key, value in overrides
            if key.rpartition('.')[2] != 'name'
            and not isinstance(configs.value_at(config, key), list | tuple)
        ]
        config = shrink(config, leaves)
    path, _, argument = location.partition(':')
    name = (
        pathlib.Path(path).stem + (f'_{argument}' if argument else '') + ('_smoke' if smoke else '')
    )
    return config, name


def _keep_freed_memory(one_arena: bool) -> None:
    """Has glibc keep what a step frees for the next one.

    XLA on CPU takes fresh memory for every execution; given back to the system and faulted in again
    page by page, it cost 15 % of the quickstart's processor time (two cores, November 2026).

    Args:
      one_arena: threads share one arena. Only that can keep blocks of more than 64 MB, which saves
        a large step an eighth of its time; but threads that compile then wait for each other at
        every allocation: the first step of the GRPO benchmark took 31 s, not 21.
    """
    libc = ctypes.CDLL(None)
    if sys.platform == 'linux' and hasattr(libc, 'mallopt'):
        M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
        for option, value in ((M_ARENA_MAX, 1),) * one_arena + (
            (M_MMAP_THRESHOLD, 2**30),
            (M_TRIM_THRESHOLD, 2**31 - 1),
        ):
            libc.mallopt(option, value)


def give_back_freed_memory() -> None:
    """Gives the system what `_keep_freed_memory` has kept: between two runs in one process, so that
    each is counted for itself."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if sys.platform == 'linux' and hasattr(libc, 'malloc_trim'):
        libc.malloc_trim(0)


def has_large_steps(config: Any) -> bool:
    """Returns whether all stages of a config train on whole batches of long rows. A stage that
    draws samples compiles more and holds less."""
    from reasonjax.training.kinds import KINDS

    # What the stages are is checked later.
    kinds = [KINDS.get(config.get(name, {}).get('kind')) for name in config.stages]
    return all(kind and kind.saves and not kind.samples for kind in kinds)


def split_cpu(number: int) -> None:
    """Has jax take this machine's CPU for this many devices. A program of several runs a copy on
    each: operations that one core does alone, as most of drawing a token from a small model, are
    then done by several cores at a time.

    Raises:
      UserError: devices are in use already.
    """
    import jax

    try:
        jax.config.update('jax_num_cpu_devices', number)
    except RuntimeError as error:
        raise UserError(f'--cpu_devices={number}: {error}') from error


def start(
    skip_selfcheck: bool, options: argparse.Namespace | None = None, config: Any = None
) -> None:
    """Prepares the process: joins the others where there are some, and checks that the backend
    computes what it is told to (see `selfcheck`). Nothing may run on it before.

    Args:
      skip_selfcheck: do not check.
      options: those of `add_process_options`; None for a program that is always one process.
      config: that is going to be run, if one is.
    """
    import jax

    from reasonjax import selfcheck
    from reasonjax.parallel import processes

    _keep_freed_memory(config is not None and has_large_steps(config))
    if options is not None:
        if options.cpu_devices:
            split_cpu(options.cpu_devices)
        processes.start(vars(options))
        if options.cpu_devices and jax.default_backend() != 'cpu':
            here = jax.default_backend()
            raise UserError(
                f'--cpu_devices={options.cpu_devices}: jax runs on "{here}" here; '
                'JAX_PLATFORMS=cpu changes that.'
            )
    if not skip_selfcheck:
        try:
            selfcheck.check()
        except selfcheck.BackendError as error:
            raise UserError(str(error)) from error
