"""The programs of a training stage, with shapes in place of arrays, ready to be compiled for
devices that are elsewhere."""

import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from reasonjax.errors import UserError, check_choice, listing
from reasonjax.model import config as model_config
from reasonjax.model import kernels, spec
from reasonjax.model.score import READ
from reasonjax.parallel import layout
from reasonjax.parallel import mesh as meshes
from reasonjax.planning import flops, shapes
from reasonjax.planning.roofline import Work
from reasonjax.planning.stage_shapes import StageShapes
from reasonjax.sampling import sampler
from reasonjax.tracking.metrics import Writer
from reasonjax.training import batching, step
from reasonjax.training.batch_source import BatchSource
from reasonjax.training.context import (
    Run,
    Stage,
    at_once,
    check_lengths,
    stages_of,
)
from reasonjax.training.kinds import KINDS
from reasonjax.training.rollout_step import (
    make_generate,
    rollout_step,
    trace_rollout_step,
)
from reasonjax.training.samplers import on_rollout_mesh
from reasonjax.training.updates import compile_update
from reasonjax.weights.partition import combine

# By kind of stage.
PROGRAMS = {
    name: ('train', 'score', *(('prefill', 'decode', 'iteration') if kind.samples else ()))
    for name, kind in KINDS.items()
    if kind.trains
}


class Program(NamedTuple):
    """One program of a stage.

    Attributes:
      name: see `PROGRAMS`.
      function: jitted.
      arguments: shapes with shardings.
      kinds: kind of memory -> the arguments that are of it.
      held: kind of memory -> shapes that stay on the devices while the program runs, though it does
        not read them.
      cache: shapes of keys and values that it makes.
      phases: products and how often each runs, phase by phase, on all devices together; and the
        mesh of each.
      more: bytes that a device reads and writes besides those of products.
      useful: operations that the result needs, see `flops.useful`.
      tokens: that it reads or makes.
    """

    name: str
    function: Any
    arguments: tuple
    kinds: Mapping[str, Any]
    held: Mapping[str, Any]
    cache: Any
    phases: tuple[tuple[list, Any], ...]
    more: float
    useful: float
    tokens: int

    def work(self, run: Run) -> list[Work]:
        """Returns the work of one device, phase by phase."""
        dtype, devices = run.model.compute_dtype, run.mesh.size
        works = [
            Work(flops.flops(p) / devices, flops.traffic(p, dtype, ways_of(mesh.shape)))
            for p, mesh in self.phases
        ]
        return works[:-1] + [Work(works[-1].flops, works[-1].memory + self.more)]


def ways_of(sizes: Mapping[str, int]) -> dict[str, int]:
    """Returns logical axis -> number of devices that split it where products are computed. Weights
    are gathered along 'embed' first."""
    ways = {
        axis: math.prod(sizes[m] for m in axes)
        for axis, axes in layout.RULES.items()
        if axis and axis not in ('embed', 'time')
    }
    # Tokens are split over rows and over time.
    return ways | {'batch': ways['batch'] * sizes['sequence']}


def plan_run(config: ml_collections.ConfigDict, devices: list) -> Run:
    """Builds the run of a config on devices that need not be here; reads no weights or data.

    Raises:
      UserError: a vocabulary whose size nothing tells, or a mesh that does not fit the devices.
    """
    tokenizer = shapes.Blank(shapes.vocabulary(config))
    model = model_config.from_config(
        config.model, vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id
    )
    check_lengths(config, model)
    workdir, mesh = pathlib.Path(), meshes.make_mesh(config.mesh, devices)
    kernels.check(model, mesh.devices.flat[0], mesh.shape)
    return Run(
        config, workdir, mesh, tokenizer, model, spec.specs(model), Writer(workdir, active=False)
    )


def planned_stage(config: ml_collections.ConfigDict, name: str = '') -> Stage:
    """Returns the training stage of this name, by default the last online one or else the last.

    Raises:
      UserError: no such stage, or none that trains.
    """
    stages = {p.name: p for p in stages_of(config, pathlib.Path()) if p.config.kind in PROGRAMS}
    if not stages:
        raise UserError(
            f'config.stages: none of {listing(config.stages)} trains, so there is nothing to plan.'
        )
    if name:
        check_choice(f'--stage {name}: no such training stage', name, stages, 'Stages')
    online_ones = [p for p in stages.values() if KINDS[p.config.kind].samples]
    return stages[name] if name else (online_ones or list(stages.values()))[-1]


class StagePrograms(StageShapes):
    """The programs of one stage; see `StageShapes`."""

    def programs(self, names: tuple[str, ...] = ()) -> Iterator[Program]:
        """Yields the programs of these names, by default all of the stage."""
        for name in names or PROGRAMS[self.settings.kind]:
            yield getattr(self, f'_{name}')()

    def _train(self) -> Program:
        rows = self.rows // (self.settings.minibatches if self.online else 1)
        batch = self._batch(rows)
        kinds = {
            'parameters': (self.state.trainable, self.frozen),
            'optimiser': self.state.optimizer,
            'batch': batch,
        }
        counted = self._trained(rows)
        arguments = (self.state, self.frozen, batch, self._key())
        useful, more = flops.useful(counted, self.run.model, True), self._of_optimiser()
        phases, held = ((counted, self.run.mesh),), {'incoming': self.incoming}
        return Program(
            'train',
            self._update(),
            arguments,
            kinds,
            held,
            (),
            phases,
            more,
            useful,
            self.tokens(rows),
        )

    def _score(self) -> Program:
        batch = {name: x for name, x in self._batch(self.rows).items() if name in READ}
        function = jax.jit(meshes.on(self.run.mesh, self._logprob()))
        counted = flops.forward(self._read(self.rows))
        kinds = {'parameters': self.params, 'batch': batch}
        return self._forward(
            'score',
            function,
            (self.params, batch),
            kinds,
            (),
            counted,
            self.run.mesh,
            self.tokens(self.rows),
        )

    def _logprob(self) -> Callable:
        micro = self.settings.accumulation * (self.settings.minibatches if self.online else 1)
        return step.make_score(self.run.model, micro=micro, temperature=self.temperature)

    def _prefill(self) -> Program:
        prompts, counted, sampling, model = (
            self._prompts(),
            self._prefilled(),
            self._sampling(),
            self.run.model,
        )
        function = jax.jit(
            on_rollout_mesh(
                self.run, lambda params, prompts: sampler.prefill(params, model, prompts, sampling)
            )
        )
        kinds = {'parameters': self.params, 'batch': prompts}
        tokens, cache = math.prod(prompts['tokens'].shape), self._prompt_cache(prompts)
        return self._forward(
            'prefill',
            function,
            (self.params, prompts),
            kinds,
            cache,
            counted,
            self.rollout_mesh,
            tokens,
        )

    def _decode(self) -> Program:
        prompts, sampling, counted = self._prompts(), self._sampling(), self._decoded()
        model = self.run.model
        function = jax.jit(
            on_rollout_mesh(
                self.run,
                lambda params, x, cache, key: sampler.decode(
                    params, model, x, cache, key, sampling
                ),
            )
        )
        cache = self._prompt_cache(prompts)
        kinds = {'parameters': self.params, 'batch': prompts, 'cache': cache}
        arguments = (self.params, prompts, cache, self._key(self.rollout_mesh))
        tokens = self.sampled_rows * sampling.max_tokens
        return self._forward(
            'decode',
            function,
            arguments,
            kinds,
            self._own_cache(),
            counted,
            self.rollout_mesh,
            tokens,
        )

    def _forward(
        self,
        name: str,
        function: Any,
        arguments: tuple,
        kinds: dict,
        cache: Any,
        counted: list,
        mesh: Any,
        tokens: int,
    ) -> Program:
        """Builds a program without a backward pass."""
        held = {'optimiser': self.state.optimizer, 'incoming': self.incoming}
        useful = flops.useful(counted, self.run.model, False)
        return Program(
            name, function, arguments, kinds, held, cache, ((counted, mesh),), 0.0, useful, tokens
        )

    def _iteration(self) -> Program:
        """Builds sampling, scoring and all updates as one program. The rewards, which the host
        computes in between, are an argument."""
        c, prompts = self.settings, self._prompts(self.run.mesh, self.settings.num_prompts)
        shape, home = (c.num_prompts, c.num_generations), meshes.batch_sharding
        rewards = jax.ShapeDtypeStruct(shape, np.float32, sharding=home(shape, self.run.mesh))
        update = self._update()
        generate, how = (
            make_generate(self.run, c, self.stage.name),
            trace_rollout_step(self.run, c, self.stage.name),
        )

        def iteration(
            now: step.State,
            frozen: Any,
            incoming: Any,
            prompts: dict,
            rewards_PxG: jax.Array,
            key: jax.Array,
        ) -> tuple:
            params = combine(now.trainable, frozen)
            rollout = generate(params, prompts, key)
            reference = (
                shapes.joined(self.run.specs, incoming, params, self.shared)
                if self.wants_reference
                else None
            )
            batch, *_ = rollout_step(how, params, reference, prompts, rollout, rewards_PxG)
            measured = {}
            for i, part in enumerate(batching.minibatches(batch, c)):
                now, measured = update(now, frozen, part, jax.random.fold_in(key, i))
            return now, measured

        function = jax.jit(
            meshes.on(self.run.mesh, iteration),
            donate_argnums=0,
            out_shardings=(shapes.shardings(self.state), None),
        )
        kinds = {
            'parameters': (self.state.trainable, self.frozen),
            'optimiser': self.state.optimizer,
            'batch': (prompts, rewards),
        }
        kinds['incoming'] = self.incoming
        rows = self.rows // c.minibatches
        scored = [flops.forward(self._read(self.rows))] * (
            self.wants_reference + (self.updates > 1 and how.recompute_old)
        )
        trained = [(product, times * self.updates) for product, times in self._trained(rows)]
        parts = c.num_prompts // at_once(c)
        forwards = [
            *(
                [(p, times * parts) for p, times in phase]
                for phase in (self._prefilled(), self._decoded())
            ),
            *scored,
        ]
        meshes_of = [self.rollout_mesh, self.rollout_mesh] + [self.run.mesh] * len(scored)
        phases = (*zip(forwards, meshes_of, strict=True), (trained, self.run.mesh))
        useful = sum(flops.useful(counted, self.run.model, False) for counted in forwards)
        useful += flops.useful(self._trained(rows), self.run.model, True) * self.updates
        arguments = (self.state, self.frozen, self.incoming, prompts, rewards, self._key())
        cache = (self._prompt_cache(self._prompts()), self._own_cache())
        tokens = self.rows * c.max_completion_length
        more = self._of_optimiser() * self.updates
        return Program(
            'iteration', function, arguments, kinds, {}, cache, phases, more, useful, tokens
        )

    def _update(self) -> Any:
        source = BatchSource(None, None, self.updates, self.temperature, together=self.together)
        return compile_update(
            self.run,
            self.stage,
            source,
            self.optimizer,
            self.state,
            self.settings.steps * self.updates,
        )

    def _products(self, rows: int, length: int) -> list[flops.Product]:
        weights = flops.matrices(
            self.run.model, self.run.specs, self.params, self.chosen, rows * length
        )
        return weights + flops.attention(self.run.model, rows, length)

    def _read(self, rows: int) -> list[flops.Product]:
        """Lists the products of a forward pass over a batch of `rows` rows."""
        if not self.layout.share_prompts:
            return self._products(rows, self.length)
        c, model = self.settings, self.run.model
        predicting = rows * c.max_completion_length
        weights = flops.matrices(
            model, self.run.specs, self.params, self.chosen, self.tokens(rows), predicting
        )
        return weights + flops.grouped_attention(
            model, self._shared(rows), c.data.max_prompt_length, rows, c.max_completion_length
        )

    def _trained(self, rows: int) -> list:
        return flops.training(self.run.model, self._read(rows))

    def _prefilled(self) -> list:
        c = self.settings
        # Nothing is drawn from the prompt: its hidden states go no further than the last layer's
        # keys.
        return flops.forward(
            p for p in self._products(at_once(c), c.data.max_prompt_length) if p.name != 'head'
        )

    def _decoded(self) -> list:
        c, model = self.settings, self.run.model
        weights = flops.matrices(model, self.run.specs, self.params, self.chosen, self.sampled_rows)
        cached = flops.cached_attention(
            model, at_once(c), c.data.max_prompt_length, c.num_generations, c.max_completion_length
        )
        return [(product, float(c.max_completion_length)) for product in weights + cached]

    def _of_optimiser(self) -> float:
        """Counts the bytes of one update besides products. Gradients are read, parameters and
        moments read and written, micro-batches added up."""
        trainable, moments = (
            shapes.bytes_of(tree) for tree in (self.state.trainable, self.state.optimizer)
        )
        return 3 * trainable + 2 * moments + 3 * trainable * (self.settings.accumulation - 1)
