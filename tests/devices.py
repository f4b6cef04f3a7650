"""Eight simulated devices for a script, in a process of its own."""

import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def on_eight(script: pathlib.Path, *arguments: object) -> None:
    """Runs a script that lies beside its test, with tests/ and the root on its path; fails with what it said."""
    environment = os.environ | {
        'XLA_FLAGS': '--xla_force_host_platform_device_count=8', 'JAX_PLATFORMS': 'cpu',
        'PYTHONPATH': os.pathsep.join([str(HERE), str(HERE.parent)]),
    }  # fmt: skip
    done = subprocess.run([sys.executable, str(script), *map(str, arguments)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
