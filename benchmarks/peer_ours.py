r"""reasonjax on the workload, one part a process: the stages of configs/benchmark.py as
`reasonjax.train` runs them.

    python -m benchmarks.peer_ours --what grpo --data runs/peers/data
    python -m benchmarks.peer_ours --what long_tail --data runs/peers/data \
        --config.grpo.prompts_at_once=2

Prints one line of JSON. What is different from a plain run: end-of-sequence has an id that is never
drawn (`grpo`, `sample`), or is put where the workload says (`long_tail`); and the process leaves
when the last step is done, before the checkpoint is written.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks import workload
from benchmarks.peer_data import PROMPTS, ROWS, VOCABULARY

ROOT = pathlib.Path(__file__).parent.parent
WHAT = ('sft', 'sample', 'grpo', 'long_tail', 'first_step')


@dataclasses.dataclass(frozen=True)
class EndsAt:
    """A logit processor: completion `i` of a batch draws end-of-sequence as its token `lengths[i]`,
    and not before."""

    lengths: tuple[int, ...]
    eos: int

    def __call__(self, logits_RxV: Any, state: Any) -> Any:
        import jax.numpy as jnp

        # A row without a completion reads some entry; nothing is made of what it draws.
        last_R = jnp.asarray(self.lengths)[jnp.minimum(state.job, len(self.lengths) - 1)] - 1
        return logits_RxV.at[:, self.eos].set(jnp.where(state.step == last_R, 1e9, -1e9))


def config_of(what: str, data: pathlib.Path, overrides: Sequence[tuple[str, str]] = ()) -> Any:
    """The config of a part: configs/benchmark.py with the prepared texts, and only the stage that
    is measured."""
    from reasonjax import config as configs

    stage = 'sft' if what == 'sft' else 'grpo'
    given = [
        ('stages', f"('{stage}',)"),
        ('tokenizer.path', str(data / VOCABULARY)),
        ('sft.data.source.name', 'jsonl'),
        ('sft.data.source.path', str(data / ROWS)),
        ('sft.data.overlong', 'error'),
        ('grpo.data.source.name', 'jsonl'),
        ('grpo.data.source.path', str(data / PROMPTS)),
        ('grpo.data.overlong', 'error'),
    ]
    if what == 'first_step':
        given.append(('grpo.steps', '1'))
    variant = ':long_tail' if what == 'long_tail' else ''
    return configs.load(f'{ROOT / "configs" / "benchmark.py"}{variant}', [*given, *overrides])


def measure(what: str, config: Any, workdir: pathlib.Path) -> dict:
    """Runs a part in this process.

    Args:
      what: one of `WHAT`.
      config: of that part, see `config_of`.
      workdir: for what a run writes.

    Returns:
      What `peers` keeps of it, beside `parameters`, `peak_gb` and, where there are steps,
      `first_step_s` and the seconds of each.
    """
    from benchmarks import stage_runs
    from reasonjax.model import spec

    run, stage = stage_runs.opened(config, workdir)
    if what in ('grpo', 'sample', 'first_step'):
        run = stage_runs.without_end(run)
    found = {'parameters': spec.count(run.specs)}
    if what == 'sample':
        found |= _sample(run, stage)
    else:
        with _ending(run) if what == 'long_tail' else contextlib.nullcontext():
            notes = stage_runs.train(run, stage)
        found |= _of_steps(what, notes)
    return found | {'peak_gb': workload.peak_gb()}


def _of_steps(what: str, notes: Sequence[tuple[float, dict]]) -> dict:
    from benchmarks import stage_runs

    seconds = [record['step_time'] for _, record in notes]
    found = {'first_step_s': notes[0][0], 'seconds': seconds}
    if what == 'sft':
        tokens = workload.SFT['batch'] * workload.SFT['length']
        if any(record['data/fill'] != 1 for _, record in notes):
            raise ValueError('rows of SFT are not full: other systems would do more tokens')
        return found | {'sft_tok_s': tokens / workload.median(seconds, workload.SFT['warm'])}
    found['phases'] = stage_runs.phases(notes)
    found['tokens'] = int(notes[-1][1]['num_tokens'] / len(notes))
    if what == 'long_tail' and found['tokens'] != sum(workload.lengths()):
        raise ValueError(
            f'{found["tokens"]} tokens a step, not the {sum(workload.lengths())} of the workload'
        )
    if what == 'first_step':
        return found
    return found | {
        {'grpo': 'grpo_step_s', 'long_tail': 'grpo_long_tail_step_s'}[what]: workload.median(
            seconds, workload.GRPO['warm']
        )
    }


def _sample(run: Any, stage: Any) -> dict:
    import jax

    from reasonjax.tracking.metrics import Timers
    from reasonjax.training.context import fresh_params
    from reasonjax.training.rollouts import open_rollouts

    params, seconds, settings = fresh_params(run), [], stage.config
    with open_rollouts(run, stage) as rollouts:
        for call in range(1 + workload.SAMPLE['calls']):
            start = time.perf_counter()
            parts = jax.device_get(
                rollouts.start_sampling(call + 1, params, Timers(), (call + 1, 0)).parts
            )
            seconds.append(time.perf_counter() - start)
    tokens = sum(int(part.length.sum()) for part in parts)
    if tokens != settings.num_prompts * settings.num_generations * settings.max_completion_length:
        raise ValueError(f'{tokens} tokens were sampled: not all completions have the full length')
    return {
        'seconds': seconds,
        'tokens': tokens,
        'sample_tok_s': tokens / workload.median(seconds, 1),
    }


@contextlib.contextmanager
def _ending(run: Any) -> Iterator[None]:
    """Has the stages' sampler draw end-of-sequence where the workload says."""
    from reasonjax.training import samplers

    plain = samplers.generate
    lengths = tuple(workload.lengths(run.config.grpo.num_prompts * run.config.grpo.num_generations))
    samplers.generate = functools.partial(
        plain, processors=(EndsAt(lengths, run.tokenizer.eos_ids[0]),)
    )
    try:
        yield
    finally:
        samplers.generate = plain


def main(arguments: Sequence[str] | None = None) -> int:
    from reasonjax import config as configs
    from reasonjax import programs

    parser = argparse.ArgumentParser(
        'python -m benchmarks.peer_ours', description=__doc__.splitlines()[0]
    )
    parser.add_argument('--what', required=True, choices=WHAT)
    parser.add_argument(
        '--data', required=True, type=pathlib.Path, help='folder that benchmarks.peers has prepared'
    )
    rest, overrides = configs.split_arguments(sys.argv[1:] if arguments is None else arguments)
    given = parser.parse_args(rest)

    def program() -> None:
        config = config_of(given.what, given.data, overrides)
        # A step of training is faster on one device, whose products use all cores.
        if given.what == 'sample':
            programs.split_cpu(workload.cores())
        programs.start(skip_selfcheck=False, config=config)
        with tempfile.TemporaryDirectory(prefix='reasonjax-benchmark-') as folder:
            print(
                json.dumps({'what': given.what} | measure(given.what, config, pathlib.Path(folder)))
            )

    return programs.run_program(program)


if __name__ == '__main__':
    sys.exit(main())
