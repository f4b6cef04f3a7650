"""Workdirs that are none, or not any more: one line that names what is wrong, no traceback, and
nothing of the user's is touched."""

import json
import os
import pathlib
import re
import shutil
import sys

import folders
import pytest
from small_runs import ROOT, quiet

from reasonjax import convert, evaluate, sample, train
from reasonjax.errors import UserError
from reasonjax.interop import lm_eval
from reasonjax.training import checkpoint_files, locks
from reasonjax.training.run import run
from reasonjax.training.saved_run import open_saved, trained

QUICK = '--skip_selfcheck'


def config(**overrides):
    return quiet('configs/base.py', **dict(train__steps=2, train__checkpoint_every=1) | overrides)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp('finished') / 'run'
    run(config(), folder)
    return folder


@pytest.fixture
def work(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / 'run')


def called(program, capsys, *arguments):
    """Standard error of a program that refuses."""
    status = program.main([QUICK, *map(str, arguments)])
    errors = capsys.readouterr().err
    assert (
        status == 2
        and errors.startswith('error: ')
        and errors.count('\n') == 1
        and 'Traceback' not in errors
    ), errors
    return errors


def link(path, target):
    path.symlink_to(target)
    return path


def loop(path):
    path.symlink_to(path.with_name('other'))
    path.with_name('other').symlink_to(path)
    return path


def written(path, text=''):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def peft(folder):
    written(folder / 'adapter_config.json', '{"peft_type": "LORA"}')
    return folder


# What is given as --workdir, and what is said of it to a reader and to `train` (None: it makes a
# run there).
PLACES = {
    'a file': (
        lambda tmp: written(tmp / 'file'),
        'it is not a folder',
        'cannot be made (File exists)',
    ),
    'in a file': (
        lambda tmp: written(tmp / 'file') / 'run',
        'it is not a folder',
        'cannot be made (Not a directory)',
    ),
    'nothing': (lambda tmp: tmp / 'nothing', 'no such folder', None),
    'a name too long': (
        lambda tmp: tmp / ('x' * 300),
        'File name too long',
        'cannot be made (File name too long)',
    ),
    'a path too long': (
        lambda tmp: tmp / '/'.join(['x' * 200] * 30),
        'File name too long',
        'cannot be made (File name too long)',
    ),
    'a link to nowhere': (
        lambda tmp: link(tmp / 'link', 'nowhere'),
        'a link to nowhere',
        'is a link to nowhere',
    ),
    'a loop': (
        lambda tmp: loop(tmp / 'loop'),
        'Too many levels of symbolic links',
        'is a link to nowhere',
    ),
    'a null character': (lambda tmp: tmp / 'a\0b', 'null', 'null'),
    'a Hugging Face model': (
        lambda tmp: folders.write(tmp / 'model'),
        'is a Hugging Face model folder',
        'give another --workdir',
    ),
    'an adapter': (lambda tmp: peft(tmp / 'adapter'), 'it is a PEFT adapter', None),
    'an empty folder': (lambda tmp: tmp, 'no config.json', None),
    'a device': (lambda tmp: pathlib.Path('/dev/null'), 'it is not a folder', 'cannot be made'),
}


@pytest.mark.parametrize('place', PLACES)
def test_what_is_given_as_workdir(place, tmp_path, capsys):
    make, read, write = PLACES[place]
    workdir = make(tmp_path)
    before = sorted(tmp_path.rglob('*'))
    assert read in called(sample, capsys, '--workdir', workdir, '1+1=')
    assert read in called(evaluate, capsys, '--workdir', workdir)
    if write:
        command = ['--config', ROOT / 'configs/base.py', '--smoke', '--workdir', workdir]
        assert write in called(train, capsys, *command)
    assert sorted(tmp_path.rglob('*')) == before
    with pytest.raises(UserError):
        open_saved(workdir)


@pytest.mark.parametrize(
    'place',
    ['nothing', 'in a file', 'a name too long', 'a link to nowhere', 'a loop', 'an empty folder'],
)
def test_what_is_given_to_convert(place, tmp_path, capsys):
    source = PLACES[place][0](tmp_path / 'from' if place == 'an empty folder' else tmp_path)
    (tmp_path / 'from').mkdir()
    assert str(source)[:40] in called(convert, capsys, source, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


HARNESS = (
    ['--model_args', 'workdir={}'],
    ['--model_args=workdir={},stage=x'],
    ['-a', 'stage=x', 'workdir={}'],
    ['run', '--model_args', 'stage=x,workdir={}'],
    ['--tasks', 'x', '-a', ' workdir = {} '],
)


@pytest.mark.parametrize('place', ['nothing', 'a file', 'a link to nowhere', 'an empty folder'])
@pytest.mark.parametrize('form', HARNESS, ids=' '.join)
def test_what_is_given_to_the_harness(form, place, tmp_path, capsys, monkeypatch):
    """It is refused before lm_eval is imported, which takes many seconds."""
    monkeypatch.setattr(lm_eval.importlib.util, 'find_spec', lambda name: True)
    monkeypatch.setitem(sys.modules, 'lm_eval.__main__', None)  # cannot be imported
    make, read, _ = PLACES[place]
    workdir = make(tmp_path)
    assert read in called(lm_eval, capsys, *(part.format(workdir) for part in form))


TEXTS = (
    '',
    '{',
    '[]',
    'null',
    '"x"',
    '7',
    '{}',
    '{"stages": []}',
    '{"stages": ["a"]}',
    '\ufeff',
    '[' * 100_000,
    '{"a.b": 1}',
    '{"__class__": 1}',
    '\ud800',
    f'{{"seed": {"1" * 5000}}}',
    f'{{"stages": ["a"], "x": {"[" * 10_000}{"]" * 10_000}}}',
)


@pytest.mark.parametrize('text', TEXTS)
def test_a_config_that_is_none(text, work, capsys):
    (work / 'config.json').write_text(text, encoding='utf-8', errors='surrogatepass')
    for program, arguments in [(sample, ['1+1=']), (evaluate, [])]:
        assert f'{work}/config.json' in called(program, capsys, '--workdir', work, *arguments)
    assert (
        'config.json' in called(convert, capsys, work, work.parent / 'out')
        and not (work.parent / 'out').exists()
    )


def entries(group, path=()):
    for key, value in group.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from entries(value, (*path, key))


READ = ('stages', 'model', 'tokenizer', 'mesh', 'init', 'seed', 'evaluation', 'rollout')


@pytest.mark.parametrize(
    'value', [None, 'x', -1, [], {}, True, 3.5, [[1]], {'name': 'x'}, 10**30, float('inf')], ids=str
)
def test_values_of_another_kind(value, work):
    """At every place that a reader looks at, in turn: it is read, or named in one line."""
    before = json.loads((work / 'config.json').read_text())
    paths = [
        path
        for path in entries(before)
        if path[0] in READ or path[1:2] in (('adapter',), ('kind',)) or path == ('train',)
    ]
    assert len(paths) > 80
    refused = 0
    for path in paths:
        changed = json.loads(json.dumps(before))
        group = changed
        for key in path[:-1]:
            group = group[key]
        group[path[-1]] = value
        (work / 'config.json').write_text(json.dumps(changed))
        try:
            open_saved(work)
        except UserError as error:
            refused += 1
            assert '\n' not in str(error) and str(error).startswith(f'{work}/config.json: '), (
                path,
                error,
            )
    assert refused > 20


@pytest.mark.parametrize(
    'key',
    ['samples', 'batch_size', 'temperature', 'max_prompt_length', 'overlong', 'task', 'transforms'],
)
def test_an_evaluation_of_another_kind(key, work, capsys):
    before = json.loads((work / 'config.json').read_text())
    before['evaluation'][key] = {'deep': ['x']}
    (work / 'config.json').write_text(json.dumps(before))
    assert 'config.json' in called(evaluate, capsys, '--workdir', work)


STRAYS = {
    'a file': lambda folder: written(folder / '5', 'x'),
    'a link to nowhere': lambda folder: link(folder / '6', 'nowhere'),
    'zeros in front': lambda folder: (folder / '007').mkdir(),
    'a superscript': lambda folder: (folder / '²').mkdir(),
    'digits of another script': lambda folder: (folder / '٣').mkdir(),
    'an old one': lambda folder: (folder / '12.old').mkdir(),
    'a copy': lambda folder: shutil.copytree(folder / '2', folder / '2 (copy)'),
    'a note': lambda folder: written(folder / 'README', 'x'),
    'a negative number': lambda folder: (folder / '-3').mkdir(),
    'a fraction': lambda folder: (folder / '2.5').mkdir(),
    'an empty step': lambda folder: (folder / '9').mkdir(),
    'a step beyond all': lambda folder: (folder / ('9' * 40)).mkdir(),
}


@pytest.mark.parametrize('stray', STRAYS)
def test_strays_are_no_checkpoints(stray, work):
    STRAYS[stray](work / 'stages' / '00_train' / 'checkpoints')
    assert open_saved(work).load().step == 2


def test_a_run_goes_on_among_strays(work):
    folder = work / 'stages' / '00_train' / 'checkpoints'
    for stray in STRAYS.values():
        stray(folder)
    run(config(train__steps=7), work)
    assert {'6', '7'} <= {path.name for path in folder.iterdir()}
    assert open_saved(work).load().step == 7


# What stands in the way of a run that goes on, and what is said.
OBSTACLES = {
    'stages': ('File exists', 'Not a directory'),
    'metrics.jsonl': ('is a folder',),
    'completions': (),
    'tensorboard': ('File exists', 'Not a directory'),
    'environment.json': ('is a folder',),
    'summary.json': ('is a folder',),
    'config.json': ('is not a file',),
    '.lock': ('cannot be written',),
}


@pytest.mark.parametrize('name', OBSTACLES)
def test_what_stands_in_the_way_of_a_run(name, tmp_path, capsys):
    workdir = tmp_path / 'run'
    if '.' in name:
        (workdir / name).mkdir(parents=True)
    else:
        written(workdir / name, 'mine')
    command = [
        '--config',
        ROOT / 'configs/base.py',
        '--smoke',
        '--workdir',
        workdir,
        '--config.evaluation.enabled=false',
    ]
    if not OBSTACLES[name]:
        assert train.main([QUICK, *map(str, command)]) == 0  # nothing is put there
        return
    errors = called(train, capsys, *command)
    assert name in errors and any(words in errors for words in OBSTACLES[name]), errors
    assert (workdir / name).is_dir() or (workdir / name).read_text() == 'mine'


@pytest.mark.parametrize('name', ['checkpoints', 'checkpoints/2', 'checkpoints/1', 'done.json'])
def test_what_is_no_folder_or_no_file_in_a_stage(name, work, capsys):
    path = work / 'stages' / '00_train' / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.mkdir() if name == 'done.json' else path.write_text('x')
    if name == 'checkpoints':
        assert 'holds no checkpoint of any stage yet' in called(
            sample, capsys, '--workdir', work, '1+1='
        )
    else:
        assert open_saved(work).load().step == (1 if name == 'checkpoints/2' else 2)


BESTS = (
    '',
    '{',
    '[]',
    '{"best": 3}',
    '{"best": {"step": "x"}}',
    '{"best": {"step": "../../x"}}',
    '{"best": {"step": 77}}',
)


@pytest.mark.parametrize('text', BESTS)
def test_a_best_checkpoint_of_a_damaged_result(text, work, capsys):
    (work / 'stages' / '00_train' / 'done.json').write_text(text)
    assert (
        'done.json' in called(sample, capsys, '--workdir', work, '--stage', '@best', '1+1=')
        or '77' in text
    )


def test_a_pipe_is_not_waited_for(work, capsys):
    (work / 'config.json').unlink()
    os.mkfifo(work / 'config.json')
    assert 'config.json is not a file' in called(sample, capsys, '--workdir', work, '1+1=')
    with pytest.raises(UserError, match=r'config\.json'):
        run(config(), work)


def test_a_folder_that_cannot_be_written(work, monkeypatch):
    """As a read-only file system, or another user's folder, says it."""

    def refuse(*arguments, **options):
        raise OSError(30, os.strerror(30), str(arguments[0]))

    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match='.lock: cannot be written .Read-only file system.'),
    ):
        patch.setattr(locks.os, 'open', refuse)
        run(config(), work)
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match='--workdir=.*cannot be made .Read-only file system.'),
    ):
        patch.setattr(pathlib.Path, 'mkdir', refuse)
        run(config(), work.with_name('new'))
    assert trained(work)[1]


@pytest.mark.parametrize('name', ['file', 'loop', 'x' * 300, 'nothing'])
def test_what_init_names(name, tmp_path, capsys):
    written(tmp_path / 'file'), loop(tmp_path / 'loop')
    errors = called(
        train,
        capsys,
        '--config',
        ROOT / 'configs/base.py',
        '--smoke',
        '--workdir',
        tmp_path / 'run',
        f'--config.init=checkpoint:{tmp_path / name}',
    )
    assert (
        'config.init: ' in errors and 'holds no run' in errors and not (tmp_path / 'run').exists()
    )


def test_runs_that_lead_to_each_other(work, tmp_path, capsys):
    """`init` of a workdir's config is data too: a chain may be a circle."""
    other = shutil.copytree(work, tmp_path / 'other')
    for folder, before in ((work, other), (other, work)):
        content = json.loads((folder / 'config.json').read_text())
        (folder / 'config.json').write_text(json.dumps(content | {'init': f'checkpoint:{before}'}))
    assert 'leads back to where it came from' in called(convert, capsys, work, tmp_path / 'out')
    assert open_saved(work).load().step == 2  # nothing of it is needed to read


CONFIGS = {
    'not Python': ('def get_config(:\n    pass\n', ':1: not valid Python'),
    'indented': ('def get_config():\nreturn 1\n', ':2: not valid Python'),
    'a null character': ('\0', 'null bytes'),
    'raises': ('1 / 0\n', 'raised ZeroDivisionError division by zero (line 1)'),
    'raises later': (
        'def get_config():\n    return {}["x"]\n',
        "get_config() raised KeyError 'x' (line 2)",
    ),
    'imports nothing': (
        'import no_such_module\n',
        "raised ModuleNotFoundError No module named 'no_such_module' (line 1)",
    ),
    'has none': ('x = 1\n', 'a config file defines get_config()'),
    'no function': ('get_config = 3\n', 'get_config of this one is a int'),
    'needs arguments': ('def get_config(a, b):\n    pass\n', 'this one needs a, b'),
    'needs a keyword': ('def get_config(*, a):\n    pass\n', 'this one needs a'),
    'returns None': ('def get_config():\n    pass\n', 'get_config() returned None'),
    'returns a dict': ('def get_config():\n    return {}\n', 'get_config() returned a dict'),
    'keys that are numbers': (
        'def get_config():\n    return C({1: 2})\n',
        'config has the key 1 (int); keys are text',
    ),
    'keys of two kinds': (
        'def get_config():\n    return C({"a": {1: 2, "b": 3}})\n',
        'config.a has the key 1 (int)',
    ),
    'keys of a dict in a list': (
        'def get_config():\n    return C({"a": [{1: 2}]})\n',
        'config.a[0] has the key 1 (int)',
    ),
    'a function': (
        'def get_config():\n    return C({"a": len})\n',
        'config.a is a builtin_function_or_method',
    ),
    'an array': (
        'import numpy\ndef get_config():\n    return C({"a": numpy.zeros(2)})\n',
        'config.a is a numpy.ndarray',
    ),
    'a set': ('def get_config():\n    return C({"a": (1, {2})})\n', 'config.a[1] is a set'),
    'a placeholder': (
        'def get_config():\n    return C({"a": P(int)})\n',
        'config.a is a required placeholder',
    ),
    'itself': (
        'def get_config():\n    c = C({"a": 1})\n    c.b = [c]\n    c.b.append(c.b)\n    return c\n',
        'holds itself',
    ),
    'leaves': (
        'import sys\ndef get_config():\n    sys.exit(3)\n',
        'get_config() raised SystemExit 3 (line 3)',
    ),
    'leaves at once': ('import sys\nsys.exit()\n', 'raised SystemExit (line 2)'),
    'an error without words': (
        'class E(Exception):\n    def __str__(self):\n        1 / 0\ndef get_config():\n    raise '
        'E\n',
        'get_config() raised E (line 5)',
    ),
    'a built-in': ('get_config = dict\n', 'does not say what arguments it takes'),
    'no signature': (
        'import functools\nget_config = functools.partial(int, "7")\n',
        'does not say what arguments it takes',
    ),
    'no stages': ('def get_config():\n    return C({})\n', 'config.stages is missing'),
    'no stages, locked': (
        'def get_config():\n    return C({}).lock()\n',
        'config.stages is missing',
    ),
    'latin-1': (b'x = "caf\xe9"\n', 'not valid Python'),
    'no suffix': ('x = 1\n', 'defines get_config()'),
}
IMPORTS = 'from ml_collections import ConfigDict as C; from ml_collections.config_dict import required_placeholder as P; '


@pytest.mark.parametrize('case', CONFIGS)
def test_config_files(case, tmp_path, capsys):
    text, words = CONFIGS[case]
    path = tmp_path / ('config' if case == 'no suffix' else 'config.py')
    text = (
        text
        if isinstance(text, bytes)
        else re.sub('(return|c =) C', rf'{IMPORTS}\1 C', text).encode()
    )
    path.write_bytes(text)
    errors = called(train, capsys, '--config', path, '--workdir', tmp_path / 'run')
    assert str(path) in errors and words in errors, errors
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('name', ['nothing.py', '.', 'x' * 300 + '.py', ''])
def test_config_files_that_are_not_there(name, tmp_path, capsys):
    errors = called(
        train,
        capsys,
        '--config',
        f'{tmp_path}/{name}' if name else '',
        '--workdir',
        tmp_path / 'run',
    )
    assert '--config: no file' in errors or 'File name too long' in errors


def without(key):
    return lambda record: record['meta'].pop(key)


def meta(**entries):
    return lambda record: record['meta'].update(entries)


# What the record of a checkpoint holds that was changed, or that another version wrote, and how it
# is called.
RECORDS = {
    'no counts': (without('counted'), 'its counts are damaged'),
    'counts of another name': (meta(counted={'x': 1}), 'its counts are damaged'),
    'a list of counts': (meta(counted=[1]), 'its counts are damaged'),
    'no clock': (without('clock'), 'its counts are damaged'),
    'a clock that is none': (meta(clock=7), 'its counts are damaged'),
    'text for seconds': (meta(clock={'seconds': 'x'}), 'its counts are'),
    'text for a number of records': (meta(records='x'), 'its counts are damaged'),
    'a list of steps': (meta(steps=[]), 'its counts are'),
    'no position': (lambda record: record.pop('data'), 'holds no data position'),
    'a number for a position': (
        lambda record: record.update(data=7),
        'its data position is damaged',
    ),
    'half a position': (
        lambda record: record['data'].pop('parent'),
        'its data position is damaged',
    ),
    'a position of another kind': (
        lambda record: record['data'].update(parent='x'),
        'its data position is damaged',
    ),
}


@pytest.mark.parametrize('change', RECORDS)
def test_a_record_of_another_form_is_one_line(change, work):
    edit, words = RECORDS[change]
    for file in work.glob('stages/*/checkpoints/*/meta/metadata'):
        record = json.loads(file.read_text())
        edit(record)
        file.write_text(json.dumps(record))
        checkpoint_files.write_sums(file.parents[1])
    (work / 'stages' / '00_train' / 'done.json').unlink()
    with pytest.raises(UserError, match=words) as error:
        run(config(), work)
    assert '\n' not in str(error.value) and '00_train/checkpoints/2' in str(error.value)
