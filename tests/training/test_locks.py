"""One process at a time writes a folder."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from holder import holder
from small_runs import ROOT, quiet

from reasonjax.arena import cell, compare
from reasonjax.errors import UserError
from reasonjax.interop.huggingface import export
from reasonjax.reporting import report
from reasonjax.training import locks
from reasonjax.training.run import run, trained


def test_the_second_is_told_who_is_the_first(tmp_path):
    with (
        holder(tmp_path) as process,
        pytest.raises(UserError) as error,
        locks.hold(tmp_path),
    ):
        pytest.fail('two processes hold one folder')
    assert f'{tmp_path} is in use by process {process.pid} on {socket.gethostname()}' in str(
        error.value
    )
    assert 'give another folder' in str(error.value) and '\n' not in str(error.value)
    with locks.hold(tmp_path):
        assert json.loads((tmp_path / locks.NAME).read_text())['pid'] == os.getpid()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_the_death_of_its_holder_frees_it(number, tmp_path):
    with holder(tmp_path) as process:
        os.kill(process.pid, number)
        process.join()
    assert process.exitcode == -number
    assert (tmp_path / locks.NAME).exists()
    with locks.hold(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_an_error_frees_it(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), locks.hold(tmp_path):
            raise KeyError
    with (
        locks.hold(tmp_path),
        pytest.raises(UserError, match=f'process {os.getpid()} '),
        locks.hold(tmp_path),
    ):
        pass


def test_a_link_to_a_folder_is_the_folder(tmp_path):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'link').symlink_to('folder')
    with (
        locks.hold(tmp_path / 'folder'),
        pytest.raises(UserError, match='is in use by process'),
        locks.hold(tmp_path / 'link'),
    ):
        pass


@pytest.mark.parametrize('code', [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks(code, tmp_path, monkeypatch, capsys):
    def refuse(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locks.fcntl, 'flock', refuse)
    with locks.hold(tmp_path):
        assert (tmp_path / locks.NAME).exists()
    error = capsys.readouterr().err
    assert (
        f'note: {tmp_path}: this file system has no locks' in error
        and os.strerror(code) in error
        and error.count('\n') == 1
    )
    assert not list(tmp_path.iterdir())


def test_a_system_without_locks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locks, 'fcntl', None)
    with locks.hold(tmp_path):
        pass
    assert 'this file system has no locks' in capsys.readouterr().err


def test_a_lock_that_was_deleted_meanwhile_is_no_lock(tmp_path, monkeypatch):
    """Its holder gives it back, and deletes it, between our opening and our locking."""
    lock, calls = locks._lock, []

    def slow(descriptor):
        lock(descriptor)
        if not calls:
            (tmp_path / locks.NAME).unlink()
        calls.append(descriptor)

    monkeypatch.setattr(locks, '_lock', slow)
    with locks.hold(tmp_path):
        assert len(calls) == 2
        with pytest.raises(UserError, match='is in use'), locks.hold(tmp_path):
            pass


@pytest.mark.parametrize('content', [b'', b'{', b'[]', b'{"pid": 1}', b'\xff\xfe', b'null'])
def test_whoever_holds_it_may_not_have_said_so(content, tmp_path):
    with holder(tmp_path):
        (tmp_path / locks.NAME).write_bytes(content)
        with pytest.raises(UserError, match='is in use by another process'), locks.hold(tmp_path):
            pass


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').write_text('')
    for folder in (tmp_path / 'file', tmp_path / 'absent', tmp_path / ('x' * 300)):
        with pytest.raises(UserError, match='cannot be written'), locks.hold(folder):
            pass


@pytest.mark.parametrize('target', ['mine', 'nothing', '.'])
def test_a_lock_that_is_a_link(target, tmp_path):
    """A stranger's folder may have one, to a file that is not theirs."""
    (tmp_path / 'mine').write_text('mine')
    (tmp_path / locks.NAME).symlink_to(target)
    with (
        pytest.raises(UserError, match=r'\.lock: cannot be written \(it is a link\)'),
        locks.hold(tmp_path),
    ):
        pass
    assert (tmp_path / 'mine').read_text() == 'mine' and not (tmp_path / 'nothing').exists()


def test_a_lock_that_is_a_pipe(tmp_path):
    os.mkfifo(tmp_path / locks.NAME)
    with (
        pytest.raises(UserError, match=r'\.lock: cannot be written \(a pipe or a device'),
        locks.hold(tmp_path),
    ):
        pass


def test_a_run_is_held_and_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(report, 'write', lambda workdir: None)
    config = quiet('configs/base.py', train__steps=1)
    run(config, tmp_path / 'run')
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'run').rglob('*')}
    with holder(tmp_path / 'run') as process:
        with pytest.raises(UserError, match=f'in use by process {process.pid}'):
            run(config, tmp_path / 'run')
        assert trained(tmp_path / 'run')[1]  # readers need no lock
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / 'run').rglob('*')}
    before.pop(tmp_path / 'run' / locks.NAME, None)
    assert {path: time for path, time in after.items() if path.is_file()} == {
        p: t for p, t in before.items() if p.is_file()
    }


def test_an_export_is_held(tmp_path):
    with export.unfinished(tmp_path / 'out') as path:
        (path / 'mine').write_text('')
        with (
            pytest.raises(UserError, match='is in use by process'),
            export.unfinished(tmp_path / 'out'),
        ):
            pass
        assert (path / 'mine').exists()
    assert [path.name for path in tmp_path.iterdir()] == ['out']


def test_a_comparison_and_its_cells_are_held(tmp_path):
    with holder(tmp_path) as process:
        with pytest.raises(UserError, match=f'in use by process {process.pid}'):
            compare.results_of([], tmp_path, workers=1)
        (tmp_path / 'run' / 'stages' / '00_x' / 'checkpoints' / '1').mkdir(parents=True)
        with pytest.raises(UserError, match=f'in use by process {process.pid}'):
            cell.run(cell.Spec('sft', 'chain', 0, str(tmp_path), 'warm'))
    # What another process is at is left alone.
    assert (tmp_path / 'run' / 'stages' / '00_x' / 'checkpoints' / '1').is_dir() and not (
        tmp_path / cell.RESULT
    ).exists()
    assert compare.results_of([], tmp_path, workers=1) == []


BUSY = """
import time
from reasonjax.arena import worker
print(next(worker._lines()), flush=True)
time.sleep(1000)
"""


def test_a_worker_ends_with_whoever_started_it():
    """Else it would go on in a comparison that nobody holds any more."""
    process = subprocess.Popen(
        [sys.executable, '-c', BUSY],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    process.stdin.write('a cell\n')
    process.stdin.flush()
    assert process.stdout.readline() == 'a cell\n'
    process.stdin.close()
    assert process.wait(60) == 0
