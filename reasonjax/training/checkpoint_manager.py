"""Orbax's side of a folder of checkpoints: its manager, which steps it keeps, what it may print."""

import logging
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import orbax.checkpoint as ocp

ARRAYS = ('params', 'train', 'memory')


class _Quiet(logging.Filter):
    """Drops what Orbax reports of its own progress (dozens of lines for each save), and tracebacks
    of what it also raises."""

    def filter(self, record: logging.LogRecord) -> bool:
        # asyncio reports the failed writes that Orbax did not wait for, having met another.
        from_orbax = (
            'orbax' in record.getMessage()
            if record.name == 'asyncio'
            else f'{os.sep}orbax{os.sep}' in record.pathname
        )
        return not from_orbax or (record.levelno >= logging.WARNING and not record.exc_info)


_QUIET = _Quiet()


class _Policy:
    """Which checkpoints stay, as Orbax asks for it."""

    def __init__(self, kept: Callable[[list[int]], set[int]]):
        self._kept = kept

    def should_preserve(self, checkpoints: list, *, context: Any) -> list[bool]:
        del context
        kept = self._kept([one.step for one in checkpoints])
        return [one.step in kept for one in checkpoints]


def open_manager(
    folder: pathlib.Path,
    kept: Callable[[list[int]], set[int]] | None = None,
    seal: Callable[[], None] | None = None,
    *,
    cleanup: bool,
) -> ocp.CheckpointManager:
    """Opens Orbax's manager of a folder.

    Args:
        folder: of a stage's checkpoints.
        kept: which of these steps stay; None keeps all.
        seal: called when all files of a save are there, before their folder is renamed.
        cleanup: removes what a killed run left half-written.
    """
    # absl shows information by default once its flags are parsed. The same filter object is added
    # only once.
    for name in ('absl', 'asyncio'):
        logging.getLogger(name).addFilter(_QUIET)
    policy = ocp.checkpoint_managers.LatestN(None) if kept is None else _Policy(kept)
    return ocp.CheckpointManager(
        folder,
        options=ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            cleanup_tmp_directories=cleanup,
            create=False,
            async_options=ocp.AsyncOptions(post_finalization_callback=seal),
        ),
        item_handlers={name: ocp.StandardCheckpointHandler() for name in ARRAYS}
        | {'meta': ocp.JsonCheckpointHandler()},
    )


def read_arrays(
    manager: ocp.CheckpointManager, step: int, wanted: Mapping[str, Any]
) -> dict[str, Any]:
    """Reads parts of a checkpoint into abstract trees, by name."""
    if not wanted:
        return {}
    parts = ocp.args.Composite(
        **{name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
    )
    restored = manager.restore(step, args=parts)
    return {name: restored[name] for name in wanted}
