"""The programs of a training stage, with shapes in place of arrays, ready to be compiled for
devices that are elsewhere."""

import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from reasonjax import config as configs
from reasonjax.errors import UserError, listing, nearest
from reasonjax.model import config as model_config
from reasonjax.model import decoding, kernels, spec
from reasonjax.model.score import READ
from reasonjax.parallel import layout
from reasonjax.parallel import mesh as meshes
from reasonjax.planning import flops, shapes
from reasonjax.planning.roofline import Work
from reasonjax.sampling import sampler
from reasonjax.sampling.sampler import Sampling
from reasonjax.tracking.metrics import Writer
from reasonjax.training import batching, samplers, step
from reasonjax.training.batch import PROMPTS, fields_of_rows, shape_fields
from reasonjax.training.batch_source import BatchSource
from reasonjax.training.context import (
    Place,
    Run,
    abstract_params,
    at_once,
    check_lengths,
    check_mesh,
    places,
    rows_per_example,
    settings,
)
from reasonjax.training.kinds import KINDS
from reasonjax.training.rollout_step import (
    make_generate,
    rollout_step,
    trace_rollout_step,
    wants_reference,
)
from reasonjax.training.samplers import on_rollout_mesh, sampling_from_config
from reasonjax.training.updates import compile_update
from reasonjax.weights.partition import combine, partition

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
        """What one device does, phase by phase."""
        dtype, devices = run.model.compute_dtype, run.mesh.size
        found = [
            Work(flops.flops(p) / devices, flops.traffic(p, dtype, ways_of(mesh.shape)))
            for p, mesh in self.phases
        ]
        return found[:-1] + [Work(found[-1].flops, found[-1].memory + self.more)]


def ways_of(sizes: Mapping[str, int]) -> dict[str, int]:
    """Logical axis -> over how many devices it is split where products are computed; weights are
    gathered along 'embed' first."""
    ways = {
        axis: math.prod(sizes[m] for m in found)
        for axis, found in layout.RULES.items()
        if axis and axis not in ('embed', 'time')
    }
    # Tokens are split over rows and over time.
    return ways | {'batch': ways['batch'] * sizes['sequence']}


def plan_run(config: ml_collections.ConfigDict, devices: list) -> Run:
    """What a run of this config shares, on devices that need not be here; reads no file of weights
    or data.

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


def planned_stage(config: ml_collections.ConfigDict, name: str = '') -> Place:
    """The stage of that name, by default the last that reinforces, or else the last that trains.

    Raises:
      UserError: no such stage, or none that trains.
    """
    found = {
        p.name: p for p in places(config, pathlib.Path()) if settings(config, p).kind in PROGRAMS
    }
    if not found:
        raise UserError(
            f'config.stages: none of {listing(config.stages)} trains, so there is nothing to plan.'
        )
    if name and name not in found:
        raise UserError(
            f'--stage {name}: no such training stage.{nearest(name, found)} Stages: '
            f'{listing(found)}.'
        )
    online_ones = [p for p in found.values() if KINDS[settings(config, p).kind].samples]
    return found[name] if name else (online_ones or list(found.values()))[-1]


class Stage:
    """The programs of one stage.

    Args:
      run: see `plan_run`.
      place: of the stage.

    Raises:
      UserError: what the stage would raise for its settings.
    """

    def __init__(self, run: Run, place: Place):
        self.run, self.place, self.settings = run, place, settings(run.config, place)
        self.online = KINDS[self.settings.kind].samples
        c = self.settings
        if self.online:
            samplers.check(c, place.name)
        self.updates = c.num_iterations * c.minibatches if self.online else 1
        self.together = 1 if self.online else rows_per_example(c)
        self.temperature = c.temperature if self.online else 1.0
        self.wants_reference = wants_reference(c)
        self.rollout_mesh = run.rollout_mesh
        check_mesh(run, place)
        self.layout = (
            batching.layout_of(c, run.mesh, place.name)
            if self.online
            else batching.BatchLayout(share_prompts=False)
        )
        self.params = abstract_params(run, place.number)
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
        whole = jax.eval_shape(lambda t: step.fresh(t, self.optimizer, window), trainable)
        self.state = jax.tree.map(
            lambda x, home: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=home), whole, homes
        )
        self.incoming = ()
        if self.wants_reference:
            # What the stage found stays in memory; what does not train is the same memory.
            incoming = abstract_params(run, place.number - 1)
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
        """Tokens that are read to train on so many rows: shared prompts once."""
        c = self.settings
        if not self.layout.share_prompts:
            return rows * self.length
        return self._shared(rows) * c.data.max_prompt_length + rows * c.max_completion_length

    def _shared(self, rows: int) -> int:
        """Prompts beside so many rows."""
        return rows // self.settings.num_generations * self.layout.copies

    def programs(self, names: tuple[str, ...] = ()) -> Iterator[Program]:
        """The programs of these names, by default all there are."""
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
        """A program without a backward pass."""
        held = {'optimiser': self.state.optimizer, 'incoming': self.incoming}
        useful = flops.useful(counted, self.run.model, False)
        return Program(
            name, function, arguments, kinds, held, cache, ((counted, mesh),), 0.0, useful, tokens
        )

    def _iteration(self) -> Program:
        """Sampling, scoring and all updates as one program; what happens on the host in between,
        the rewards, is an argument."""
        c, prompts = self.settings, self._prompts(self.run.mesh, self.settings.num_prompts)
        shape, home = (c.num_prompts, c.num_generations), meshes.batch_sharding
        rewards = jax.ShapeDtypeStruct(shape, np.float32, sharding=home(shape, self.run.mesh))
        update = self._update()
        generate, how = (
            make_generate(self.run, c, self.place.name),
            trace_rollout_step(self.run, c, self.place.name),
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
                [(p, times * parts) for p, times in found]
                for found in (self._prefilled(), self._decoded())
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
            self.settings,
            source,
            self.optimizer,
            self.state,
            self.settings.steps * self.updates,
        )

    def _sampling(self) -> Sampling:
        return sampling_from_config(self.settings, self.run.tokenizer, self.place.name)

    def _products(self, rows: int, length: int) -> list[flops.Product]:
        weights = flops.matrices(
            self.run.model, self.run.specs, self.params, self.chosen, rows * length
        )
        return weights + flops.attention(self.run.model, rows, length)

    def _read(self, rows: int) -> list[flops.Product]:
        """The products of a forward pass over a batch of so many rows."""
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
        """Bytes of one update besides products: gradients are read, parameters and moments read and
        written; micro-batches are added up."""
        trainable, moments = (
            shapes.bytes_of(tree) for tree in (self.state.trainable, self.state.optimizer)
        )
        return 3 * trainable + 2 * moments + 3 * trainable * (self.settings.accumulation - 1)

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
        whole = meshes.replicated(self.run.mesh)
        return {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or whole)
            for name, x in batch.items()
        }

    def _prompts(self, mesh: Any = None, number: int = 0) -> dict:
        c = self.settings
        sizes = {'P': number or at_once(c), 'Q': c.data.max_prompt_length}
        return shape_fields(PROMPTS, sizes, mesh or self.rollout_mesh, PROMPTS)

    def _prompt_cache(self, prompts: dict) -> list:
        made = jax.eval_shape(
            lambda p, x: sampler.prefill(p, self.run.model, x, self._sampling()),
            self.params,
            prompts,
        )
        return jax.tree.map(self._placed_cache, made)

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
