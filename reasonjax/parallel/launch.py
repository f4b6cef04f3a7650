"""What flags and environment say of a program of several processes. Here, because flags are checked
before jax is imported."""

from collections.abc import Mapping
from typing import Any

from reasonjax import bounds
from reasonjax.errors import UserError

VARIABLES = {
    'coordinator': 'REASONJAX_COORDINATOR',
    'num_processes': 'REASONJAX_NUM_PROCESSES',
    'process_id': 'REASONJAX_PROCESS_ID',
}
DETECT = 'REASONJAX_DISTRIBUTED'


def settings(flags: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns the arguments to call `jax.distributed.initialize` with.

    Args:
      flags: `coordinator` ('HOST:PORT'), `num_processes`, `process_id`: None or absent leaves one
        to its environment variable; `distributed`: let jax find out from the cluster it runs in.
      environment: `os.environ`.

    Returns:
      Keyword arguments, or None where nothing asks for several processes.

    Raises:
      UserError: settings that are incomplete, contradict each other, or are out of range.
    """
    detect = environment.get(DETECT, '')
    if detect not in ('', 'auto'):
        raise UserError(
            f'{DETECT}={detect}: expected auto (jax finds the other processes from the cluster it '
            'runs in), or nothing.'
        )
    asked = '--distributed' if flags.get('distributed') else f'{DETECT}=auto' if detect else ''
    given = {}
    for name, variable in VARIABLES.items():
        if flags.get(name) is not None:
            given[name] = (flags[name], f'--{name}')
        elif environment.get(variable):
            given[name] = (environment[variable], variable)
    if asked and given:
        raise UserError(
            f'{asked} has jax find out what {_sources(given)} states: give one or the other.'
        )
    if asked:
        return {}
    if not given:
        return None
    missing = [
        f'--{name} ({variable})' for name, variable in VARIABLES.items() if name not in given
    ]
    if missing:
        raise UserError(
            f'{_sources(given)} is given without {" and ".join(missing)}: several processes need '
            'all three.'
        )
    host, _, port = given['coordinator'][0].rpartition(':')
    if not host or bounds.fault(bounds.parse_number(port, int), bounds.Between(1, 65535)):
        raise UserError(
            f'{given["coordinator"][1]}={given["coordinator"][0]}: expected HOST:PORT, a free port '
            'on the host of process 0.'
        )
    number, index = (
        bounds.read(given[name][0], bounds.AtLeast(least), given[name][1])
        for name, least in (('num_processes', 1), ('process_id', 0))
    )
    if index >= number:
        raise UserError(
            f'{given["process_id"][1]}={index}: of {number} processes the last is {number - 1}; '
            'they are numbered from 0.'
        )
    # Deactivated, because jax otherwise asks the cluster for what was not given (which devices),
    # and may take one of several.
    return dict(
        coordinator_address=f'{host}:{port}',
        num_processes=number,
        process_id=index,
        cluster_detection_method='deactivate',
    )


def _sources(given: Mapping[str, tuple]) -> str:
    return ', '.join(source for _, source in given.values())
