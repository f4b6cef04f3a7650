"""What `python -m reasonjax.plan` does and prints."""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import rich.box
import rich.console
import rich.table

from reasonjax.planning import fit, topology
from reasonjax.planning.plan import as_json, plan
from reasonjax.training import load_config

MEMORY = (
    'parameters',
    'optimiser',
    'incoming',
    'cache',
    'batch',
    'padding',
    'output',
    'code',
    'temporaries',
    'of_which_cache',
)
RESOURCES = ('compute', 'memory', 'interconnect', 'network')
SHOWN = 3


def run(options: argparse.Namespace, overrides: Sequence[tuple[str, str]]) -> None:
    """Plans and prints; `options` are those of `reasonjax.plan`."""
    where = topology.parse(options.topology)
    config = load_config.load(options.config, overrides, options.trust)
    # Whatever accelerators are here are left alone.
    jax.config.update('jax_platforms', 'cpu')
    devices = topology.devices(where)
    names = tuple(filter(None, options.program.split(',')))
    result = plan(config, where, devices, stage=options.stage, programs=names, say=_say)
    if not result['fits'] and not options.no_fit:
        result['fit'] = _fit(config, where, devices, result)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _fit(config: Any, where: topology.Topology, devices: list, result: Mapping) -> dict:
    failing = [name for name, one in result['programs'].items() if not one['fits']]
    trials = fit.search(
        config, where, devices, result['stage']['name'], tuple(result['programs']), failing, _say
    )
    tried = [
        {
            'what': trial.candidate.what,
            'command': fit.command(trial.candidate.overrides),
            'fits': trial.fits,
            'refused': trial.refused,
            'programs': {one.name: as_json(one) for one in trial.programs},
        }
        for trial in trials
    ]
    return {
        'command': tried[-1]['command'] if tried and tried[-1]['fits'] else None,
        'trials': tried,
    }


def show(result: Mapping[str, Any]) -> None:
    """Prints a plan as tables."""
    console = rich.console.Console(markup=False)
    where, model, stage = result['topology'], result['model'], result['stage']
    mesh = (
        ' '.join(f'{axis}={size}' for axis, size in result['mesh'].items() if size > 1)
        or 'one device'
    )
    console.print(
        f'{where["name"]}: {where["chips"]} chips, {where["devices"]} devices; mesh {mesh}\n'
        f'{model["parameters"]:,} parameters; {model["trainable"]:,} numbers train\n'
        f'stage {stage["name"]}: {stage["rows"]} rows of {stage["tokens_per_row"]} tokens, '
        f'micro-batches: {stage["accumulation"]}',
        highlight=False,
    )
    programs = result['programs']
    limit = where['usable_bytes_per_device']
    _print(
        console,
        'Memory of a device' + (f', of {_size(limit)}' if limit else ''),
        _turned(_memory_rows(programs)),
    )
    _print(
        console,
        'Work, and the least time it takes' if limit else 'Work',
        _turned(_work_rows(programs)),
    )
    sending = [row for name, one in programs.items() for row in _collective_rows(name, one)]
    if sending:
        _print(console, 'Sent by a device, by kind', sending)
    console.print(
        f'Compiled in {result["compile_seconds"]:.0f} s, in {_size(result["peak_host_bytes"])}.',
        highlight=False,
    )
    _show_fit(console, result)


def _show_fit(console: rich.console.Console, result: Mapping) -> None:
    if result['fits']:
        console.print(
            'It fits.'
            if result['topology']['usable_bytes_per_device']
            else 'Simulated devices share the memory of the host.'
        )
        return
    failing = [
        f'{name} needs {_size(one["peak"])}'
        for name, one in result['programs'].items()
        if not one['fits']
    ]
    console.print(
        f'It does not fit: {", ".join(failing)} of '
        f'{_size(result["topology"]["usable_bytes_per_device"])}.',
        highlight=False,
    )
    if 'fit' not in result:
        return
    for trial in result['fit']['trials']:
        peaks = ', '.join(f'{name} {_size(one["peak"])}' for name, one in trial['programs'].items())
        verdict = 'fits' if trial['fits'] else trial['refused'] or 'does not fit'
        console.print(
            f'  {trial["what"]}: {verdict}{f" ({peaks})" if peaks else ""}',
            highlight=False,
            soft_wrap=True,
        )
    command = result['fit']['command']
    advice = (
        f'The smallest change that fits: {command}'
        if command
        else 'No change that was tried fits; it takes more or larger chips.'
    )
    console.print(advice, highlight=False, soft_wrap=True)


def _memory_rows(programs: Mapping) -> list[dict[str, str]]:
    rows = []
    for name, one in programs.items():
        memory = one['memory']
        rows.append(
            {'program': name, 'fits': 'yes' if one['fits'] else 'NO', 'peak': _size(one['peak'])}
        )
        rows[-1] |= {
            kind.replace('_', ' '): _size(memory[kind]) if memory.get(kind) else ''
            for kind in MEMORY
        }
    return rows


def _work_rows(programs: Mapping) -> list[dict[str, str]]:
    rows = []
    for name, one in programs.items():
        row = {
            'program': name,
            'FLOP': _number(one['flops']),
            'bytes/device': _number(one['memory_traffic']),
        }
        row['sent/device'] = (
            '' if one['sent'] is None else _number(one['sent'] + one['sent_across'])
        )
        if one['time']:
            row |= {kind: _seconds(one['time'][kind]) for kind in RESOURCES if one['time'][kind]}
            row |= {'at least': _seconds(one['time']['seconds']), 'bound': one['time']['bound']}
            row |= {
                'tokens/s/chip': f'{one["tokens_per_second_per_chip"]:,.0f}',
                'MFU': f'{one["mfu"]:.1%}',
            }
        rows.append(row)
    return rows


def _collective_rows(name: str, one: Mapping) -> list[dict[str, str]]:
    if not one['collectives']:
        return []
    kinds = sorted(one['collectives'].items(), key=lambda pair: -pair[1]['bytes'])
    largest = {}
    for each in one['largest']:
        if each['source']:
            largest.setdefault(each['kind'], f'{_number(each["bytes"])}: {_origin(each["source"])}')
    return [
        {
            'program': name if i == 0 else '',
            'kind': kind,
            'times': f'{sums["times"]:,.0f}',
            'bytes': _number(sums['bytes']),
            'most of it': largest.get(kind, ''),
        }
        for i, (kind, sums) in enumerate(kinds[:SHOWN])
    ]


def _origin(source: str) -> str:
    """Returns the end of the name the compiler gives an operation, which says most."""
    parts = [
        part
        for part in source.split('/')
        if part not in ('while', 'body', 'closed_call', 'checkpoint', 'rematted_computation')
    ]
    return '/'.join(parts[-3:])


def _turned(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Transposes rows, to a column for each program: there are more labels than programs."""
    labels = [
        label
        for label in dict.fromkeys(label for row in rows for label in row)
        if label != 'program'
    ]
    turned = [
        {'': label} | {row['program']: row.get(label, '') for row in rows} for label in labels
    ]
    return [row for row in turned if any(value for name, value in row.items() if name)]


def _print(console: rich.console.Console, title: str, rows: Sequence[Mapping[str, str]]) -> None:
    table = rich.table.Table(box=rich.box.SIMPLE)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for column in columns:
        table.add_column(
            column, justify='left' if column in ('', 'program', 'kind', 'most of it') else 'right'
        )
    for row in rows:
        table.add_row(*(row.get(column, '') for column in columns))
    # A title of the table's own would be broken to the table's width.
    console.print(f'\n{title}', highlight=False)
    console.print(table)


def _size(number: float) -> str:
    """Formats bytes in GiB or MiB."""
    return f'{number / 2**30:.2f} GiB' if number >= 2**29 else f'{number / 2**20:.1f} MiB'


def _seconds(number: float) -> str:
    return (
        f'{number:.3g} s'
        if number >= 1
        else f'{number * 1e3:.3g} ms'
        if number >= 1e-3
        else f'{number * 1e6:.3g} us'
    )


def _number(number: float) -> str:
    """Formats a number with three digits and a prefix: 1.23 T."""
    power = min(6, int(math.log10(number) // 3)) if number >= 1 else 0
    return f'{number / 1000**power:.3g} {" kMGTPE"[power]}'.strip()
