"""Measurements, each a process of its own that prints a line of JSON, each kept as a file: what was
measured is not measured again."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

from benchmarks import workload
from benchmarks.peer_env import SYSTEMS
from reasonjax import files

ROOT = pathlib.Path(__file__).parent.parent
TIMEOUT_S = 900
# Would let a second process skip the compilation that the first step is to contain.
CACHES = ('JAX_COMPILATION_CACHE_DIR', 'TORCHINDUCTOR_CACHE_DIR')


def schedule(
    systems: Sequence[str], rounds: int, only: Sequence[str] = ()
) -> Iterator[tuple[int, str, str]]:
    """(round, what, system) in the order of measuring: systems in turn within a part, another one
    first each round, so that a machine that slows down or is disturbed does so to all of them.

    Args:
      systems: keys of `SYSTEMS`.
      rounds: times everything is measured.
      only: parts; all by default.
    """
    parts = list(dict.fromkeys(part for name in systems for part in workload.PARTS[name]))
    for number in range(rounds):
        order = [systems[(i + number) % len(systems)] for i in range(len(systems))]
        for part in parts:
            if not only or part in only:
                yield from ((number, part, name) for name in order if part in workload.PARTS[name])


def file_of(folder: pathlib.Path, number: int, what: str, system: str) -> pathlib.Path:
    return folder / f'{number}_{what}_{system}.json'


def measured(folder: pathlib.Path) -> list[dict]:
    """All measurements there are: what the processes printed, with `system`, `what` and `round`."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob('*.json'))]


def measure(
    command: Sequence[str],
    file: pathlib.Path,
    about: Mapping,
    environment: Mapping[str, str],
    timeout: float = TIMEOUT_S,
) -> dict | None:
    """Runs a process and keeps the line of JSON that it prints last.

    Args:
      command: of the process, run in the root of the project.
      file: to keep it in; where it is there already, nothing is run.
      about: what is kept beside it.
      environment: variables to set.
      timeout: seconds it may take.

    Returns:
      What is in the file; None where the process failed or took too long, which is printed with the
      end of what it said.
    """
    if file.is_file():
        return json.loads(file.read_text())
    file.parent.mkdir(parents=True, exist_ok=True)
    log, start = file.with_suffix('.log'), time.monotonic()
    variables = {name: value for name, value in os.environ.items() if name not in CACHES} | dict(
        environment
    )
    with log.open('w', encoding='utf-8') as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env=variables,
            start_new_session=True,
        )
        try:
            said, problem = process.communicate(timeout=timeout)[0], ''
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, problem = process.communicate()[0], f'took more than {timeout:.0f} s'
    found = None if problem or process.returncode else _last_json(said)
    if found is None:
        problem = problem or (
            f'ended with {process.returncode}' if process.returncode else 'printed no result'
        )
        last = '\n  '.join(
            [
                *said.splitlines()[-3:],
                *log.read_text(encoding='utf-8', errors='replace').splitlines()[-12:],
            ]
        )
        print(
            f'{file.stem}: {problem}\n  {last}\n  {" ".join(command)}\n  ({log})',
            file=sys.stderr,
            flush=True,
        )
        return None
    found = dict(about) | found | {'process_s': time.monotonic() - start}
    files.write_text(file, json.dumps(found) + '\n')
    return found


def _last_json(said: str) -> dict | None:
    for line in reversed(said.splitlines()):
        if line.startswith('{'):
            return json.loads(line)
    return None


def command_of(
    system: str, interpreter: str, what: str, data: pathlib.Path, more: Sequence[str] = ()
) -> list[str]:
    """The command that measures a part of a system."""
    return [
        interpreter,
        '-m',
        SYSTEMS[system].module,
        '--what',
        what,
        '--data',
        str(data.resolve()),
        *more,
    ]
