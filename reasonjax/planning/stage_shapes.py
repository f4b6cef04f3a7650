"""What the programs of a training stage are given: shapes with shardings, and how large they are."""

import functools
from typing import Any

import jax

from reasonjax import config as configs
from reasonjax.model import decoding
from reasonjax.parallel import mesh as meshes
from reasonjax.planning import shapes
from reasonjax.sampling import sampler
from reasonjax.sampling.sampler import Sampling
from reasonjax.training import batching, samplers, step
from reasonjax.training.batch import PROMPTS, fields_of_rows, shape_fields
from reasonjax.training.context import (
    Run,
    Stage,
    abstract_params,
    at_once,
    check_mesh,
    rows_per_example,
)
from reasonjax.training.kinds import KINDS
from reasonjax.training.rollout_step import wants_reference
from reasonjax.training.samplers import sampling_from_config
from reasonjax.weights.partition import partition


class StageShapes:
    """The state, the batches, the prompts and the caches of one stage.

    Args:
      run: see `programs.plan_run`.
      stage: of the run.

    Raises:
      UserError: what the stage would raise for its settings.
    """

    def __init__(self, run: Run, stage: Stage):
        self.run, self.stage, self.settings = run, stage, stage.config
        self.online = KINDS[self.settings.kind].samples
        c = self.settings
        if self.online:
            samplers.check(c, stage.name)
        self.updates = c.num_iterations * c.minibatches if self.online else 1
        self.together = 1 if self.online else rows_per_example(c)
        self.temperature = c.temperature if self.online else 1.0
        self.wants_reference = wants_reference(c)
        self.rollout_mesh = run.rollout_mesh
        check_mesh(run, stage)
        self.layout = (
            batching.layout_of(c, run.mesh, stage.name)
            if self.online
            else batching.BatchLayout(share_prompts=False)
        )
        self.params = abstract_params(run, stage.number)
        self.chosen = configs.resolve(c.filter, 'filter')(run.specs, self.params)
        trainable, self.frozen = partition(self.params, self.chosen)
        schedule = configs.resolve(c.learning_rate, 'learning_rate')(c.steps * self.updates)
        self.optimizer = configs.resolve(c.optimizer, 'optimizer')(schedule)
        window = c.spike_window if c.spike_zscore else 0
        homes = step.shardings(
            trainable,
            self.optimizer,
            shapes.shardings(trainable),
            meshes.replicated(run.mesh),
            spike_window=window,
        )
        state = jax.eval_shape(lambda t: step.fresh(t, self.optimizer, window), trainable)
        self.state = jax.tree.map(
            lambda x, home: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=home), state, homes
        )
        self.incoming = ()
        if self.wants_reference:
            # What the stage found stays in memory; what does not train is the same memory.
            incoming = abstract_params(run, stage.number - 1)
            self.shared = shapes.inherited(run.specs, incoming, self.params, self.chosen)
            self.incoming = shapes.apart(run.specs, incoming, self.shared)

    @property
    def rows(self) -> int:
        """Rows of a step's batch."""
        c = self.settings
        return c.num_prompts * c.num_generations if self.online else c.batch_size * self.together

    @property
    def sampled_rows(self) -> int:
        """Completions that are sampled at the same time."""
        return at_once(self.settings) * self.settings.num_generations

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        c = self.settings
        return (
            c.data.max_prompt_length + c.max_completion_length if self.online else c.data.max_length
        )

    @property
    def widest(self) -> int:
        """Tokens of the longest row that is trained on: of a sequence, or of its longer part where
        prompts are read apart."""
        c = self.settings
        return (
            max(c.data.max_prompt_length, c.max_completion_length)
            if self.layout.share_prompts
            else self.length
        )

    def tokens(self, rows: int) -> int:
        """Counts the tokens that are read to train on `rows` rows: shared prompts once."""
        c = self.settings
        if not self.layout.share_prompts:
            return rows * self.length
        return self._shared(rows) * c.data.max_prompt_length + rows * c.max_completion_length

    def _shared(self, rows: int) -> int:
        """Counts the prompts that are read beside `rows` rows."""
        return rows // self.settings.num_generations * self.layout.copies

    def _batch(self, rows: int) -> dict:
        c = self.settings
        if not self.online:
            names, sizes = fields_of_rows(c.data.form), {'B': rows, 'T': self.length}
            return shape_fields(names, sizes, self.run.mesh)
        number = rows // c.num_generations
        batch = batching.shapes(
            c,
            number,
            self.layout,
            self.run.mesh,
            old=self.updates > 1,
            reference=self.wants_reference,
        )
        # What is not placed goes where the rest is, on every device.
        everywhere = meshes.replicated(self.run.mesh)
        return {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or everywhere)
            for name, x in batch.items()
        }

    def _prompts(self, mesh: Any = None, number: int = 0) -> dict:
        c = self.settings
        sizes = {'P': number or at_once(c), 'Q': c.data.max_prompt_length}
        return shape_fields(PROMPTS, sizes, mesh or self.rollout_mesh, PROMPTS)

    def _prompt_cache(self, prompts: dict) -> list:
        cache = jax.eval_shape(
            lambda p, x: sampler.prefill(p, self.run.model, x, self._sampling()),
            self.params,
            prompts,
        )
        return jax.tree.map(self._placed_cache, cache)

    def _own_cache(self) -> list:
        model, sampling = self.run.model, self._sampling()
        rows = min(sampling.slots or self.sampled_rows, self.sampled_rows)
        one = jax.eval_shape(
            lambda: decoding.empty(model, rows, sampling.max_tokens, sampling.cache_dtype == 'int8')
        )
        return [jax.tree.map(self._placed_cache, one)] * model.layers

    def _placed_cache(self, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        home = meshes.placed(
            ('batch', 'kv_heads', *[None] * (x.ndim - 2)), x.shape, self.rollout_mesh
        )
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=home)

    def _key(self, mesh: Any = None) -> jax.ShapeDtypeStruct:
        key = jax.eval_shape(functools.partial(jax.random.key, 0))
        return jax.ShapeDtypeStruct(
            key.shape, key.dtype, sharding=meshes.replicated(mesh or self.run.mesh)
        )

    def _sampling(self) -> Sampling:
        return sampling_from_config(self.settings, self.run.tokenizer, self.stage.name)
