"""From measurements to tables: medians and ranges, ratios, targets, and their places in a page."""

import pathlib
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

# Of a process's result: which parts have the number (the best one counts), and whether more is
# better.
NUMBERS = {
    'sft_tok_s': (('sft', 'sft_plain'), True),
    'sample_tok_s': (('sample',), True),
    'grpo_step_s': (('grpo',), False),
    'grpo_long_tail_step_s': (('long_tail',), False),
    'first_step_s': (('grpo',), False),
    'peak_gb': (('grpo',), False),
}
TITLES = {
    'sft_tok_s': 'SFT, tokens/s',
    'sample_tok_s': 'sampling, tokens/s',
    'grpo_step_s': 'GRPO step, s',
    'grpo_long_tail_step_s': 'GRPO step, long tail, s',
    'first_step_s': 'first GRPO step from process start, s',
    'peak_gb': 'peak memory of GRPO, GB',
}
# How many times better than a peer we mean to be: faster, or with so much less.
TARGETS = {
    'tunix': {
        'sft_tok_s': 2.0,
        'sample_tok_s': 2.5,
        'grpo_step_s': 3.0,
        'grpo_long_tail_step_s': 5.0,
        'first_step_s': 1.0,
        'peak_gb': 2.0,
    },
    'trl': {
        'sft_tok_s': 1.3,
        'sample_tok_s': 3.0,
        'grpo_step_s': 2.3,
        'grpo_long_tail_step_s': 4.0,
        'peak_gb': 1 / 0.9,
    },
}


class Spread(NamedTuple):
    """Rounds of one number."""

    median: float
    least: float
    most: float
    rounds: int


def spread(values: Iterable[float]) -> Spread:
    """Median and range of at least one value."""
    values = list(values)
    return Spread(statistics.median(values), min(values), max(values), len(values))


def spreads(measurements: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Spread]]:
    """System -> number -> spread over rounds. Where several parts have a number (SFT with a
    trainer, or without), the best counts."""
    found: dict[str, dict[str, Spread]] = {}
    for system in dict.fromkeys(m['system'] for m in measurements):
        for number, (parts, more) in NUMBERS.items():
            rounds = [
                [
                    m[number]
                    for m in measurements
                    if (m['system'], m['what']) == (system, part) and number in m
                ]
                for part in parts
            ]
            choices = [spread(values) for values in rounds if values]
            if choices:
                best = (max if more else min)(choices, key=lambda s: s.median)
                found.setdefault(system, {})[number] = best
    return found


def medians(found: Mapping[str, Mapping[str, Spread]]) -> dict[str, dict[str, float | None]]:
    """What `--json` writes: system -> number -> median, None where it was not measured."""
    return {
        system: {number: of[number].median if number in of else None for number in NUMBERS}
        for system, of in found.items()
    }


def advantage(number: str, ours: float, theirs: float) -> float:
    """How many times better ours is: above 1 is faster, or less."""
    return ours / theirs if NUMBERS[number][1] else theirs / ours


def peers_table(found: Mapping[str, Mapping[str, Spread]], titles: Mapping[str, str]) -> str:
    """Numbers by systems, medians with their range, and for each peer how many times better ours is
    with the target."""
    peers = [system for system in found if system != 'ours']
    compared = peers if 'ours' in found else []
    rows = [
        [
            '',
            *(titles[s] for s in found),
            *(f'{titles["ours"]} against {titles[p]}' for p in compared),
        ]
    ]
    for number in NUMBERS:
        cells = [shown(of.get(number)) for of in found.values()]
        cells += [
            _compared(
                number,
                found['ours'].get(number),
                found[p].get(number),
                TARGETS.get(p, {}).get(number),
            )
            for p in compared
        ]
        rows.append([TITLES[number], *cells])
    return markdown(rows)


def _compared(number: str, ours: Spread | None, theirs: Spread | None, target: float | None) -> str:
    if ours is None or theirs is None:
        return 'not measured'
    times = advantage(number, ours.median, theirs.median)
    if target is None:
        return f'{times:.2f}x'
    return f'{times:.2f}x (target {target:.2g}x: {"met" if times >= target else "**missed**"})'


def shown(value: Spread | None) -> str:
    """'9.2 (9.1 to 9.4)'."""
    if value is None:
        return 'not measured'
    return (
        f'{digits(value.median)} ({digits(value.least)} to {digits(value.most)})'
        if value.rounds > 1
        else digits(value.median)
    )


def digits(value: float) -> str:
    """Three digits that count, no more."""
    return f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head."""
    lines = [list(rows[0]), ['---'] + ['---:'] * (len(rows[0]) - 1), *map(list, rows[1:])]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def replace(page: str, section: str, body: str) -> str:
    """A page with another body between the marks `<!-- SECTION -->` and `<!-- /SECTION -->`.

    Raises:
      ValueError: the page does not have these marks, once each and in this order.
    """
    begin, end = f'<!-- {section} -->', f'<!-- /{section} -->'
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f'the page needs "{begin}" and behind it "{end}", once each')
    before, _, rest = page.partition(begin)
    return f'{before}{begin}\n{body.strip()}\n{end}{rest.partition(end)[2]}'


def write(file: pathlib.Path, section: str, body: str) -> None:
    """Replaces a section of a page on disk."""
    file.write_text(replace(file.read_text(encoding='utf-8'), section, body), encoding='utf-8')
    print(f'wrote the section "{section}" of {file}')


def hardware() -> str:
    """Processor, cores and memory of this machine (Linux)."""
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    flags = next((line.split() for line in lines if line.startswith('flags')), [])
    wide = 'AVX-512' if 'avx512f' in flags else 'AVX2' if 'avx2' in flags else ''
    kilobytes = int(pathlib.Path('/proc/meminfo').read_text().split()[1])
    parts = [
        names[0] if names else platform.machine(),
        wide,
        f'{len(names) or "?"} cores',
        f'{kilobytes / 1e6:.0f} GB',
    ]
    return ', '.join(filter(None, parts))
