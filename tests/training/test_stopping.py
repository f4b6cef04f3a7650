"""Signals that ask a program to stop: the first is a request, handlers come and go, and a second
Ctrl-C is not caught."""

import os
import signal
import threading

import pytest

from reasonjax import programs
from reasonjax.errors import Stopped
from reasonjax.training import stopping


def handlers():
    return [signal.getsignal(number) for number in stopping.SIGNALS]


@pytest.mark.parametrize('number', stopping.SIGNALS)
def test_a_signal_is_a_request(number, capfd):
    before = handlers()
    stopping.point('nowhere')
    with stopping.listening():
        assert not stopping.asked() and handlers() != before
        os.kill(os.getpid(), number)
        assert stopping.asked()
        with pytest.raises(Stopped, match='stage sft'):
            stopping.point('stage sft')
    assert handlers() == before and not stopping.asked()
    assert signal.Signals(number).name in capfd.readouterr().err


def test_schedulers_may_insist_and_users_may_not_wait(capfd):
    with stopping.listening():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGINT) is not signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGINT)
        # The next one is the system's business.
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL and stopping.asked()
    assert capfd.readouterr().err.count('finishing this step') == 1


def test_threads_do_not_listen():
    before, seen = handlers(), []

    def work():
        with stopping.listening():
            seen.append(handlers())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_handlers_come_back_after_an_error():
    before = handlers()
    with pytest.raises(KeyError), stopping.listening():
        raise KeyError
    assert handlers() == before


def test_programs_say_how_to_go_on(capsys):
    def stop():
        raise Stopped('stage sft: step 3 of 9 is done and saved')

    assert programs.run_program(stop) == 75
    error = capsys.readouterr().err
    assert (
        'stopped: stage sft: step 3 of 9 is done and saved. To resume, give the same command '
        'again:\n  python ' in error
    )


def test_a_full_disk_is_no_traceback(capsys):
    def write():
        raise OSError(28, 'No space left on device', 'runs/metrics.jsonl')

    def other():
        raise OSError(13, 'Permission denied')

    assert programs.run_program(write) == 2
    assert (
        "No space left on device: 'runs/metrics.jsonl'. What was saved before is whole"
        in capsys.readouterr().err
    )
    with pytest.raises(PermissionError):
        programs.run_program(other)
