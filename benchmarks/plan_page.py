"""docs/PLAN.md and its figure, from plans that `plan_table` has made."""

import datetime
import pathlib
from collections.abc import Mapping, Sequence

FIGURE = 'plan_collectives.svg'
PAGE = """# Plans

What GRPO on these models would need and could reach on TPUs that were not rented: every program was
compiled ahead of time, none was run. Planned on {date} at commit {commit} and written by

```bash
python -m benchmarks.plan_table --folder runs/plans --write docs
```

Any row can be planned again, or with other settings:

```bash
python -m reasonjax.plan --config configs/plan.py:qwen3_8b --topology v5e:16x16 --config.rollout.mesh.data=64 --config.rollout.mesh.tensor=4
```

A step has 2048 completions of at most 3072 tokens, 8 per prompt of at most 1024 tokens; parameters and moments are float32, arithmetic is
bfloat16. Weights and moments are sharded over all devices (`fsdp`). For sampling they are resharded over `tensor`, so that they take at
most a quarter of the memory. On fewer than 64 devices the prompts are sampled in parts (`grpo.prompts_at_once`).

{table}{missing}

**How to read it.** *Peak* is the largest of the four programs, including what stays in memory between them. *Tokens/s/chip* and *MFU* are
upper bounds: the time is the maximum of arithmetic at the published bfloat16 peak, memory traffic at the published bandwidth, and
communication at the published speed of all links together, each as if the others cost nothing. Real runs are slower. MFU counts only what
the result needs: nothing that is recomputed, and half of a causal attention. Training counts all tokens of a row, decoding only the
generated ones, all at full length.

* **Memory** is the compiler's own figure for one device; parameters, optimiser and batch are added up from shapes.
* **Arithmetic** is counted from the model's shape (`reasonjax/planning/flops.py`), because the compiler counts the body of a loop once.
* **Memory traffic** is counted too: each product reads both operands and writes its result; everything else is taken as free.
* **Communication** is read from the compiled program, each loop as often as it runs, with the ring formulas in `reasonjax/planning/hlo.py`.
* **Peaks** of the chips, with their sources, are the table in `reasonjax/planning/topology.py`.

Planning needs the TPU compiler (`pip install libtpu`) and no TPU. On a machine without one, `JAX_PLATFORMS=cpu` keeps other programs from
looking for it. {cost}

## Communication on larger meshes

![bytes sent per token against devices]({figure})

{collectives}

Bytes that one device of a v5e slice sends in a training step, per token that it trains on, for Qwen3 1.7B cut to 4 layers with {rows}
rows of 4096 tokens per device. Sharding rows only (`data`) sends the gradients once a step; sharding weights as well (`fsdp`) sends weights
for each pass over them; sharding products (`tensor`) sends activations.
"""


def page(
    plans: Mapping[str, dict],
    models: Sequence[str],
    topologies: Sequence[str],
    today: datetime.date,
) -> str:
    """The text of docs/PLAN.md."""
    every = [(model, name) for name in topologies for model in models]
    cells = [(model, name) for model, name in every if f'{model}@{name}' in plans]
    missing = ', '.join(f'{model} on {name}' for model, name in every if (model, name) not in cells)
    rows = [_row(model, name, plans[f'{model}@{name}']) for model, name in cells]
    of_figure = {name: found for name, found in plans.items() if name.startswith('collectives@')}
    stage = next(iter(of_figure.values()))['stage'] if of_figure else {'rows': 0}
    devices = next(iter(of_figure.values()))['topology']['devices'] if of_figure else 1
    commits = ', '.join(sorted({found.get('commit', 'unknown') for found in plans.values()}))
    return PAGE.format(
        date=today,
        commit=commits or 'unknown',
        table=_table(rows),
        missing=f'\n\nNot planned, or refused: {missing}.' if missing else '',
        cost=_cost(plans),
        figure=FIGURE,
        collectives=_collectives(of_figure),
        rows=stage['rows'] // devices,
    )


def _row(model: str, name: str, found: dict) -> dict[str, str]:
    programs, limit = found['programs'], found['topology']['usable_bytes_per_device']
    most = max(programs, key=lambda one: programs[one]['peak'])
    chosen = dict(
        part.removeprefix('--config.').split('=')
        for part in found['command']
        if part.startswith('--config.')
    )
    row = {
        'model': model,
        'topology': name,
        'fsdp': chosen['mesh.fsdp'],
        'tensor in sampling': chosen['rollout.mesh.tensor'],
        'fits': 'yes' if found['fits'] else 'no',
        'peak GiB': f'{programs[most]["peak"] / 2**30:.1f} of {limit / 2**30:.1f} ({most})',
    }
    for program in ('train', 'decode'):
        one = programs[program]
        short = (
            f'{one["tokens_per_second_per_chip"]:,.0f}, {one["mfu"]:.0%}, {one["time"]["bound"]}'
            if one['time']
            else '-'
        )
        row[f'{program}: tokens/s/chip, MFU, bound'] = short
    fit = found.get('fit')
    row['what makes it fit'] = (
        ''
        if fit is None
        else f'`{fit["command"]}`'
        if fit['command']
        else f'none of {len(fit["trials"])} changes'
    )
    return row


def _cost(plans: Mapping[str, dict]) -> str:
    found = plans.get('qwen3_8b@v5e:16x16')
    if found is None:
        return ''
    each = ', '.join(f'{name} {one["seconds"]:.0f} s' for name, one in found['programs'].items())
    memory = f'{found["peak_host_bytes"] / 1e9:.1f} GB'
    return (
        f'The plan of Qwen3 8B on 256 chips took {found["compile_seconds"]:.0f} s of compilation '
        f'({each}) and {memory} of host memory.'
    )


def points(plans: Mapping[str, dict]) -> dict[str, list[tuple[int, float, dict[str, float]]]]:
    """Series -> (devices, bytes sent per token of a device, the same by kind), by devices."""
    series: dict[str, list] = {}
    for name, found in plans.items():
        _, kind, devices = name.split('@')
        one = found['programs']['train']
        if one['collectives'] is None:
            continue
        tokens = one['tokens'] / int(devices)
        by_kind = {each: sums['bytes'] / tokens for each, sums in one['collectives'].items()}
        series.setdefault(kind, []).append((int(devices), one['sent'] / tokens, by_kind))
    return {kind: sorted(found, key=lambda point: point[0]) for kind, found in series.items()}


def _collectives(plans: Mapping[str, dict]) -> str:
    rows = []
    for series, found in points(plans).items():
        for devices, sent, by_kind in found:
            kinds = ', '.join(
                f'{kind} {size / 1e3:,.1f}'
                for kind, size in sorted(by_kind.items(), key=lambda pair: -pair[1])
                if size > 50
            )
            rows.append(
                {
                    'split': series,
                    'devices': str(devices),
                    'kB per token': f'{sent / 1e3:,.1f}',
                    'by kind': kinds,
                }
            )
    return _table(rows)


def figure(plans: Mapping[str, dict], file: pathlib.Path) -> None:
    """Draws bytes per token against devices, a line per way of splitting."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    drawn, axes = plt.subplots(figsize=(7, 4))
    for (series, found), marker in zip(points(plans).items(), 'osv^D'):
        axes.plot(
            [x for x, _, _ in found], [y / 1e3 for _, y, _ in found], marker=marker, label=series
        )
    axes.set_xscale('log', base=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel('devices')
    axes.set_ylabel('kB sent per token')
    axes.grid(alpha=0.3)
    axes.legend(title='split over')
    drawn.tight_layout()
    # No date and no random ids: the same plans draw the same file.
    with plt.rc_context({'svg.hashsalt': 'plan'}):
        drawn.savefig(file, metadata={'Date': None})
    plt.close(drawn)


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return '(not planned yet)'
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = ['| ' + ' | '.join(columns) + ' |', '|' + '---|' * len(columns)]
    return '\n'.join(
        lines
        + ['| ' + ' | '.join(row.get(column, '') for column in columns) + ' |' for row in rows]
    )
