"""What a stage has collected and was lost or damaged: drawn again, or joined again from its parts,
and never silently missing."""

import shutil
from types import SimpleNamespace

import pytest
from small_runs import install_rewards, quiet, records
from toys import assert_trees_equal

from reasonjax.training.run import run, trained


@pytest.fixture(scope='module')
def rewards(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        install_rewards(tmp_path_factory.mktemp('rewards'), patch)
        yield


@pytest.fixture(scope='module')
def collected(tmp_path_factory, rewards):
    """A run that has collected, and a config for it."""
    settings = quiet(
        'configs/quickstart.py:filtered_sft',
        stages="('collect', 'resft')",
        collect__steps=3,
        collect__max_completion_length=30,
        collect__rewards__accuracy__name='toy_rewards.digits',
        collect__reward_workers=0,
        collect__min_reward=2.0,
        resft__steps=1,
    )
    folder = tmp_path_factory.mktemp('collected') / 'run'
    run(settings, folder)
    return SimpleNamespace(folder=folder, config=settings)


PARTS = {
    'cut': lambda path: path.write_text(path.read_text()[:30]),
    'empty': lambda path: path.write_text(''),
    'a list': lambda path: path.write_text('[]'),
    'no rows': lambda path: path.write_text('{"counts": {}}'),
    'odd rows': lambda path: path.write_text('{"rows": [1], "counts": {}}'),
    'odd counts': lambda path: path.write_text('{"rows": [], "counts": {"kept": "x"}}'),
    'gone': lambda path: path.unlink(),
    'a folder': lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize('damage', PARTS)
def test_a_part_that_is_damaged_is_drawn_again(damage, collected, tmp_path, capsys):
    work = shutil.copytree(collected.folder, tmp_path / 'run')
    stage = work / 'stages' / '00_collect'
    wanted = (stage / 'dataset.jsonl').read_bytes()
    PARTS[damage](stage / 'parts' / '00002.json')
    for stray in ('x.json', '².json', '1.json', 'notes.txt', '00002.json.old', '-0001.json'):
        (stage / 'parts' / stray).write_text('{')
    (stage / 'done.json').unlink()
    (stage / 'dataset.jsonl').unlink()
    run(collected.config, work)
    assert (stage / 'dataset.jsonl').read_bytes() == wanted
    error = capsys.readouterr().err
    assert damage == 'gone' or '00002.json' in error and 'and drawn again' in error
    assert sorted(map(str, records(work))) == sorted(map(str, records(collected.folder)))


@pytest.mark.parametrize('damage', ['gone', 'shorter', 'changed'])
def test_a_data_set_that_is_not_what_was_written_is_made_again(damage, collected, tmp_path, capsys):
    work = shutil.copytree(collected.folder, tmp_path / 'run')
    path = work / 'stages' / '00_collect' / 'dataset.jsonl'
    wanted = path.read_bytes()
    shutil.rmtree(work / 'stages' / '01_resft')
    if damage == 'gone':
        path.unlink()
    else:
        path.write_bytes(
            wanted[: len(wanted) // 2]
            if damage == 'shorter'
            else wanted.replace(b'"reward": ', b'"reward":  ', 1)
        )
    run(collected.config, work)
    assert (
        path.read_bytes() == wanted
        and 'dataset.jsonl is not (any more) what stage collect wrote' in capsys.readouterr().err
    )
    assert_trees_equal(trained(work)[1], trained(collected.folder)[1])
