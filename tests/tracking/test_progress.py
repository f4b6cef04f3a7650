"""The progress of a stage on a terminal, and the final table."""

import io
import threading

import jax
import pytest

from reasonjax.tracking import results
from reasonjax.tracking.progress import Progress


def test_progress_prints_plain_lines_where_there_is_no_terminal():
    stream, now = io.StringIO(), [0.0]
    with Progress('grpo', 100, start=10, stream=stream, every=10, clock=lambda: now[0]) as progress:
        for step in range(11, 101):
            # the first step compiles, and must not count in the pace
            now[0] += 100 if step == 11 else 0.5
            progress.update(step, {'loss': 9.0, 'reward': step / 100, 'tokens_per_second': 12345.6})
    lines = stream.getvalue().splitlines()
    assert lines[0] == 'grpo 11/100  reward 0.11  12.3k tokens/s'
    # 69 steps of half a second
    assert lines[1] == 'grpo 31/100  reward 0.31  12.3k tokens/s  0:34 left'
    assert lines[-1] == 'grpo 100/100  reward 1  12.3k tokens/s'
    assert len(lines) == 6


def test_progress_is_silent_in_all_processes_but_the_first(monkeypatch):
    monkeypatch.setattr(jax, 'process_index', lambda: 1)
    stream = io.StringIO()
    with Progress('sft', 3, stream=stream) as progress:
        progress.update(3, {'loss': 0.25})
    assert stream.getvalue() == ''


def test_progress_is_one_live_line_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with Progress('sft', 3, stream=stream) as progress:
        for step in (1, 2, 3):
            progress.update(step, {'loss': 0.25})
    assert (
        'sft' in stream.getvalue()
        and '3/3' in stream.getvalue()
        and 'loss 0.25' in stream.getvalue()
    )


def test_progress_says_that_it_compiles_and_for_how_long():
    stream, now = io.StringIO(), [0.0]
    with Progress('sft', 500, start=20, stream=stream, every=1e9, clock=lambda: now[0]) as progress:
        for seconds in (12, 75, 3700):
            now[0] = float(seconds)
            progress.wait()
        progress.update(21, {'loss': 1.0})
    assert stream.getvalue().splitlines() == [
        'sft 20/500  compiling 0:12',
        'sft 20/500  compiling 1:15',
        'sft 20/500  compiling 1:01:40',
        'sft 21/500  loss 1',
    ]


class Waiting(io.StringIO):
    """A stream that can be waited for: `written` is set when there is something on it."""

    def __init__(self, terminal=False):
        super().__init__()
        self.written, self._terminal = threading.Event(), terminal

    def isatty(self):
        return self._terminal

    def write(self, text):
        if 'compiling' in text:
            self.written.set()
        return super().write(text)


@pytest.mark.parametrize('terminal', [False, True])
def test_progress_says_so_by_itself(terminal):
    """While the first step blocks the program."""
    stream = Waiting(terminal)
    with Progress('sft', 3, stream=stream, every=0.01) as progress:
        assert stream.written.wait(60)
        progress.update(1, {'loss': 1.0})
        before = stream.getvalue().count('compiling')
        progress.update(2, {'loss': 1.0})
    assert 'compiling 0:0' in stream.getvalue() and (
        terminal or stream.getvalue().count('compiling') <= before + 1
    )


def test_progress_of_what_does_not_compile():
    stream = io.StringIO()
    with Progress('export', 100, stream=stream, waiting='', every=0.0) as progress:
        assert progress.text() == ''
        progress.update(100, {})
    assert stream.getvalue() == 'export 100/100\n'


def test_table(tmp_path):
    stream = io.StringIO()
    results.table(
        [
            {
                'name': 'fresh [x]',
                'accuracy': 0.0,
                'ci95': [0, 0.0037],
                'mean_length': 18.06,
                'problems': 1000,
            },
            {
                'name': 'grpo',
                'accuracy': 0.981,
                'ci95': [0.971, 0.988],
                'sampled_accuracy': 0.913,
                'sampled_ci95': [0.894, 0.929],
                'mean_length': 29.94,
                'problems': 1000,
                'seconds': 19.44,
            },
        ],
        stream=stream,
    )
    fresh, grpo = (
        line.split()
        for line in stream.getvalue().splitlines()
        if ' %' in line and 'greedy' not in line
    )
    assert ' '.join(fresh) == 'fresh [x] 0.0 % [0.0, 0.4] - 18.1 1000 -'
    assert ' '.join(grpo) == 'grpo 98.1 % [97.1, 98.8] 91.3 % [89.4, 92.9] 29.9 1000 19.4'
