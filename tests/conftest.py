"""Fixtures shared by all tests."""

import atexit
import importlib.util
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable

import jaxlib
import pytest

# The programs of these tests run for milliseconds: machine code that is made quickly is worth more
# than quick machine code. A user of the package has XLA's defaults, as have tests run with
# `XLA_FLAGS= pytest`, and the self-check. A release of XLA ends the process for a flag that it does
# not know, as does the compiler for TPUs, where it is installed.
QUICK_TO_COMPILE = {
    '0.10': '--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 '
    '--xla_cpu_use_fusion_emitters=false',
    '0.12': '--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1',
}
_release = '.'.join(jaxlib.__version__.split('.')[:2])
if _release in QUICK_TO_COMPILE and importlib.util.find_spec('libtpu') is None:
    os.environ.setdefault('XLA_FLAGS', QUICK_TO_COMPILE[_release])

# NumPy and torch multiply small matrices here. Threads that wait for each other over one of those
# take more of the processors than the product does, and the other worker needs them.
os.environ.setdefault('OMP_NUM_THREADS', '1')
# Saves lowering a fifth of its time: no test reads where in the code an operation comes from.
os.environ.setdefault('JAX_TRACEBACK_IN_LOCATIONS_LIMIT', '0')

# To save a checkpoint is to wait for the disk some seventy times, a file each: where there is a file
# system in memory with enough room, temporary folders are there.
MEMORY = pathlib.Path('/dev/shm')
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 4 * 2**30:
    os.environ.setdefault('PYTEST_DEBUG_TEMPROOT', str(MEMORY))

# Tests run the same small programs over and over, in several processes: compile each once a
# session. Worker processes inherit it.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    _cache = tempfile.mkdtemp(prefix='reasonjax-test-cache-')
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ['JAX_COMPILATION_CACHE_DIR'] = _cache
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')
# XLA calls two tuning preferences of its own "machine features" that the host lacks, once for each
# program it reads back.
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')

ROOT = pathlib.Path(__file__).parent.parent


def pytest_collection_finish() -> None:
    """Spares the garbage collector the objects of imports and of collection."""
    import devices

    devices.collect_less()


@pytest.fixture(scope='session')
def data_dir() -> pathlib.Path:
    """The folder of public data sets (`REASONJAX_DATA`, default ../shared/data beside the
    checkout); skips where there is none."""
    folder = pathlib.Path(os.environ.get('REASONJAX_DATA', ROOT.parent / 'shared' / 'data'))
    if not folder.is_dir():
        pytest.skip(f'no data folder at {folder}; set REASONJAX_DATA')
    return folder


@pytest.fixture(scope='session')
def model_folder(tmp_path_factory) -> pathlib.Path:
    """A tiny model as a user would have downloaded it."""
    import folders

    return folders.write(tmp_path_factory.mktemp('downloaded') / 'tiny')


@pytest.fixture(scope='session')
def texts() -> list[str]:
    """Texts to train vocabularies from."""
    import tokenizer_folders

    return tokenizer_folders.TEXTS


@pytest.fixture(scope='session')
def hugging_face_folder() -> Callable:
    """`hugging_face_folder(folder, **tokens)` writes a tokenizer folder and returns its path; see
    `tokenizer_folders.write_folder`."""
    import tokenizer_folders

    return tokenizer_folders.write_folder


@pytest.fixture
def load_config(monkeypatch, request) -> Callable:
    """`load_config(location, overrides)`: a config of the project, given the data and the model
    that it takes from the environment."""
    from reasonjax import config as configs
    from reasonjax.training import load_config

    def load(location, overrides=()):
        monkeypatch.chdir(ROOT)
        config = configs.load(str(location))
        if 'data' in config:  # reads a folder of public data
            monkeypatch.setenv('REASONJAX_DATA', str(request.getfixturevalue('data_dir').resolve()))
        if config.init.startswith('hf:'):
            monkeypatch.setenv('REASONJAX_MODEL', str(request.getfixturevalue('model_folder')))
        return load_config.load(str(location), overrides)

    return load
