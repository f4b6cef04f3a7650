"""Is every Hugging Face family exact? Random tiny torch models, imported, compared, sampled from,
exported and read again.

    python -m benchmarks.families                                  prints the table
    python -m benchmarks.families --only qwen-3,gemma-2            some of it
    python -m benchmarks.families --write docs/FAMILIES.md         writes the page too
"""

import argparse
import datetime
import pathlib
import sys
from collections.abc import Sequence

import jax

from benchmarks.family_cases import CASES, NEW, PROMPT, SHAPE, Case
from benchmarks.parity import BOUNDS, failures, measure, prompts
from reasonjax.errors import listing, nearest

COLUMNS = {
    'logits, padded': lambda row: f'{row["padded"]:.1e}',
    'logits, packed': lambda row: f'{row["packed"]:.1e}',
    'gradient': lambda row: f'{row["gradient"]:.1e}',
    'greedy': lambda row: f'{row["greedy"]}/{row["tokens"]}',
    'export': lambda row: f'{row["export"]:.1g}',
    'config': lambda row: 'same' if row['config'] else 'DIFFERS',
    'bfloat16': lambda row: 'same bits' if row['bits'] else 'DIFFERS',
    'sampler': lambda row: f'{row["sampler"]:.1e}',
    'sampler bfloat16': lambda row: f'{row["sampler_bf16_mean"]:.4f} ({row["sampler_bf16"]:.2f})',
}
PAGE = """# Hugging Face families

Model folders of these architectures can be imported and exported. Each row is a random tiny model ({layers} layers, width {width}, norms
and biases random too) saved by `transformers`; measurements are float32 unless stated otherwise. Written by

```bash
python -m benchmarks.families --write docs/FAMILIES.md
```

on {date}, on {backend}, with {versions}. The largest absolute logits of the models are {logits}.

{table}

* **logits**: largest absolute difference from torch, in rows padded on the left and on the right (one batch in torch) and in rows of
  several packed documents (one by one in torch); the worse of scanned and unrolled layers.
* **gradient** of the mean NLL of all these documents: norm of the difference relative to the norm of torch's gradient, for the worst
  tensor.
* **greedy**: tokens of `generate(do_sample=False)`, with its cache, that the sampler reproduces: {new} after each of {prompts} prompts of 1
  to {longest} tokens. The two largest logits were never closer than {gap}.
* **export**: largest difference between torch's logits of the model it saved and of the folder that we exported. **config**: our
  `config.json` reads back to the same model. **bfloat16**: a bfloat16 folder is exported bit for bit as it was imported, through float32
  and through bfloat16 parameters.
* **sampler**: largest difference, in nats, between the log-probs (and entropies) that the sampler records and those that training
  computes. **sampler bfloat16**: the same with bfloat16 activations, mean and (largest). For a mixture of experts the largest means
  little: where two experts are nearly as likely, rounding may pick the other one, and that token differs by as much as the experts do.

The command fails if one of these bounds is exceeded: {bounds}; or if a greedy token, the config or a bit differs.

RoPE scalings that depend on the length of a sequence (dynamic, LongRoPE) are computed once per run, for the length given as
`rope_scaling.length`, and torch is compared at that length. Not supported are quantised weights, folders that need code of their own,
pickled weights, encoders, and mixtures in some layers only; each is an error that says so.
"""


def cells(case: Case, row: dict) -> list[str]:
    return [
        case.name,
        f'{case.family}: {case.about}',
        *(column(row) for column in COLUMNS.values()),
    ]


def page(rows: Sequence[tuple[Case, dict]]) -> str:
    """The Markdown page of a table."""
    import torch
    import transformers

    header = ['model', 'what it is', *COLUMNS]
    lines = [header, ['---'] * len(header), *(cells(case, row) for case, row in rows)]
    sizes = sorted(
        {SHAPE['num_hidden_layers']} | {case.fields.get('num_hidden_layers', 2) for case, _ in rows}
    )
    largest = sorted(row['largest'] for _, row in rows)
    return PAGE.format(
        layers=f'{sizes[0]} to {sizes[-1]}',
        width=SHAPE['hidden_size'],
        date=datetime.date.today(),
        backend=jax.default_backend().upper(),
        versions=f'jax {jax.__version__}, torch {torch.__version__}, transformers '
        f'{transformers.__version__}',
        logits=f'{largest[0]:.1f} to {largest[-1]:.1f}',
        table='\n'.join(f'| {" | ".join(line)} |' for line in lines),
        new=NEW,
        prompts=len(prompts()['index']),
        longest=PROMPT,
        gap=f'{min(row["gap"] for _, row in rows):.1e}',
        bounds=', '.join(f'`{name}` {bound:g}' for name, bound in BOUNDS.items()),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    import rich.console
    import rich.table
    import transformers

    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.families', description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        '--only', default='', help='names, or beginnings of names, separated by commas'
    )
    parser.add_argument('--write', type=pathlib.Path, help='Markdown page to write')
    given = parser.parse_args(arguments)
    chosen = tuple(given.only.split(',')) if given.only else ('',)
    for word in chosen:
        if not any(case.name.startswith(word) for case in CASES):
            names = [case.name for case in CASES]
            parser.error(
                f'--only={word}: no such model.{nearest(word, names)} Known: {listing(names)}.'
            )
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()

    # Of a terminal the width is known; what is written elsewhere is to be readable too.
    console = rich.console.Console(width=None if sys.stdout.isatty() else 150)
    rows = []
    with console.status('') as status:
        for case in (case for case in CASES if case.name.startswith(chosen)):
            status.update(case.name)
            rows.append((case, measure(case)))
    table = rich.table.Table(*('model', *COLUMNS))
    for case, row in rows:
        table.add_row(case.name, *cells(case, row)[2:])
    console.print(table)
    wrong = [f'{case.name}: {what}' for case, row in rows for what in failures(case, row)]
    for line in wrong:
        console.print(line, style='red')
    if given.write:
        given.write.write_text(page(rows), encoding='utf-8')
    return int(bool(wrong))


if __name__ == '__main__':
    raise SystemExit(main())
