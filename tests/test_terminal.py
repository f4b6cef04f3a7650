"""Text of unknown origin on a terminal."""

import json
import subprocess
import sys

import pytest

from reasonjax.terminal import printable, printable_json

SAFE = 'a\tb\nc é 日本 \U0001f468\u200d\U0001f4bb “x”'


@pytest.mark.parametrize(
    'text,shown',
    [
        ('\x1b[2Jgone', r'\x1b[2Jgone'),
        ('bell\a', r'bell\x07'),
        ('\x1b]0;title\x07', r'\x1b]0;title\x07'),
        ('\x9b31m', r'\x9b31m'),
        ('over\rwritten', r'over\rwritten'),
        ('back\x08\x7f', r'back\x08\x7f'),
        ('\u202egnp.exe', r'\u202egnp.exe'),
        ('\u2066x\u2069', r'\u2066x\u2069'),
        ('a\u2028b\u2029', r'a\u2028b\u2029'),
        ('tag\U000e0041', r'tag\U000e0041'),
        ('half\ud800', r'half\ud800'),
        (SAFE, SAFE),
    ],
)
def test_unsafe_characters_are_written_out(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize('text', ['\x1b\x9b\u202e\U000e0041\x7f', SAFE, '"\\'])
def test_json_stays_the_same_value(text):
    line = printable_json(json.dumps({'x': text}, ensure_ascii=False))
    assert json.loads(line) == {'x': text} and printable(line) == line


def test_a_stream_that_cannot_encode_gets_escapes():
    program = (
        r"from reasonjax.terminal import open_streams; open_streams(); print('\u00e9\u65e5 ok')"
    )
    done = subprocess.run(
        [sys.executable, '-c', program],
        env={'PYTHONIOENCODING': 'ascii'},
        capture_output=True,
        check=True,
    )
    assert done.stdout == b'\\xe9\\u65e5 ok\n'
