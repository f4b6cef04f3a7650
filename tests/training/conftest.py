"""What all tests of stages share."""

import pytest
from small_runs import compile_update, create_state, share_updates

from reasonjax.reporting import report
from reasonjax.training import host_step, loop, samplers


@pytest.fixture(scope='module', autouse=True)
def quick_runs():
    """Runs draw no report, which takes longer than they do, and share updates; a test that counts
    programs asks for `own_programs`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, 'write', lambda workdir: None)
        share_updates(patch)
        yield


@pytest.fixture
def own_programs(monkeypatch):
    """Every program is compiled anew, as in a process of its own."""
    monkeypatch.setattr(loop, 'compile_update', compile_update)
    monkeypatch.setattr(loop, 'create_state', create_state)
    host_step._compiled_score.cache_clear()
    samplers._compiled.cache_clear()
