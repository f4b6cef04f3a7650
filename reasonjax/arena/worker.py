"""A process that runs cells of a comparison, one after the other, on the cores it is given.

    python -m reasonjax.arena.worker --compiled FOLDER --core 0

Reads a line of JSON for each cell (`cell.Spec`) and answers with a line once its result is written.
Everything else that a run prints goes to standard error. Programs that were compiled once are kept
in a folder, for the other workers and for the next seeds.
"""

import argparse
import json
import os
import queue
import sys
import threading
from collections.abc import Iterator
from typing import TextIO


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        'python -m reasonjax.arena.worker', description=__doc__.splitlines()[0]
    )
    parser.add_argument('--compiled', required=True, help='folder for compiled programs')
    parser.add_argument('--core', type=int, help='the processor to stay on')
    options = parser.parse_args(arguments)
    if options.core is not None and hasattr(os, 'sched_setaffinity'):
        # Before jax starts: it makes as many threads as there are cores to use.
        os.sched_setaffinity(0, {options.core})
    # XLA calls two tuning preferences of its own "machine features" that the host lacks, for each
    # program it reads back.
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    replies = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)

    from reasonjax import programs

    return programs.run_program(lambda: _serve(options.compiled, replies))


def _serve(compiled: str, replies: TextIO) -> None:
    import jax

    from reasonjax import programs
    from reasonjax.arena import cell

    jax.config.update('jax_compilation_cache_dir', compiled)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
    programs.start(skip_selfcheck=False)
    for line in _lines():
        spec = cell.Spec(**json.loads(line))
        if spec.warm:
            status = cell.run(spec).status
        else:
            cell.warm_up(spec)
            status = 'done'
        jax.clear_caches()
        print(json.dumps({'status': status}), file=replies, flush=True)


def _lines() -> Iterator[str]:
    """Yields lines of standard input; where it ends, the process exits, whatever it is doing.

    Whoever started the process is gone then, and so is the lock that kept a second comparison away.
    """
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        yield lines.get()


if __name__ == '__main__':
    sys.exit(main())
