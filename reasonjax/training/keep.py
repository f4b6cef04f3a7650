"""A stage that only writes a checkpoint of the model as it is."""

from collections.abc import Callable
from typing import Any

import ml_collections

from reasonjax.model.config import to_dict
from reasonjax.training import claim
from reasonjax.training.checkpoint import Checkpoints
from reasonjax.training.context import Run, Stage
from reasonjax.training.kinds import StageResult
from reasonjax.weights import finite


def run(
    run: Run, stage: Stage, initial_params: Callable[[], Any], evaluation: Callable | None
) -> StageResult:
    """Saves the parameters as step 0.

    Raises:
      UserError: they are not finite, or cannot be written.
    """
    del evaluation
    params = initial_params()
    run.writer.resume(stage.name, None)
    finite.check(params, f'stage {stage.name}', 'They are not saved.', run.model.compute_dtype)
    with Checkpoints(stage.folder / 'checkpoints') as checkpoints:
        meta = {
            'stage': stage.name,
            'model': to_dict(run.model),
            'config': claim.fingerprint(run.config),
        }
        checkpoints.save(0, params=params, meta=meta)
    return StageResult(params)


def check(config: ml_collections.ConfigDict, name: str) -> None:
    """Does nothing: a stage that keeps the parameters has no settings that can be wrong."""
