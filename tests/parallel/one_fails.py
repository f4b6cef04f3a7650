"""What `test_processes` runs as two processes, of which process 1 fails alone.

python one_fails.py PORT INDEX
"""

import sys

import jax

from reasonjax.errors import UserError
from reasonjax.parallel import processes
from reasonjax.programs import run_program


def fail(port: str, index: str) -> None:
    processes.TIMEOUTS['shutdown_timeout_seconds'] = 2
    processes.start(dict(coordinator=f'127.0.0.1:{port}', num_processes='2', process_id=index))
    jax.devices()
    if index == '1':
        raise UserError('a file that only process 1 lacks')
    processes.gather('what never arrives')
    print('went on alone', file=sys.stderr)


if __name__ == '__main__':
    sys.exit(run_program(lambda: fail(*sys.argv[1:])))
