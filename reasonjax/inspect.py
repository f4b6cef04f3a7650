"""python -m reasonjax.inspect: what a stage's model gets to read, token by token, coloured by loss
weight."""

import argparse
import itertools
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np

from reasonjax.bounds import AtLeast, flag
from reasonjax.terminal import printable

EPILOG = """\
examples:
  python -m reasonjax.inspect configs/quickstart.py
  python -m reasonjax.inspect configs/gsm8k.py:grpo --stage grpo --examples 2 --ids --config.data.path=FOLDER

Tokens that count in the loss have a coloured background, the others have none. Where the output is no terminal, the weight
stands before the tokens, which | separates. Nothing is trained, and no model is built."""

# Two shades each, so that neighbouring tokens can be told apart.
_COUNTED = ('black on dark_sea_green3', 'black on green3')
_PARTLY = ('black on khaki3', 'black on gold3')
_OTHERS = ('', 'bright_black')
_PADDING = 'bright_black'


def main(arguments: list[str] | None = None) -> int:
    from reasonjax.programs import Parser, add_trust_option, parse, run_program

    parser = Parser(
        'python -m reasonjax.inspect',
        description='Show the data of a stage as its model gets it.',
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'config',
        metavar='FILE[:ARG]',
        help='a config file, such as configs/quickstart.py, or a name that comes with reasonjax: '
        'quickstart',
    )
    parser.add_argument(
        '--stage',
        default='',
        help='the stage whose data is shown (default: the first that has any)',
    )
    parser.add_argument(
        '--examples',
        type=flag(AtLeast(1)),
        default=3,
        metavar='N',
        help='how many examples, or packed rows, are shown (default 3)',
    )
    parser.add_argument('--ids', action='store_true', help='write the id behind each token')
    parser.add_argument(
        '--no_color',
        action='store_true',
        help='write weights instead of colours, as where the output is no terminal',
    )
    parser.add_argument(
        '--workdir',
        default='',
        help='of a run, for its vocabulary and the data sets its stages have made',
    )
    add_trust_option(parser)
    options, overrides = parse(parser, sys.argv[1:] if arguments is None else arguments)

    def program() -> None:
        from reasonjax.programs import load_config

        config, _ = load_config(options.config, overrides, smoke=False, trust=options.trust)
        with tempfile.TemporaryDirectory() as folder:
            show(config, pathlib.Path(options.workdir or folder), options)

    return run_program(program)


def show(config: Any, workdir: pathlib.Path, options: argparse.Namespace) -> None:
    """Prints the first examples of a stage.

    Args:
        config: loaded.
        workdir: of a run, or an empty folder.
        options: those of `main`.

    Raises:
        UserError: no such stage, a stage without data, or anything wrong with the data.
    """
    import rich.console

    from reasonjax.training.context import open_run, stages_of
    from reasonjax.training.kinds import KINDS

    config = config.copy_and_resolve_references().unlock()
    stage = _named(
        [stage for stage in stages_of(config, workdir) if 'data' in stage.config],
        options.stage,
    )
    settings = stage.config
    # Rows do not depend on how many there are at once, nor on the devices the run is meant for.
    settings['batch_size' if 'batch_size' in settings else 'num_prompts'] = options.examples
    config.mesh = {axis: -1 if axis == 'data' else 1 for axis in config.mesh}
    run = open_run(config, workdir, active=False)
    console = rich.console.Console(
        highlight=False, soft_wrap=True, emoji=False, no_color=options.no_color or None
    )
    data = KINDS[settings.kind].load().open_data(run, stage)
    batch = next(data)
    console.print(
        f'stage {printable(stage.name)} ({settings.kind}), rows of {batch["tokens"].shape[1]} tokens',
        markup=False,
    )
    for i in range(len(batch['tokens'])):
        _show_row(
            console,
            {name: values[i] for name, values in batch.items()},
            i + 1,
            run.tokenizer,
            options.ids,
        )
    used = batch['segments'] > 0
    counted = (
        f', {int((batch["weights"] > 0).sum())} of them with weight' if 'weights' in batch else ''
    )
    console.print(
        f'\n{len(used)} rows: {used.sum()} tokens{counted}; {used.mean():.0%} of the rows filled',
        markup=False,
    )
    console.print(
        f'read so far: {", ".join(f"{name} {value}" for name, value in data.counters.items())}',
        markup=False,
    )


def _named(having: list, name: str) -> Any:
    from reasonjax.errors import UserError, check_choice

    names = [stage.name for stage in having]
    if not having:
        raise UserError('config.stages: no stage of this config has data.')
    if name:
        check_choice(f'--stage={name}: no such stage with data', name, names, 'Stages with data')
    return having[names.index(name)] if name else having[0]


def _show_row(console: Any, row: dict[str, Any], number: int, tokenizer: Any, ids: bool) -> None:
    tokens, segments = row['tokens'], row['segments']
    weights = row.get('weights', np.zeros(tokens.shape, np.float32))
    labels = ''.join(f', {name}: {bool(row[name])}' for name in ('chosen', 'label') if name in row)
    console.print(f'\nrow {number}{labels}', style='bold', markup=False)
    if not segments[0]:
        pad = printable(tokenizer.token(tokenizer.pad_id))
        console.print(
            f'  {int((segments == 0).sum())} x padding {pad}', style=_PADDING, markup=False
        )
    for segment in range(1, segments.max() + 1):
        inside = segments == segment
        if 'weights' in row:
            console.print(
                f'  segment {segment}: {_counts(tokens[inside], weights[inside], tokenizer)}',
                markup=False,
            )
        else:
            console.print(f'  prompt: {inside.sum()} tokens', markup=False)
        steps = row['step_label'][inside] if 'step_label' in row else None
        shown = _coloured if console.is_terminal and not console.no_color else _plain
        console.print(shown(tokens[inside], weights[inside], steps, tokenizer, ids))
    if not segments[-1]:
        console.print(f'  {int((segments == 0).sum())} x padding', style=_PADDING, markup=False)


def _counts(tokens: np.ndarray, weights: np.ndarray, tokenizer: Any) -> str:
    """Counts tokens, and says of each answer, a run of tokens with weight, whether its end is
    learnt: the EOS that ends it."""
    learnt = weights > 0
    ends = tokens[learnt & ~np.append(learnt[1:], False)]
    ends_learnt = [
        f'yes ({_escaped(tokenizer.token(int(token)))})' if token in tokenizer.eos_ids else 'no'
        for token in ends
    ]
    runs = [(answer, len(list(run))) for answer, run in itertools.groupby(ends_learnt)]
    eos = ', '.join(f'{answer} x {size}' if size > 1 else answer for answer, size in runs)
    return f'{len(tokens)} tokens, {int(learnt.sum())} with weight (sum {weights.sum():g}), EOS in the loss: {eos or "no"}'


def _escaped(text: str) -> str:
    return printable(text).replace('\n', '\\n')


def _pieces(
    tokens: np.ndarray, steps: np.ndarray | None, weights: np.ndarray, tokenizer: Any, ids: bool
) -> list[str]:
    pieces = [_escaped(tokenizer.token(int(token))) for token in tokens]
    if ids:
        pieces = [f'{piece}<{token}>' for piece, token in zip(pieces, tokens, strict=True)]
    if steps is not None:
        verdicts = {0.0: ' (wrong)', 1.0: ' (right)'}
        pieces = [
            piece + verdicts[float(s)] if w else piece
            for piece, s, w in zip(pieces, steps, weights, strict=True)
        ]
    return pieces


def _coloured(
    tokens: np.ndarray, weights: np.ndarray, steps: np.ndarray | None, tokenizer: Any, ids: bool
) -> Any:
    import rich.text

    text = rich.text.Text('  ')
    for i, (piece, weight) in enumerate(
        zip(_pieces(tokens, steps, weights, tokenizer, ids), weights, strict=True)
    ):
        shades = _OTHERS if weight == 0 else _COUNTED if weight == 1 else _PARTLY
        text.append(piece, style=shades[i % 2])
        if piece.endswith('\\n'):
            text.append('\n  ')
    return text


def _plain(
    tokens: np.ndarray, weights: np.ndarray, steps: np.ndarray | None, tokenizer: Any, ids: bool
) -> Any:
    import rich.text

    lines = []
    pairs = zip(_pieces(tokens, steps, weights, tokenizer, ids), weights, strict=True)
    for weight, run in itertools.groupby(pairs, key=lambda pair: pair[1]):
        lines.append(f'  {weight:4g}  ' + '|'.join(piece for piece, _ in run))
    return rich.text.Text('\n'.join(lines))


if __name__ == '__main__':
    sys.exit(main())
