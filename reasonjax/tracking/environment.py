"""What a run ran on: versions, devices and cores."""

import contextlib
import datetime
import functools
import importlib.metadata
import os
import platform
import shlex
import sys
from typing import Any

import jax

PACKAGES = (
    'reasonjax jax jaxlib flax optax orbax-checkpoint grain transformers sentencepiece numpy'
).split()


def environment() -> dict[str, Any]:
    """Returns versions, devices and cores: what is needed to make sense of a timing. Touches the
    devices."""
    devices = jax.devices()
    return {
        'command': shlex.join(['python', *sys.orig_argv[1:]]),
        'started': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
        'platform': devices[0].platform,
        'device_kind': devices[0].device_kind,
        'device_count': len(devices),
        'process_count': jax.process_count(),
        'cores': len(os.sched_getaffinity(0))
        if hasattr(os, 'sched_getaffinity')
        else os.cpu_count(),
        'machine': platform.machine(),
        'system': platform.system(),
        'python': platform.python_version(),
        'versions': dict(_versions()),
    }


@functools.cache
def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions
