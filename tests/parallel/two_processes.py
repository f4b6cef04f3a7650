"""What `test_processes` runs: as one process with eight devices, and as two with four each. Writes
.npz and .json files, one per process.

    python -c 'import two_processes; two_processes.start()' OUT OTHER                 one process
    python -c 'import two_processes; two_processes.start()' OUT OTHER PORT INDEX      one of two

Not as a script: workers for rewards would import all that this one does.
OUT is where the runs are written; OTHER is that of the other launch, whose checkpoints are read
when they are there.
"""

import json
import os
import pathlib
import sys
import time

import devices
import jax
import numpy as np
import pytest
from small_runs import ROOT, share_updates, small

from reasonjax import train
from reasonjax.errors import UserError
from reasonjax.parallel import processes
from reasonjax.reporting import report
from reasonjax.tracking import metrics
from reasonjax.training import rollouts
from reasonjax.training.run import run, trained
from reasonjax.weights import finite
from reasonjax.weights.partition import names

# Weights split over both processes; low-rank pairs, which are made outside of any compiled program.
LORA = dict(
    pretrain__batch_size=8,
    pretrain__learning_rate__peak=0.03,
    lora__batch_size=8,
    lora__checkpoint_every=1,
    lora__learning_rate__peak=0.03,
    mesh__data=1,
    mesh__fsdp=8,
    evaluation__enabled=False,
)
# Rows split over both.
GRPO = dict(
    stages="('grpo',)",
    grpo__num_prompts=8,
    grpo__steps=3,
    grpo__learning_rate__peak=0.03,
    grpo__checkpoint_every=1,
    grpo__reward_workers=1,
    grpo__rewards__accuracy__name='counted_rewards.counted',
    evaluation__batch_size=8,
    evaluation__greedy=False,
    mesh__data=2,
    mesh__fsdp=2,
    mesh__tensor=2,
)
FAILING = GRPO | dict(
    grpo__rewards__accuracy__name='counted_rewards.fails',
    grpo__reward_workers=0,
    grpo__steps=1,
    evaluation__enabled=False,
)


def watch(seen: dict) -> None:
    """Records what every process would write down, and what it samples and scores, whether or not
    it is the one that writes."""
    write, draw = metrics.Writer.write, rollouts.Rollouts.draw

    def writing(self, stage, step, values, **options):
        seen.update(
            {
                f'metrics/{stage}/{step}/{name}': value
                for name, value in values.items()
                if isinstance(value, int | float)
            }
        )
        write(self, stage, step, values, **options)

    def drawing(self, step, *arguments):
        drawn = draw(self, step, *arguments)
        seen.update(
            {
                f'rollout/{step}/{name}': getattr(drawn.rollout, name)
                for name in ('tokens', 'logprob', 'length')
            }
        )
        seen.update(
            {
                f'rewards/{step}/values': drawn.rewards.values,
                f'rewards/{step}/total': drawn.rewards.total,
            }
        )
        return drawn

    metrics.Writer.write, rollouts.Rollouts.draw = writing, drawing


def parameters(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    params = processes.fetch(trained(workdir)[1])
    return {f'{workdir.name}/{name}': x for name, x in zip(names(params), jax.tree.leaves(params))}


def with_a_nan(params):
    """The parameters with one element that is no number, on the last device."""
    return params | {
        'embed': jax.jit(
            lambda x: x.at[-1, -1].set(np.nan), out_shardings=params['embed'].sharding
        )(params['embed'])
    }


def refused(function, *arguments) -> str:
    try:
        function(*arguments)
    except UserError as error:
        return str(error)
    raise AssertionError('not refused')


def main(out: pathlib.Path, other: pathlib.Path, index: int) -> int:
    assert len(jax.devices()) == 8
    seen, said = {}, {}
    watch(seen)
    share_updates(pytest.MonkeyPatch())
    report.write = lambda workdir: None  # drawing takes longer than these runs
    os.environ['REWARD_CALLS'] = str(out / 'calls')
    run(small(ROOT / 'configs/lora.py', **LORA), out / 'lora')
    summary = run(small(ROOT / 'configs/grpo.py', **GRPO), out / 'grpo')
    seen |= {
        f'evaluation/{stage["name"]}': stage['sampled_accuracy'] + stage['mean_length']
        for stage in summary['stages']
    }
    own = parameters(out / 'lora') | parameters(out / 'grpo')
    seen |= {f'params/{name}': x for name, x in own.items()}
    said['finite'] = refused(finite.check, with_a_nan(trained(out / 'lora')[1]), 'here')
    if jax.process_count() > 1:
        processes.SHARED_WITHIN = 0.3
        said['folder'] = refused(processes.check_shared, out / f'own{index}')
        said['config'] = refused(
            run, small(ROOT / 'configs/lora.py', **LORA, seed=index), out / 'differing'
        )
    processes.on_main(lambda: (out / 'written').touch())
    while not (other / 'written').is_file():
        time.sleep(0.2)
    read = parameters(other / 'lora') | parameters(other / 'grpo')
    seen |= {f'theirs/{name}': x for name, x in read.items()}
    np.savez(out / f'{index}.npz', **seen)
    (out / f'{index}.json').write_text(json.dumps(said))
    # At last a reward that fails in process 1 alone, through the program: all end with its error.
    os.environ['FAILS'] = str(index)
    overrides = [f'--config.{key.replace("__", ".")}={value}' for key, value in FAILING.items()]
    return train.main(
        [
            '--config',
            str(ROOT / 'configs/grpo.py'),
            '--workdir',
            str(out / 'failing'),
            '--smoke',
            '--skip_selfcheck',
            *overrides,
        ]
    )


def start() -> None:
    devices.collect_less()
    destination, elsewhere, *place = sys.argv[1:]
    if place:
        port, index = place
        coordinator = f'127.0.0.1:{port}'
        processes.start(
            {},
            {
                'REASONJAX_COORDINATOR': coordinator,
                'REASONJAX_NUM_PROCESSES': '2',
                'REASONJAX_PROCESS_ID': index,
            },
        )
    sys.exit(main(pathlib.Path(destination), pathlib.Path(elsewhere), jax.process_index()))
