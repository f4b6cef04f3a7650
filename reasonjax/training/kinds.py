"""The kinds of stages. This table is the only list of them."""

import importlib
import types
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """What a stage of a kind does.

    Attributes:
      module: that has `run(run, stage, initial_params, evaluation) -> StageResult` and
        `check(config, name)`, and `open_data(run, stage)` where stages of the kind read rows.
      trains: it updates parameters.
      saves: it leaves a checkpoint.
      samples: it draws completions of prompts and scores them with reward functions.
      collects: it leaves rows that a later stage may train on.
      evaluates: the model is evaluated when it is over.
    """

    module: str
    trains: bool = False
    saves: bool = False
    samples: bool = False
    collects: bool = False
    evaluates: bool = True

    @property
    def works(self) -> bool:
        """Whether a stage of the kind costs what a budget counts: tokens trained on or drawn."""
        return self.trains or self.samples

    def load(self) -> types.ModuleType:
        """Imports the module."""
        return importlib.import_module(self.module)


KINDS = {
    'supervised': Kind('reasonjax.training.supervised', trains=True, saves=True),
    'online': Kind('reasonjax.training.online', trains=True, saves=True, samples=True),
    'collect': Kind('reasonjax.training.collect', samples=True, collects=True, evaluates=False),
    'evaluate': Kind('reasonjax.training.evaluate'),
    'keep': Kind('reasonjax.training.keep', saves=True),
}


class StageResult(NamedTuple):
    """A finished stage.

    Attributes:
      params: as it leaves them.
      seconds: it took, those of killed attempts up to their last checkpoint included.
      last: its last step; 0 where it has none.
      best: {'step', 'value'} of the best evaluation within it, where it keeps that checkpoint.
      measured: what else its row of the final table says.
      state: what else `done.json` knows of its files.
    """

    params: Any
    seconds: float = 0.0
    last: int = 0
    best: dict[str, Any] | None = None
    measured: dict[str, Any] = {}
    state: dict[str, Any] = {}
