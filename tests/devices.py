"""Simulated devices for a script, in a process of its own."""

import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def environment(number: int, *folders: pathlib.Path) -> dict[str, str]:
    """This process's environment for one that has `number` CPU devices, with tests/, the root and `folders` on its path."""
    return os.environ | {
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={number}',
        'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.pathsep.join(map(str, (*folders, HERE, HERE.parent))),
    }  # fmt: skip


def on_eight(script: pathlib.Path, *arguments: object) -> None:
    """Runs a script that lies beside its test on eight devices; fails with what it said."""
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, env=environment(8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
