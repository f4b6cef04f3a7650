"""The inspector shows what a stage's model gets: rows as the stage makes them, weights, ids, and no
model."""

import json
import pathlib
import re
import subprocess
import sys

import pytest
import rich.console
import template_styles

from reasonjax import config as configs
from reasonjax import inspect
from reasonjax.model import spec
from reasonjax.training import supervised
from reasonjax.training.context import open_run, stages_of

ROOT = pathlib.Path(__file__).parents[2]
QUICKSTART = str(ROOT / 'configs' / 'quickstart.py')

CONFIG = """
from configs import base

def get_config(path):
    c = base.get_config()
    c.train.data.source = dict(name='jsonl', path=path)
    c.train.data.max_length = 64
    with c.train.data.unlocked():
        c.train.data.form = 'demonstration'
    return c
"""


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    def build(*arguments, **options):
        raise AssertionError('parameters were drawn')

    monkeypatch.setattr(spec, 'initialise', build)


@pytest.fixture
def config(tmp_path):
    """`config(rows)` writes rows and a config that trains on them; returns its location."""

    def write(rows):
        (tmp_path / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
        (tmp_path / 'shown.py').write_text(CONFIG)
        return f'{tmp_path / "shown.py"}:{tmp_path / "rows.jsonl"}'

    return write


def printed(capsys, *arguments):
    assert inspect.main([*map(str, arguments)]) == 0
    return capsys.readouterr().out


def failed(capsys, *arguments):
    assert inspect.main([*map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_tokens_and_weights_by_hand(capsys, config):
    out = printed(
        capsys, config([{'prompt': '12+3=', 'completion': '#15'}]), '--examples', 1, '--ids'
    )
    assert 'stage train (supervised), rows of 64 tokens' in out
    assert 'segment 1: 9 tokens, 4 with weight (sum 4), EOS in the loss: yes' in out
    assert '     0  1<8>|2<9>|+<17>|3<10>|=<5>\n     1  #<4>|1<8>|5<12>|$<2>\n  55 x padding' in out
    assert '1 rows: 9 tokens, 4 of them with weight; 14% of the rows filled' in out


def test_packed_rows_show_their_segments(capsys):
    out = printed(capsys, QUICKSTART, '--examples', 2, '--no_color')
    assert 'stage sft (supervised), rows of 80 tokens' in out and out.count('\nrow ') == 2
    assert out.count('segment 1:') == 2 and 'segment 2:' in out
    for size, told, said in re.findall(
        r'segment \d: (\d+) tokens.*\n     0  (.*)\n     1  (.*)', out
    ):
        assert int(size) == len(told.split('|')) + len(said.split('|'))
        assert told.endswith('=') and '#' in said and said.endswith('|$')


def test_rows_are_those_the_stage_trains_on(capsys, tmp_path):
    run = open_run(configs.load(QUICKSTART), tmp_path, active=False)
    stage = next(stage for stage in stages_of(run.config, tmp_path) if stage.name == 'sft')
    batch = next(supervised.open_data(run, stage))
    assert len(batch['tokens']) == 26
    rows = printed(capsys, QUICKSTART, '--examples', 3, '--ids').split('\nrow ')[1:]
    for row, tokens, segments in zip(rows, batch['tokens'], batch['segments']):
        assert [int(token) for token in re.findall(r'<(\d+)>', row)] == tokens[
            segments > 0
        ].tolist()


def test_prompts_of_an_online_stage_are_padded_on_the_left(capsys):
    out = printed(capsys, QUICKSTART, '--stage', 'grpo', '--examples', 2)
    assert 'stage grpo (online), rows of 10 tokens' in out
    for padding, size in re.findall(r'  (\d+) x padding _\n  prompt: (\d+) tokens', out):
        assert int(padding) + int(size) == 10
    assert 'with weight' not in out


def test_chat_documents(capsys, config, tmp_path):
    messages = [{'role': 'user', 'content': 'Tom?'}, {'role': 'assistant', 'content': 'So\n2.'}]
    folder = template_styles.write_style(tmp_path / 'qwen', 'qwen25')
    chosen = ['--config.tokenizer.name=huggingface', f'--config.tokenizer.path={folder}']
    out = printed(capsys, config([{'messages': messages}]), *chosen, '--examples', 1)
    (said,) = re.findall(r'^     1  (.*)$', out, re.MULTILINE)
    assert said.replace('|', '') == 'So\\n2.<im_end>' and said.endswith('|<|im_end|>')


def test_other_forms_show_what_is_beside(capsys, config):
    form = '--config.train.data.form='
    rows = [{'prompt': '1=', 'chosen': '#1', 'rejected': '#2'}]
    out = printed(capsys, config(rows), form + 'preference', '--examples', 1)
    assert 'row 1, chosen: True' in out and 'row 2, chosen: False' in out
    rows = [{'prompt': '1=', 'completions': ['1', '2'], 'labels': [True, False]}]
    with_separator = ['--config.tokenizer.alphabet=_.$M#=,0123456789+\n']
    out = printed(capsys, config(rows), form + 'stepwise', '--examples', 1, *with_separator)
    assert '\\n (right)' in out and '\\n (wrong)' in out
    rows = [{'prompt': '1=', 'completion': '1', 'label': False}]
    assert 'row 1, label: False' in printed(
        capsys, config(rows), form + 'unpaired', '--examples', 1
    )


def test_colours_follow_the_weights(capsys, config, monkeypatch):
    real = rich.console.Console
    monkeypatch.setattr(
        rich.console,
        'Console',
        lambda **options: real(force_terminal=True, color_system='truecolor', **options),
    )
    monkeypatch.delenv('NO_COLOR', raising=False)
    location = config([{'prompt': '12=', 'completion': '#3'}])
    coloured = printed(capsys, location, '--examples', 1)
    backgrounds = [
        bool(re.search(r'48;', style))
        for style, _ in re.findall(r'\x1b\[([\d;]*)m([12=#3$])\x1b', coloured)
    ]
    # every second token that is told has no style at all
    assert backgrounds == [False, True, True, True]
    plain = printed(capsys, location, '--examples', 1, '--no_color')
    assert '     0  1|2|=\n     1  #|3|$' in plain


def test_errors(capsys, config):
    assert 'no such stage with data. Did you mean "grpo"? Stages with data: grpo, sft' in failed(
        capsys, QUICKSTART, '--stage', 'grop'
    )
    with pytest.raises(SystemExit):
        failed(capsys, QUICKSTART, '--examples', 0)
    assert '--examples: 0: must be at least 1; nearest: 1.' in capsys.readouterr().err
    assert 'no file' in failed(capsys, 'configs/quickstrat.py')
    location = config([{'prompt': '1=', 'chosen': '2', 'rejected': '3'}])
    assert (
        'rows.jsonl:1: columns found: chosen, prompt, rejected; they make a row of '
        'data.form="preference"' in failed(capsys, location)
    )


def test_it_needs_no_device_of_the_run_and_leaves_nothing(tmp_path):
    command = [
        sys.executable,
        '-m',
        'reasonjax.inspect',
        QUICKSTART,
        '--examples',
        '1',
        '--config.mesh.data=64',
    ]
    result = subprocess.run(
        command,
        cwd=tmp_path,
        env={'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0 and '1 rows' in result.stdout, result.stderr
    assert not list(tmp_path.iterdir())
