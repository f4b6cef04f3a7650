"""What a model or a stranger wrote, wherever it is shown: nothing of it reaches a terminal or a
page as it is."""

import argparse
import datetime
import io
import json
import types

import matplotlib.figure
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rich.console
from arena import arena_cells
from html_page import Page

from reasonjax import inspect
from reasonjax.arena import compare, formats, table
from reasonjax.arena import page as arena_page
from reasonjax.data import tokenizers
from reasonjax.errors import UserError
from reasonjax.reporting import pages, report
from reasonjax.tracking import completion_files, metrics
from reasonjax.tracking.progress import Progress
from reasonjax.training import run, score_run

UNSAFE = '\x1b\x07\x08\x0b\x9b\x7f\u202e\u2066\u200f\u2028\ufeff'
EVIL = f'<script>[red]:smile:{UNSAFE}\r</pre>'
WRITTEN = r'\x1b\x07\x08\x0b\x9b\x7f\u202e\u2066\u200f\u2028\ufeff\r'


class Terminal(io.StringIO):
    def isatty(self):
        return True


def assert_safe(text):
    assert not set(UNSAFE + '\r') & set(text), [hex(ord(c)) for c in set(UNSAFE) & set(text)]


def assert_written_out(text):
    assert_safe(text)
    assert WRITTEN in text.replace('\n', '')


def test_the_final_table_and_the_answers(capsys):
    stages = [{'name': f'[red]:smile:{UNSAFE}', 'accuracy': 0.5}]
    example = {
        'prompt': EVIL,
        'solution': EVIL,
        'answers': {'sft': EVIL, EVIL: EVIL},
        'correct': {'sft': True, EVIL: False},
    }
    messages = {
        'prompt': [{'role': 'user', 'content': EVIL}],
        'solution': None,
        'answers': {'sft': EVIL},
        'correct': {'sft': True},
    }
    run.show({'stages': stages, 'examples': [example, messages]})
    printed = capsys.readouterr().out
    assert_written_out(printed)
    assert '[red]:smile:' in printed and printed.count(WRITTEN) >= 6 + 1


def test_progress(capsys):
    plain = io.StringIO()
    with Progress(EVIL, 2, stream=plain) as progress:
        progress.update(1, {'loss': 1.0})
    assert_written_out(plain.getvalue())
    terminal = Terminal()
    with Progress('[red]a[/nothing]:smile:\x1b]0;x\x07', 2, stream=terminal) as progress:
        progress.update(1, {'loss': 1.0})
    assert '[red]a[/nothing]:smile:' in terminal.getvalue() and '\x1b]0;' not in terminal.getvalue()


def test_scores(capsys):
    settings = types.SimpleNamespace(task=types.SimpleNamespace(name=f'[red]:smile:{UNSAFE}'))
    score_run.show(
        {
            'problems': 3,
            'accuracy': 0.5,
            'mean_length': 1.0,
            'clipped_ratio': 0.0,
            'dropped_overlong': 0,
        },
        settings,
    )
    printed = capsys.readouterr().out
    assert_safe(printed)
    assert '[red]:smile:' in printed


@pytest.mark.parametrize('ids', [False, True])
def test_the_inspector(ids):
    alphabet = '_$M' + UNSAFE + '\r[]red:\n\t'
    tokenizer = tokenizers.characters(None, None, alphabet=alphabet)
    row = {
        'tokens': tokens(tokenizer, UNSAFE + '\r[red]\n'),
        'segments': tokens(tokenizer, '$' * 18) * 0 + 1,
    }
    for options in ({'no_color': True}, {'force_terminal': True, 'color_system': None}):
        stream = io.StringIO()
        console = rich.console.Console(
            file=stream, highlight=False, soft_wrap=True, emoji=False, **options
        )
        inspect._show_row(console, row, 1, tokenizer, ids)
        printed = stream.getvalue()
        assert_safe(printed.replace('\x1b[0m', '').replace('\x1b[1m', ''))
        assert r'\x1b' in printed and r'\u202e' in printed and r'\r' in printed and r'\n' in printed


def tokens(tokenizer, text):
    return np.array(tokenizer.encode(text), np.int32)


# Pages.


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / 'run'
    with metrics.Writer(folder, tensorboard=False) as writer:
        for step in (1, 2):
            writer.write(f'sft{UNSAFE}', step, {'loss': 1 / step, f'time/{EVIL}': 0.1})
        rows = [
            {
                'prompt': [{'role': 'user', 'content': EVIL}],
                'completion': EVIL,
                EVIL: 1.5,
                'number': 7,
                'flag': True,
                'nothing': None,
                'list': ['<b>x</b>', UNSAFE],
                'object': {'<i>': EVIL},
                'date': datetime.date(2026, 1, 2),
                'huge': 10**400,
                'advantage': 0.5,
            }
        ] * 3
        writer.completions(f'sft{UNSAFE}', 2, rows)
    example = {'prompt': EVIL, 'solution': {'<i>': EVIL}, 'answers': {EVIL: EVIL, 'list': [EVIL]}}
    stages = [
        {'name': EVIL, 'accuracy': 0.5, 'mean_length': '<b>', 'problems': None, 'seconds': 1.0}
    ]
    (folder / 'summary.json').write_text(json.dumps({'stages': stages, 'examples': [example]}))
    (folder / 'config.json').write_text(json.dumps({EVIL: EVIL, 'list': [{'<i>': 1}], 'n': None}))
    return folder


def test_the_report(workdir):
    text = report.write(workdir).read_text(encoding='utf-8')
    assert_written_out(text)
    page = Page(text)
    assert (
        not {'script', 'b><', 'i'} & set(page.tags)
        and '<script' not in text
        and '<i>' not in text
        and '<b>x' not in text
    )
    for shown in (EVIL[:8], '"<i>"', '<b>x</b>', '2026-01-02', 'step 2'):
        assert shown in page.words, shown


def test_tables_of_other_types_and_files_that_cannot_be_read(workdir):
    folder = workdir / 'completions'
    odd = {
        'stage': [['<b>'], None],
        'step': ['<script>', 'x'],
        'completion': [b'<b>\x1b', None],
        '<td>': [{'<i>': '<b>'}, None],
        'f': [float('nan'), 1],
    }
    pq.write_table(pa.table(odd), folder / 'completions_00003.parquet')
    pq.write_table(
        pa.table({'stage': pa.array([], pa.string()), 'step': pa.array([], pa.int64())}),
        folder / 'completions_00001.parquet',
    )
    text = report.write(workdir).read_text(encoding='utf-8')
    assert_written_out(text)
    assert Page(text).tags.count('td') and not any(
        tag in text for tag in ('<script', '<i>', '<td><b>\\x1b', "['<b>']")
    )
    (folder / 'completions_00004.parquet').write_bytes(b'PAR1<script>')
    page = Page(report.write(workdir).read_text(encoding='utf-8'))
    assert 'completions_00004.parquet cannot be read' in page.words and 'script' not in page.tags


def test_any_page(tmp_path):
    """Whatever is put on one: a title, a figure's labels, a cell that somebody forgot."""
    with pages.style('x'):
        figure = matplotlib.figure.Figure()
        figure.add_subplot().set_xlabel(f'<b>{UNSAFE}')
        drawn = pages.figure(EVIL, figure)
    text = pages.write(
        tmp_path / 'x.html', EVIL, [pages.section(EVIL, drawn), UNSAFE + '\ud800']
    ).read_text(encoding='utf-8')
    assert_written_out(text)
    assert r'\ud800' in text and 'script' not in Page(text).tags


def test_the_arenas_page(tmp_path):
    cells = [
        *arena_cells.arena(recipes=('sft', 'grpo'), seeds=2, points=3),
        arena_cells.failed('dpo', 'addition', 0, EVIL),
    ]
    page, *_ = arena_page.write(
        tmp_path,
        cells,
        'sft',
        {EVIL: EVIL, 'list': [EVIL], 'object': {EVIL: [EVIL]}, 'number': 1.5},
    )
    text = page.read_text(encoding='utf-8')
    assert_written_out(text)
    assert 'script' not in Page(text).tags


def test_the_arenas_table_on_a_terminal(tmp_path, monkeypatch, capsys):
    cells = [
        arena_cells.cell('sft', 'addition', 0, 0.5),
        arena_cells.failed('grpo', 'addition', 0, EVIL),
    ]
    monkeypatch.setattr(compare, 'results_of', lambda *arguments, **options: cells)
    monkeypatch.setattr(
        compare.page,
        'write',
        lambda workdir, cells, baseline, *_, **__: [
            (workdir / 'table.md').write_text(
                formats.markdown(table.build(cells, baseline)), encoding='utf-8'
            ),
            workdir,
        ],
    )
    options = dict(
        recipes='sft,grpo',
        tasks='addition',
        baseline='sft',
        seeds=1,
        budget='',
        override=[],
        workers=1,
        problems=0,
        init='',
        docs='',
        measure='test/greedy',
        workdir=tmp_path,
        trust=(),
    )
    compare.run(argparse.Namespace(**options))
    printed = capsys.readouterr().out
    assert_safe(printed)
    assert r'\ufeff' in printed  # white space is one space in the table


# The table of completions.


@pytest.mark.parametrize(
    'values, read',
    [
        ([True, 2], [1, 2]),
        ([2**63, 1], [str(2**63), '1']),
        ([10**400, None], [str(10**400), None]),
        ([{'a': 'é'}, datetime.date(2026, 1, 2)], ['{"a": "é"}', '"2026-01-02"']),
        ([b'x', {1, 2}], ['"b\'x\'"', '"{1, 2}"']),
        (['a\ud800'], [r'a\ud800']),
        ([{(1, 2): 3}], ['{(1, 2): 3}']),
    ],
)
def test_columns(tmp_path, values, read):
    path = completion_files.write(
        tmp_path / 'completions',
        'grpo',
        3,
        [{'prompt': 'p', 'completion': 'c', 'x': value} for value in values],
    )
    assert pq.read_table(path)['x'].to_pylist() == read


def test_a_column_of_other_types_in_another_stage(tmp_path):
    """One stage has a number where the other has text: both are kept, and nothing stops."""
    for stage, value in (('a', 1.5), ('b', 'good'), ('c', True), ('b', 'better')):
        path = completion_files.write(
            tmp_path / 'completions',
            stage,
            3,
            [{'prompt': 'p', 'completion': stage, 'reward': value}],
        )
    rows = pq.read_table(path).to_pylist()
    assert {(row['stage'], row['reward']) for row in rows} == {
        ('a', '1.5'),
        ('b', 'better'),
        ('c', 'true'),
    }
    path.write_bytes(b'no')
    with pytest.raises(
        UserError, match='completions_00003.parquet: not a readable Parquet file .*remove it'
    ):
        completion_files.write(tmp_path / 'completions', 'a', 3, [{'prompt': 'p'}])


@pytest.mark.parametrize(
    'line',
    [
        '{"stage": "a"',
        '[' * 100_000,
        '{"stage": "a", "step": ' + '9' * 5000 + '}',
        '[1]',
        '{"step": 1}',
        b'\xff',
    ],
)
def test_records_that_are_none(tmp_path, line):
    good = b'{"stage": "a", "step": 1}\n'
    (tmp_path / 'metrics.jsonl').write_bytes(
        good + (line if isinstance(line, bytes) else line.encode()) + b'\n' + good
    )
    with pytest.raises(UserError) as caught:
        metrics.read(tmp_path / 'metrics.jsonl')
    assert str(caught.value).startswith(
        f'{tmp_path}/metrics.jsonl:2: is damaged'
    ) and '\n' not in str(caught.value)
