"""The systems that are compared: where their Python is, and what is installed there."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Mapping

from reasonjax.errors import UserError

TIMEOUT_S = 1800
# Which versions are written down, of those that are installed.
PACKAGES = (
    'reasonjax',
    'google-tunix',
    'trl',
    'jax',
    'jaxlib',
    'flax',
    'optax',
    'torch',
    'transformers',
    'numpy',
)
READ_VERSIONS = f"""
import importlib.metadata as m, json, platform
found = {{'python': platform.python_version()}}
for name in {PACKAGES!r}:
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


@dataclasses.dataclass(frozen=True)
class System:
    """A system on the workload.

    Attributes:
      title: as tables name it.
      module: its runner.
      packages: what pip installs into its own environment; none for the Python that runs this.
      environment: variables of its processes.
    """

    title: str
    module: str
    packages: tuple[str, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


# Plain `torch` of that release would be the CUDA build.
SYSTEMS = {
    'ours': System('reasonjax', 'benchmarks.peer_ours', environment={'JAX_PLATFORMS': 'cpu'}),
    'tunix': System(
        'Tunix',
        'benchmarks.peer_tunix',
        ('google-tunix', 'sentencepiece'),
        {'JAX_PLATFORMS': 'cpu'},
    ),
    'trl': System('TRL', 'benchmarks.peer_trl', ('torch==2.13.0', 'trl')),
}


def python_of(name: str, folder: pathlib.Path) -> str:
    """The interpreter of a system, its environment made on first use.

    Args:
      name: a key of `SYSTEMS`.
      folder: that environments are made in.

    Raises:
      UserError: pip could not install it.
    """
    packages = SYSTEMS[name].packages
    if not packages:
        return sys.executable
    there, log = folder / f'venv_{name}', folder / f'venv_{name}.log'
    interpreter, ready = there / 'bin' / 'python', there / 'installed.json'
    if ready.is_file() and json.loads(ready.read_text()) == list(packages):
        return str(interpreter)
    print(f'installing {" ".join(packages)} into {there}', flush=True)
    shutil.rmtree(there, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    for command in (
        [sys.executable, '-m', 'venv', str(there)],
        [str(interpreter), '-m', 'pip', 'install', *packages],
    ):
        with log.open('w', encoding='utf-8') as stream:
            done = subprocess.run(
                command, stdout=stream, stderr=subprocess.STDOUT, timeout=TIMEOUT_S
            )
        if done.returncode:
            last = '\n  '.join(log.read_text(encoding='utf-8').splitlines()[-5:])
            raise UserError(
                f'cannot make the environment of {name}: {" ".join(command)} ended with '
                f'{done.returncode}\n  {last}\n  ({log})'
            )
    ready.write_text(json.dumps(list(packages)) + '\n')
    return str(interpreter)


def versions(interpreter: str) -> dict[str, str]:
    """Versions of what a Python has installed, of `PACKAGES`."""
    done = subprocess.run(
        [interpreter, '-c', READ_VERSIONS], capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout)
