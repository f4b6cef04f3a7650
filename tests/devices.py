"""Simulated devices for a script, in a process of its own."""

import gc
import os
import pathlib
import subprocess
import sys

import numpy as np

HERE = pathlib.Path(__file__).parent


def environment(number: int, *folders: pathlib.Path) -> dict[str, str]:
    """This process's environment for one that has `number` CPU devices, with tests/, the root and
    `folders` on its path."""
    flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={number}'
    return os.environ | {
        # A thread of XLA's pool waits in each collective. With one for each core, devices that
        # start two independent collectives in a different order can use them all up, and wait for
        # each other for ever.
        'NPROC': '64',
        'XLA_FLAGS': flags,
        'JAX_PLATFORMS': 'cpu',
        'PYTHONPATH': os.pathsep.join(map(str, (*folders, HERE, HERE.parent))),
    }


def by_mesh(
    script: pathlib.Path, out: pathlib.Path, *arguments: object
) -> dict[str, dict[str, np.ndarray]]:
    """Runs a script that writes arrays named MESH/NAME to `out`, its first argument; returns mesh
    -> name -> array."""
    on_eight(script, out, *arguments)
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, value in np.load(out).items():
        mesh, _, name = key.partition('/')
        found.setdefault(mesh, {})[name] = value
    return found


def on_eight(script: pathlib.Path, *arguments: object) -> None:
    """Runs a script that lies beside its test on eight devices; fails with what it said."""
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, env=environment(8), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def collect_less() -> None:
    """Keeps the garbage collector from what there is now, which stays, and lets it look less often:
    it costs a process that traces and compiles 6 % of its time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
