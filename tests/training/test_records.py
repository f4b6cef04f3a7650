"""Records, results and configs that were lost or damaged: named, mended where they can be, and
never silently missing."""

import json
import os
import shutil

import pyarrow.parquet as pq
import pytest
from small_runs import checkpoints, crash_in_update, records, small
from toys import assert_trees_equal

from reasonjax.errors import UserError
from reasonjax.reporting import report
from reasonjax.tracking import metrics
from reasonjax.training.checkpoint import Checkpoints
from reasonjax.training.run import run, trained


@pytest.fixture(scope='module')
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, 'write', lambda workdir: None)
        yield patch


def config(**overrides):
    settings = dict(
        train__steps=4,
        train__checkpoint_every=2,
        train__eval_every=0,
        evaluation__task__size=4,
        evaluation__samples=0,
    )
    return small('configs/base.py', **settings | overrides)


@pytest.fixture(scope='module')
def alone(tmp_path_factory, module_patch):
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp('alone') / 'run'
    run(config(), folder)
    return folder


@pytest.fixture(scope='module')
def stopped(tmp_path_factory, module_patch):
    """A run of four steps that died in the fourth; its newest checkpoint is of the second."""
    folder = tmp_path_factory.mktemp('stopped') / 'run'
    with crash_in_update(4):
        run(config(), folder)
    return folder


@pytest.fixture
def work(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / 'run')


def lines(work):
    return (work / 'metrics.jsonl').read_text().splitlines(keepends=True)


def write(work, content):
    (work / 'metrics.jsonl').write_text(''.join(content))


NOTES = ('records_lost', 'records_extra', 'completions_lost')
# What happens to a file of two records that the checkpoint knows of and a third one; how many are
# lost, and what else is said.
LOSSES = {
    'the first line': (lambda work: write(work, lines(work)[1:]), 1, ''),
    'a line in the middle': (lambda work: write(work, lines(work)[:1] + lines(work)[2:]), 1, ''),
    'all lines': (lambda work: write(work, []), 2, ''),
    'the file': (lambda work: (work / 'metrics.jsonl').unlink(), 2, ''),
    'the end of the file': (lambda work: write(work, [lines(work)[0], lines(work)[1][:20]]), 1, ''),
    'half a line': (
        lambda work: write(work, [lines(work)[0][:20] + '\n', *lines(work)[1:]]),
        1,
        'damaged lines (1) were moved to',
    ),
    'a line of zeros': (
        lambda work: write(work, ['\0' * 50 + '\n', *lines(work)[1:]]),
        1,
        'damaged lines (1) were moved to',
    ),
    'a line that is no record': (
        lambda work: write(work, ['[1]\n', *lines(work)[1:]]),
        1,
        'damaged lines (1) were moved to',
    ),
    'a record of nobody': (
        lambda work: write(work, ['{"step": 1}\n', *lines(work)[1:]]),
        1,
        'damaged lines (1) were moved to',
    ),
    'a note that is none': (
        lambda work: write(
            work, [*lines(work)[1:], '{"stage": "train", "step": 1, "records_lost": "x"}\n']
        ),
        1,
        'damaged lines (2) were moved to',
    ),
    'two lines run together': (
        lambda work: write(work, [lines(work)[0].rstrip() + lines(work)[1]]),
        2,
        'damaged lines (1) were moved to',
    ),
    'bytes that are no text': (
        lambda work: (work / 'metrics.jsonl').write_bytes(b'\xff\xfe\n' + lines(work)[1].encode()),
        1,
        'damaged',
    ),
}


@pytest.mark.parametrize('loss', LOSSES)
def test_records_that_are_gone_are_missed(loss, work, alone, capsys):
    damage, number, words = LOSSES[loss]
    damage(work)
    run(config(), work)
    error = capsys.readouterr().err
    assert (
        f'metrics.jsonl: {number} records of stage train up to step 2 are gone' in error
        and words in error
    )
    left = records(work)
    notes = [r for r in left if any(name in r for name in NOTES)]
    assert notes == [{'stage': 'train', 'step': 2, 'records_lost': number}]
    # What was not lost is there, and what followed is as it would have been.
    others = [r for r in left if r not in notes]
    wanted = records(alone)
    assert all(r in wanted for r in others) and len(others) == len(wanted) - number
    assert others[-3:] == wanted[-3:]
    assert (work / 'metrics.jsonl.damaged').exists() == ('damaged' in words)
    assert_trees_equal(trained(work)[1], trained(alone)[1])


INSTEAD = {
    'a folder': lambda path: path.mkdir(),
    'a pipe or a device': lambda path: os.mkfifo(path),
    'a link to what is not there': lambda path: path.symlink_to('no/where'),
}


@pytest.mark.parametrize('what', INSTEAD)
def test_records_that_cannot_be_written(what, work, capsys):
    (work / 'metrics.jsonl').unlink()
    INSTEAD[what](work / 'metrics.jsonl')
    with pytest.raises(
        UserError, match=f'metrics.jsonl: is {what}, so no record can be written there'
    ):
        run(config(), work)
    assert 'the run continues' not in capsys.readouterr().err


def test_a_loss_is_noted_once(work, capsys):
    write(work, lines(work)[1:])
    with crash_in_update(1):
        run(config(), work)
    assert 'are gone' in capsys.readouterr().err
    with crash_in_update(1):
        run(config(), work)
    run(config(), work)
    run(config(), work)
    assert 'are gone' not in capsys.readouterr().err
    assert sum('records_lost' in r for r in records(work)) == 1


def test_records_of_a_finished_stage_are_missed(alone, tmp_path, capsys):
    work = shutil.copytree(alone, tmp_path / 'run')
    (work / 'metrics.jsonl').unlink()
    for _ in range(2):
        run(config(), work)
    assert capsys.readouterr().err.count('5 records of stage train up to step 4 are gone') == 1
    assert records(work) == [{'stage': 'train', 'step': 4, 'records_lost': 5}]


def test_records_that_are_there_twice_are_named(work, capsys):
    """As two processes left them that wrote into one workdir."""
    write(work, [line for line in lines(work) for _ in range(2)])
    run(config(), work)
    assert (
        'there are 2 records of stage train up to step 2 more than it wrote'
        in capsys.readouterr().err
    )
    assert [r for r in records(work) if 'records_extra' in r] == [
        {'stage': 'train', 'step': 2, 'records_extra': 2}
    ]


def test_a_damaged_file_has_a_name_and_a_line(work):
    write(work, [*lines(work)[:1], '{"stage": \n', *lines(work)[1:]])
    with pytest.raises(UserError, match=r'metrics.jsonl:2: is damaged'):
        metrics.read(work / 'metrics.jsonl')


def test_an_evaluation_that_was_written_down_is_not_written_twice(tmp_path, monkeypatch):
    """Killed between the record of an evaluation that had been put off, and the next checkpoint."""
    from reasonjax.errors import Stopped
    from reasonjax.training import stopping

    c = config(train__eval_every=2)
    asked = iter([False, False, True])  # the evaluation of step 2
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(stopping, 'asked', lambda: next(asked, False))
        run(c, tmp_path)
    for _ in range(2):
        with crash_in_update(1):
            run(c, tmp_path)
        assert [(r['step'], 'eval_accuracy' in r) for r in records(tmp_path)] == [
            (1, False),
            (2, False),
            (2, True),
        ]


def test_records_are_on_the_disk_before_a_checkpoint_knows_of_them(tmp_path, monkeypatch):
    events, sync, save = [], os.fsync, Checkpoints.save

    def synced(descriptor):
        path = tmp_path / 'metrics.jsonl'
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            events.append(len(path.read_bytes().splitlines()))
        sync(descriptor)

    def saved(*arguments, meta, **options):
        events.append(f'a checkpoint that knows of {meta["records"]}')
        return save(*arguments, meta=meta, **options)

    monkeypatch.setattr(os, 'fsync', synced)
    monkeypatch.setattr(Checkpoints, 'save', saved)
    run(config(), tmp_path)
    assert events == [2, 'a checkpoint that knows of 2', 4, 'a checkpoint that knows of 4', 5]


# --- config.json ---


def test_a_config_that_is_gone_is_written_again(work, alone, capsys):
    (work / 'config.json').unlink()
    run(config(), work)
    assert 'config.json was missing or damaged. It is written again' in capsys.readouterr().err
    assert (work / 'config.json').read_bytes() == (alone / 'config.json').read_bytes()
    assert_trees_equal(trained(work)[1], trained(alone)[1])


DAMAGES = {
    'gone': lambda path: path.unlink(),
    'cut': lambda path: path.write_bytes(path.read_bytes()[:100]),
    'empty': lambda path: path.write_text(''),
    'no object': lambda path: path.write_text('[]'),
    'no text': lambda path: path.write_bytes(b'\xff\xff'),
    'no stages': lambda path: path.write_text(
        json.dumps(json.loads(path.read_text()) | {'stages': None})
    ),
    'a dot in a key': lambda path: path.write_text(
        json.dumps(json.loads(path.read_text()) | {'a.b': 1})
    ),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_settings_are_not_mixed(damage, work, capsys):
    DAMAGES[damage](work / 'config.json')
    before = {
        path: path.read_bytes()
        for path in work.rglob('*')
        if path.is_file() and path.name != 'config.json'
    }
    with pytest.raises(
        UserError,
        match='config.json is missing or damaged, and the results there are not known to be of',
    ) as error:
        run(config(train__learning_rate__peak=0.5), work)
    assert '\n' not in str(error.value)
    assert {path: path.read_bytes() for path in before} == before
    assert damage == 'gone' or 'Renamed to config.json.damaged' in capsys.readouterr().err
    run(config(), work)
    assert trained(work)[1]


@pytest.mark.parametrize('name', ['done', 'parts'])
def test_every_result_knows_its_config(name, alone, tmp_path, monkeypatch):
    """A stage that is done and has no checkpoint (any more), and one that collects."""
    work = shutil.copytree(alone, tmp_path / 'run')
    shutil.rmtree(work / 'stages' / '00_train' / 'checkpoints')
    if name == 'parts':
        done = json.loads((work / 'stages' / '00_train' / 'done.json').read_text())
        (work / 'stages' / '00_train' / 'done.json').unlink()
        (work / 'stages' / '00_train' / 'parts').mkdir()
        (work / 'stages' / '00_train' / 'parts' / '00001.json').write_text(
            json.dumps({'rows': [], 'config': done['state']['config']})
        )
    (work / 'config.json').unlink()
    with pytest.raises(UserError, match='not known to be of the config that is given'):
        run(config(seed=3), work)


def test_a_checkpoint_of_another_run_is_refused(work, tmp_path):
    other = config(train__learning_rate__peak=0.5)
    with crash_in_update(4):
        run(other, tmp_path / 'other')
    shutil.rmtree(work / 'stages' / '00_train' / 'checkpoints')
    shutil.copytree(
        tmp_path / 'other' / 'stages' / '00_train' / 'checkpoints',
        work / 'stages' / '00_train' / 'checkpoints',
    )
    with pytest.raises(
        UserError, match='2 is of another config than config.json; was it put there from elsewhere'
    ):
        run(config(), work)


HF = '{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}'


@pytest.mark.parametrize('content', [HF, '{"name": "my-web-site"}', '', '[]', '{'])
def test_a_folder_of_something_else_is_left_alone(content, tmp_path):
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(UserError, match='--workdir') as error:
        run(config(), tmp_path)
    assert '\n' not in str(error.value)
    assert (tmp_path / 'config.json').read_text() == content and [
        p.name for p in tmp_path.iterdir()
    ] == ['config.json']


# --- done.json, summary.json, environment.json, completions ---


RIGHT = '"name": "train", "seconds": 1'
RESULTS = (
    '',
    '{',
    '[]',
    '{}',
    'null',
    '{"name": "other", "seconds": 1}',
    '{"name": "train", "seconds": "x"}',
    '\0',
    f'{{{RIGHT}, "accuracy": "x"}}',
    f'{{{RIGHT}, "ci95": 3}}',
    f'{{{RIGHT}, "ci95": [1]}}',
    f'{{{RIGHT}, "state": []}}',
    f'{{{RIGHT}, "state": {{"last": "x"}}}}',
    f'{{{RIGHT}, "examples": [1]}}',
    f'{{{RIGHT}, "examples": {{}}}}',
)


@pytest.mark.parametrize('content', RESULTS)
def test_a_damaged_result_is_made_again(content, alone, tmp_path, capsys):
    work = shutil.copytree(alone, tmp_path / 'run')
    path = work / 'stages' / '00_train' / 'done.json'
    wanted = json.loads(path.read_text())
    path.write_text(content)
    (work / 'summary.json').write_text(content)
    run(config(), work)
    assert 'Renamed to done.json.damaged' in capsys.readouterr().err
    again = json.loads(path.read_text())
    assert {k: v for k, v in again.items() if k != 'seconds'} == {
        k: v for k, v in wanted.items() if k != 'seconds'
    }
    assert (
        records(work) == records(alone)
        and 'state' not in json.loads((work / 'summary.json').read_text())['stages'][0]
    )


@pytest.mark.parametrize(
    'make',
    [lambda path: path.mkdir(), lambda path: path.symlink_to('nowhere')],
    ids=['a folder', 'a link'],
)
def test_what_has_the_name_of_a_result_is_put_aside(make, alone, tmp_path, capsys):
    """Before the stage trains, not when it is over and the result cannot be written."""
    work = shutil.copytree(alone, tmp_path / 'run')
    path = work / 'stages' / '00_train' / 'done.json'
    path.unlink()
    make(path)
    run(config(), work)
    assert 'Renamed to done.json.damaged' in capsys.readouterr().err and path.is_file()


def test_environments_add_up(tmp_path, monkeypatch, capsys):
    def write(version):
        monkeypatch.setattr(
            metrics, 'environment', lambda: {'started': f'at {version}', 'versions': version}
        )
        metrics.Writer(tmp_path).environment()
        return json.loads((tmp_path / 'environment.json').read_text())

    assert write('1') == {'started': 'at 1', 'versions': '1'}
    assert write('1') == {'started': 'at 1', 'versions': '1'}
    assert write('2')['earlier'] == [{'started': 'at 1', 'versions': '1'}]
    assert [one['versions'] for one in write('3')['earlier']] == ['2', '1']
    (tmp_path / 'environment.json').write_text('{"earlier": 3}')
    assert (
        write('4') == {'started': 'at 4', 'versions': '4'}
        and 'Renamed to environment.json.damaged' in capsys.readouterr().err
    )


def table(step, *stages):
    return [
        {
            'prompt': 'p',
            'completion': stage,
            'accuracy': 1.0,
            'advantage': 0.0,
            'stage': stage,
            'step': step,
        }
        for stage in stages
    ]


@pytest.mark.parametrize('loss', ['gone', 'cut', 'no parquet', 'no stage'])
def test_tables_of_completions_are_missed(loss, tmp_path, capsys):
    with metrics.Writer(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.write('grpo', step, {'loss': 1.0})
            writer.completions('grpo', step, table(step, 'grpo'))
        known = writer.written('grpo')
    assert known == {'records': 3, 'completions': 3}
    path = tmp_path / 'completions' / 'completions_00002.parquet'
    if loss == 'gone':
        path.unlink()
    elif loss == 'cut':
        path.write_bytes(path.read_bytes()[:50])
    elif loss == 'no parquet':
        path.write_text('hello')
    else:
        pq.write_table(pq.read_table(path).drop_columns(['stage']), path)
    for _ in range(2):
        with metrics.Writer(tmp_path) as writer:
            writer.resume('grpo', 3, known)
            assert writer.written('grpo') == known
    error = capsys.readouterr().err
    assert error.count('1 tables of completions of stage grpo up to step 3 are gone') == 1
    assert loss == 'gone' or 'Renamed to completions_00002.parquet.damaged' in error
    assert [r for r in metrics.read(tmp_path / 'metrics.jsonl') if 'loss' not in r] == [
        {'stage': 'grpo', 'step': 3, 'completions_lost': 1}
    ]


def test_tables_after_the_checkpoint_are_dropped(tmp_path):
    with metrics.Writer(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.completions('grpo', step, table(step, 'grpo'))
        writer.completions('other', 3, table(3, 'other'))
    for stray in (
        'completions_x.parquet',
        'notes.txt',
        'completions_00009.parquet.damaged',
        'completions_1.parquet',
    ):
        (tmp_path / 'completions' / stray).write_text('')
    with metrics.Writer(tmp_path) as writer:
        writer.resume('grpo', 1)
    tables = (tmp_path / 'completions').glob('completions_0000?.parquet')
    left = {path.name: pq.read_table(path).column('stage').to_pylist() for path in tables}
    assert left == {'completions_00001.parquet': ['grpo'], 'completions_00003.parquet': ['other']}


def test_checkpoints_know_what_there_must_be(alone):
    (_, record), *_ = [entry for name, entry in checkpoints(alone).items() if name.endswith('/2')]
    done = json.loads((alone / 'stages' / '00_train' / 'done.json').read_text())
    assert (record['meta']['records'], record['meta']['steps']) == (2, 4) and record['meta'][
        'config'
    ] == done['state']['config']
    assert done['state'] | {'config': ''} == {
        'config': '',
        'steps': 4,
        'last': 4,
        'records': 5,
        'completions': 0,
    }
