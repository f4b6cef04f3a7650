"""What a training run is between two steps, and the one step that every stage takes."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from reasonjax import reduce
from reasonjax.errors import UserError
from reasonjax.model import experts, groups
from reasonjax.model.config import ModelConfig
from reasonjax.model.logprobs import Scored
from reasonjax.model.score import READ, score
from reasonjax.training import spikes
from reasonjax.training.batch import Batch
from reasonjax.weights.partition import combine


@flax.struct.dataclass
class State:
    """Everything the step changes. The frozen part of the parameters is an argument of its own: it
    is never donated, so the previous stage's parameters (the reference of a KL term, say) may share
    its memory.

    Attributes:
      step: [] int32, updates done.
      trainable: the trainable part of the parameters, None elsewhere.
      optimizer: state of the optimiser, of the trainable part only.
      norms: gradient norms of late, where spikes are skipped; else None.
    """

    step: jax.Array
    trainable: Any
    optimizer: Any
    norms: spikes.Window | None = None


def create(
    trainable: Any,
    optimizer: optax.GradientTransformation,
    placed: Any,
    replicated: Any,
    *,
    spike_window: int = 0,
) -> State:
    """Creates the state before the first step, placed on the mesh.

    Args:
      trainable: the part of the parameters that trains; copied, because the step donates its state.
      optimizer: of the stage.
      placed: sharding of each trainable parameter.
      replicated: the sharding of everything else.
      spike_window: how many gradient norms to remember; 0 where spikes are not skipped.
    """
    # A jitted init without out_shardings would put the moments on one device.
    homes = shardings(trainable, optimizer, placed, replicated, spike_window=spike_window)
    return compile_fresh(optimizer, homes, spike_window)(trainable)


def compile_fresh(
    optimizer: optax.GradientTransformation, homes: State, spike_window: int
) -> Callable[[Any], State]:
    """Returns the jitted `fresh` of copies of the parameters, to be placed at `homes`."""
    return jax.jit(
        lambda t: fresh(jax.tree.map(jnp.copy, t), optimizer, spike_window), out_shardings=homes
    )


def fresh(trainable: Any, optimizer: optax.GradientTransformation, spike_window: int) -> State:
    """Builds the state before the first step, of arrays or under `eval_shape`; see `create`."""
    return State(
        jnp.zeros((), jnp.int32),
        trainable,
        optimizer.init(trainable),
        spikes.empty(spike_window) if spike_window else None,
    )


def shardings(
    trainable: Any,
    optimizer: optax.GradientTransformation,
    placed: Any,
    replicated: Any,
    *,
    spike_window: int = 0,
) -> State:
    """Returns the shardings of a state, moments with their parameters. The arguments are those of
    `create`; `trainable` may be shapes."""
    moments = jax.eval_shape(optimizer.init, trainable)
    homes = optax.tree_map_params(
        optimizer, lambda _, s: s, moments, placed, transform_non_params=lambda _: replicated
    )
    return State(
        replicated, placed, homes, spikes.Window(replicated, replicated) if spike_window else None
    )


def with_totals(batch: Batch, micro: int) -> Batch:
    """Adds what an objective needs to know of the whole optimiser step: its weight, its tokens, its
    rows, its number of micro-batches."""
    rows, _ = batch['weights'].shape
    return dict(batch) | {
        'step_weight': jnp.sum(batch['weights'], dtype=jnp.float32),
        'step_tokens': jnp.sum(groups.tokens_of_rows(batch)),
        'step_rows': jnp.asarray(rows, jnp.float32),
        'step_micro': jnp.asarray(micro, jnp.float32),
    }


def make_update(
    config: ModelConfig,
    objective: Callable,
    optimizer: optax.GradientTransformation,
    *,
    corruption: Callable | None = None,
    context: Any = None,
    accumulation: int = 1,
    together: int = 1,
    temperature: float = 1.0,
    spike_zscore: float = 0.0,
) -> Callable[[State, Any, Mapping[str, jax.Array], jax.Array], tuple[State, dict]]:
    """Builds the step: corruption, forward, objective, gradient of the trainable part, update.

    An objective returns its contribution to the loss of the whole step (see `with_totals`), so
    losses and gradients are sums over micro-batches and cannot depend on how the batch is split.

    Args:
      config: the model's shape.
      objective: `(score, batch, key) -> (loss, metrics)`.
      optimizer: of the trainable part.
      corruption: `(batch, key, step, context) -> (batch, metrics)`, on the whole batch; None leaves
        it.
      context: what the corruption may know of the run.
      accumulation: micro-batches per step; divides the rows.
      together: adjacent rows that an objective compares, so that they stay in one micro-batch.
      temperature: of the log-probs the objective sees.
      spike_zscore: skip an update whose gradient norm lies more than this many standard deviations
        above those of late (`spikes`); 0: no.

    Returns:
      `update(state, frozen, batch, key) -> (state, metrics)`, to be jitted with the state donated
      and its shardings pinned (without `out_shardings` the compiler may choose others and compile
      once more). A loss or gradient that is not finite leaves parameters and optimiser as they were
      and is counted in the metric `nonfinite`, a skipped spike in `spike`.
    """

    def loss_of(trainable: Any, frozen: Any, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        scored = []

        def scoring(batch: Mapping[str, jax.Array], **named: Any) -> Scored:
            result = score(
                combine(trainable, frozen), config, batch, **{'temperature': temperature} | named
            )
            scored.append((batch, result))
            return result

        loss, metrics = objective(scoring, batch, key)
        if config.experts and scored:
            penalties = []
            for rows, scores in scored:
                penalties.append(
                    experts.penalty(
                        config, scores.routing, groups.tokens_of_rows(rows), batch['step_tokens']
                    )
                )
            loss = loss + sum(extra for extra, _ in penalties)
            # An objective may score several batches.
            metrics = metrics | reduce.over(
                jax.tree.map(lambda *x: jnp.stack(x), *(routed for _, routed in penalties))
            )
        reduce.check(metrics)
        return loss, metrics

    value_and_grad = jax.value_and_grad(loss_of, has_aux=True)

    def gradients(
        trainable: Any, frozen: Any, batch: dict, key: jax.Array
    ) -> tuple[jax.Array, Any, dict]:
        totals = {name: x for name, x in batch.items() if jnp.ndim(x) == 0}
        rows = {name: x for name, x in batch.items() if jnp.ndim(x) > 0}
        if accumulation == 1:
            (loss, metrics), grads = value_and_grad(trainable, frozen, batch, key)
            return loss, grads, metrics

        def body(carry: tuple, micro: dict) -> tuple[tuple, dict]:
            loss, grads = carry
            (extra, metrics), more = value_and_grad(trainable, frozen, micro | totals, key)
            return (
                loss + extra,
                jax.tree.map(lambda total, x: total + x.astype(jnp.float32), grads, more),
            ), metrics

        start = (jnp.zeros(()), jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), trainable))
        number = groups.units(rows, together)
        micro = {name: _split(x, accumulation, len(x) // number) for name, x in rows.items()}
        (loss, grads), metrics = jax.lax.scan(body, start, micro)
        return (
            loss,
            jax.tree.map(lambda g, x: g.astype(x.dtype), grads, trainable),
            reduce.over(metrics),
        )

    def apply(grads: Any, moments: Any, trainable: Any, applied: jax.Array) -> tuple[Any, Any]:
        changes, new = optimizer.update(grads, moments, trainable)

        def keep(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(applied, a, b), new, old)

        return keep(optax.apply_updates(trainable, changes), trainable), keep(new, moments)

    def update(
        state: State, frozen: Any, batch: Mapping[str, jax.Array], key: jax.Array
    ) -> tuple[State, dict]:
        batch = dict(batch) | {'row': jnp.arange(len(batch['tokens']), dtype=jnp.int32)}
        corrupted = {}
        if corruption is not None:
            batch, corrupted = corruption(batch, jax.random.fold_in(key, 0), state.step, context)
        loss, grads, metrics = gradients(
            state.trainable, frozen, with_totals(batch, accumulation), jax.random.fold_in(key, 1)
        )
        norm = optax.global_norm(grads)
        applied = finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        always = {'loss': loss, 'grad_norm': norm, 'nonfinite': 1.0 - finite.astype(jnp.float32)}
        norms = state.norms
        if spike_zscore:
            applied = finite & ~spikes.is_spike(norms, norm, spike_zscore)
            norms = spikes.put(norms, norm, applied)
            always['spike'] = (finite & ~applied).astype(jnp.float32)

        trainable, moments = apply(grads, state.optimizer, state.trainable, applied)
        new_state = State(step=state.step + 1, trainable=trainable, optimizer=moments, norms=norms)
        return new_state, reduce.values(corrupted) | reduce.values(metrics) | always

    return update


def make_score(
    config: ModelConfig, *, micro: int = 1, temperature: float = 1.0
) -> Callable[[Any, Mapping[str, jax.Array]], jax.Array]:
    """Builds `score(params, batch) -> logprob [B, T]`, of as many rows at a time as a step trains
    on: a reference needs no more memory.

    Args:
      config: the model's shape.
      micro: parts that the rows are taken in; divides them.
      temperature: of the log-probs.
    """

    def logprob(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        if micro == 1:
            return score(params, config, batch, temperature=temperature).logprob
        number = groups.units(batch)
        read = {
            name: _split(batch[name], micro, len(batch[name]) // number)
            for name in READ
            if name in batch
        }
        parts = jax.lax.map(
            lambda rows: score(params, config, rows, temperature=temperature).logprob, read
        )
        return _joined(parts, len(batch['tokens']) // number)

    return logprob


def _split(x: jax.Array, micro: int, together: int) -> jax.Array:
    """Splits rows into micro-batches: [B, ...] -> [micro, B / micro, ...]. The split is strided, so
    that each micro-batch has rows of every shard of the batch axis."""
    number = x.shape[0] // together
    if number % micro:
        kind = 'rows' if together == 1 else f'groups of {together} rows'
        raise UserError(
            f'config: {number} {kind} per step do not split into accumulation={micro} '
            'micro-batches; use a divisor.'
        )
    parts = x.reshape(number // micro, micro, together, *x.shape[1:]).swapaxes(0, 1)
    return parts.reshape(micro, x.shape[0] // micro, *x.shape[1:])


def _joined(parts: jax.Array, together: int) -> jax.Array:
    """Undoes `_split`."""
    micro, rows, *rest = parts.shape
    return (
        parts.reshape(micro, rows // together, together, *rest)
        .swapaxes(0, 1)
        .reshape(micro * rows, *rest)
    )
