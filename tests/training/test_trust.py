"""A workdir is data: programs that read one import nothing that its config names, unless the user
trusts it."""

import http.server
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import pytest
from small_runs import ROOT, quiet

from reasonjax import compare, convert, evaluate, sample, train
from reasonjax.errors import UserError
from reasonjax.training import load_config
from reasonjax.training.run import run
from reasonjax.training.saved_run import open_saved, trained

QUICK = '--skip_selfcheck'
# Imported, it leaves a canary; called, another.
PAYLOAD = """
import pathlib
pathlib.Path(r'{canary}').open('a').write('imported')

def test(*arguments, **options):
    pathlib.Path(r'{canary}').open('a').write('called')
    return arguments[0] if arguments else None
"""
# In every form that a name can be given: modules beside the workdir (on the path), the standard
# library, ours that are not for configs.
NAMES = (
    'payload.test',
    'payload_package.inner.test',
    'os.system',
    'subprocess.run',
    'subprocess.Popen',
    'http.server.test',
    'pickle.loads',
    'builtins.eval',
    'builtins.exec',
    'shutil.rmtree',
    'importlib.import_module',
    'reasonjax.programs.run_program',
    'reasonjax.train.main',
    'reasonjax.arena.compare.run',
    'reasonjax.data.sources.glob.glob',
    'reasonjax.methods.rewards.os.system',
)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A finished run of two stages, the second with an adapter."""
    folder = tmp_path_factory.mktemp('trust') / 'run'
    run(quiet('configs/lora.py', pretrain__steps=1, lora__steps=1), folder)
    return folder


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """Payload modules on the path, and dangerous functions replaced by one that leaves a mark;
    asserts in the end that none was touched."""
    mark, beside = tmp_path / 'canary', tmp_path / 'beside'
    (beside / 'payload_package').mkdir(parents=True)
    for file in ('payload.py', 'payload_package/__init__.py', 'payload_package/inner.py'):
        (beside / file).write_text(PAYLOAD.format(canary=mark))
    monkeypatch.syspath_prepend(str(beside))

    def called(*arguments, **options):
        mark.open('a').write('called')

    for owner, name in [
        (os, 'system'),
        (subprocess, 'Popen'),
        (http.server, 'test'),
        (pickle, 'loads'),
        (shutil, 'rmtree'),
    ]:
        monkeypatch.setattr(owner, name, called)
    yield mark
    monkeypatch.undo()
    imported = [name for name in sys.modules if name.startswith('payload')]
    for name in imported:
        del sys.modules[name]
    assert not mark.exists() and not imported


def changed(workdir, tmp_path, path, value) -> pathlib.Path:
    """A copy of a workdir whose config has `value` at `path`, a tuple of keys."""
    copy = shutil.copytree(workdir, tmp_path / 'hostile', dirs_exist_ok=True)
    config = json.loads((copy / 'config.json').read_text())
    node = config
    for key in path[:-1]:
        node = node.setdefault(key, {}) if isinstance(node, dict) else node[key]
    node[path[-1]] = value
    (copy / 'config.json').write_text(json.dumps(config))
    return copy


def called(program, capsys, *arguments):
    """Returns (status, standard error) of a program."""
    try:
        status = program.main([str(argument) for argument in arguments])
    except SystemExit as leaving:
        status = leaving.code
    return status, capsys.readouterr().err


# Where a reader needs a function, so that another one there is refused by name.
NEEDED = {
    'tokenizer': (('tokenizer', 'name'), 'config.tokenizer.name'),
    'rope scaling': (('model', 'rope_scaling', 'name'), 'config.model.rope_scaling.name'),
    'adapter': (('lora', 'adapter', 'name'), 'config.lora.adapter.name'),
    'adapter of a stage before': (('pretrain', 'adapter'), 'config.pretrain.adapter.name'),
    'a tokenizer within a tokenizer': (
        ('tokenizer', 'tokenizer'),
        'config.tokenizer.tokenizer.name',
    ),
    'an adapter in a list': (('lora', 'adapter'), 'config.lora.adapter[0].name'),
    'a rope scaling in a list': (('model', 'rope_scaling'), 'config.model.rope_scaling[0].name'),
}


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('where', NEEDED)
def test_a_function_from_elsewhere_is_refused_by_name(where, name, finished, tmp_path, canary):
    path, key = NEEDED[where]
    node = {'name': name}
    value = name if path[-1] == 'name' else [node] if key.endswith('[0].name') else node
    with pytest.raises(UserError) as error:
        open_saved(changed(finished, tmp_path, path, value))
    assert f'config.json: {key}: "{name}"' in str(error.value)
    assert f'give --trust {name.rpartition(".")[0]}' in str(error.value)


# Where a reader needs none: what is there is not looked at, and the model can be sampled.
UNUSED = {
    'objective': ('lora', 'objective', 'name'),
    'optimizer': ('lora', 'optimizer', 'name'),
    'schedule': ('lora', 'learning_rate', 'name'),
    'filter': ('lora', 'filter', 'name'),
    'corruption': ('lora', 'corruption', 'name'),
    'source': ('pretrain', 'data', 'source', 'name'),
    'advantage': ('lora', 'advantage'),
    'rewards': ('lora', 'rewards'),
    'transforms': ('lora', 'data', 'transforms'),
    'task': ('evaluation', 'task', 'name'),
    'transforms of an evaluation': ('evaluation', 'transforms'),
    'a group of nobody': ('mine', 'deeper', 'objective'),
    'a source within the model': ('lora', 'adapter_of_mine', 'source'),
}


@pytest.mark.parametrize('name', NAMES[:7])
@pytest.mark.parametrize('slot', UNUSED)
def test_what_a_reader_does_not_call_is_not_looked_at(slot, name, finished, tmp_path, canary):
    path = UNUSED[slot]
    value = {'transforms': [{'name': name}], 'rewards': {'first': {'name': name}}}.get(
        path[-1], {'name': name}
    )
    opened = open_saved(changed(finished, tmp_path, path, name if path[-1] == 'name' else value))
    assert name not in opened.run.config.to_json_best_effort()
    assert not hasattr(opened.run.config.lora, 'objective') and opened.stage.name == 'lora'


@pytest.mark.parametrize('slot', ['objective', 'source', 'rewards', 'task'])
def test_a_run_with_functions_of_ones_own_can_be_sampled(slot, finished, tmp_path, canary, capsys):
    path = UNUSED[slot]
    value = {'first': {'name': 'payload.test'}} if slot == 'rewards' else 'payload.test'
    copy = changed(finished, tmp_path, path, value)
    status, errors = called(sample, capsys, '--workdir', copy, QUICK, '--max_tokens', 2, '1+1=')
    assert status == 0, errors


@pytest.mark.parametrize('key', ['task', 'transforms'])
@pytest.mark.parametrize(
    'name',
    [
        'payload.test',
        'http.server.test',
        'reasonjax.programs.run_program',
        'reasonjax.arena.tasks.mixture',
    ],
)
def test_an_evaluation_needs_its_task_and_no_other_code(
    name, key, finished, tmp_path, canary, capsys
):
    value = {'name': name} if key == 'task' else [{'name': name}]
    copy = changed(finished, tmp_path, ('evaluation', key), value)
    for arguments in ([], ['--config.evaluation.batch_size=4']):
        status, errors = called(evaluate, capsys, '--workdir', copy, QUICK, *arguments)
        assert (
            status == 2
            and errors.count('\n') == 1
            and f'"{name}"' in errors
            and 'config.evaluation.' in errors
            and '--trust' in errors
        )


def test_the_exam_of_the_arena_is_the_packages_own(finished, tmp_path, canary):
    """It stands in no slot's module; what it asks is named by a task, not by code."""
    task = {'name': 'reasonjax.arena.tasks.exam', 'arena': 'chain'}
    opened = open_saved(changed(finished, tmp_path, ('evaluation', 'task'), task), evaluating=True)
    assert opened.run.config.evaluation.task.problems == 0


@pytest.mark.parametrize(
    'kind', ['os.system', 'payload.test', ['os.system'], {'name': 'os.system'}, None, 7]
)
def test_kinds_of_stages_are_no_code(kind, finished, tmp_path, canary):
    with pytest.raises(UserError, match='config.lora.kind: (unknown kind|expected text)'):
        open_saved(changed(finished, tmp_path, ('lora', 'kind'), kind))


@pytest.mark.parametrize('name', ['../../elsewhere', '/etc', 'a/b', '..', 'x' * 300, '\0', ''])
def test_names_of_stages_are_no_paths(name, finished, tmp_path, canary):
    copy = changed(finished, tmp_path, ('stages',), ['pretrain', name])
    config = json.loads((copy / 'config.json').read_text())
    (copy / 'config.json').write_text(json.dumps(config | {name: config['lora']}))
    with pytest.raises(UserError, match='names a folder|is not a config'):
        open_saved(copy)


def test_every_program_that_reads_a_workdir_refuses(finished, tmp_path, canary, capsys):
    copy = changed(finished, tmp_path, ('lora', 'adapter', 'name'), 'payload.test')
    wanted = 'config.lora.adapter.name: "payload.test"'
    commands = [
        (sample, ['--workdir', copy, '1+1=']),
        (evaluate, ['--workdir', copy]),
        (convert, [copy, tmp_path / 'out', '--merge']),
        (
            train,
            [
                '--config',
                ROOT / 'configs/base.py',
                '--smoke',
                '--workdir',
                tmp_path / 'next',
                f'--config.init=checkpoint:{copy}',
            ],
        ),
    ]
    for program, arguments in commands:
        status, errors = called(program, capsys, QUICK, *arguments)
        assert status == 2 and wanted in errors and '--trust payload' in errors, (program, errors)
        assert errors.count('\n') == 1, errors
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('path', [('tokenizer', 'name'), ('model', 'rope_scaling', 'name')])
def test_what_init_names_is_a_workdir(path, finished, tmp_path, canary):
    copy = changed(finished, tmp_path, path, 'payload.test')
    with pytest.raises(UserError, match='config.init: .*"payload.test".*--trust payload'):
        load_config.load(str(ROOT / 'configs/base.py'), [('init', f'checkpoint:{copy}')])
    with pytest.raises(UserError, match='"payload.test".*--trust payload'):
        trained(copy)


def test_the_harness_refuses(finished, tmp_path, canary):
    pytest.importorskip('lm_eval')
    from reasonjax.interop.lm_eval import Harness

    copy = changed(finished, tmp_path, ('tokenizer', 'name'), 'payload.test')
    with pytest.raises(UserError, match='"payload.test".*--trust payload'):
        Harness.create_from_arg_string(f'workdir={copy}')


OWN = """
from reasonjax.methods.adapters import lora

def double(params, key, *, r: int = 2):
    return lora(params, key, r=r)
"""


@pytest.fixture
def own_adapter(tmp_path, monkeypatch):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'own_adapters.py').write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path / 'mine'))
    yield 'own_adapters.double'
    sys.modules.pop('own_adapters', None)


def test_what_the_user_trusts_is_imported(own_adapter, tmp_path, capsys):
    """`train` with a config of the user's own is as free as ever; whoever reads its workdir is
    asked."""
    config = quiet(
        'configs/lora.py', pretrain__steps=1, lora__steps=1, lora__adapter__name=own_adapter
    )
    run(config, tmp_path / 'run')
    run(config, tmp_path / 'run')  # its own workdir: nothing to trust
    del sys.modules['own_adapters']
    command = ['--workdir', tmp_path / 'run', QUICK, '--max_tokens', 2, '1+1=']
    status, errors = called(sample, capsys, *command)
    assert (
        status == 2
        and 'config.lora.adapter.name: "own_adapters.double"' in errors
        and 'give --trust own_adapters' in errors
    )
    assert 'own_adapters' not in sys.modules
    assert called(sample, capsys, '--trust', 'other', *command)[0] == 2
    # the beginning of a name is another name
    assert called(sample, capsys, '--trust', 'own', *command)[0] == 2
    assert called(sample, capsys, '--trust', 'other', '--trust', 'own_adapters', *command)[0] == 0
    # A module and what is below it; the function itself, too.
    assert trained(tmp_path / 'run', trust=('own_adapters.double',))[1]
    after = [
        '--config',
        ROOT / 'configs/base.py',
        '--smoke',
        '--workdir',
        tmp_path / 'next',
        QUICK,
        '--config.evaluation.enabled=false',
        f'--config.init=checkpoint:{tmp_path / "run"}',
        '--config.model.scan=false',
    ]
    status, errors = called(train, capsys, *after)
    assert status == 2 and '--trust own_adapters' in errors
    status, errors = called(train, capsys, *after, '--trust', 'own_adapters')
    assert status == 0, errors


def test_dotted_names_of_the_slots_own_functions_are_fine(finished, tmp_path, canary):
    for name in ('reasonjax.methods.adapters.lora', 'reasonjax.methods.adapters.lora.lora'):
        assert (
            open_saved(changed(finished, tmp_path, ('lora', 'adapter', 'name'), name)).load().params
        )


@pytest.mark.parametrize('module', ['', '.', 'os system', '../x', 'a..b', '-x'])
def test_what_is_no_module_cannot_be_trusted(module, capsys):
    for program in (sample, evaluate, convert, train, compare):
        status, errors = called(program, capsys, f'--trust={module}', '--workdir', 'nowhere')
        assert status == 2 and 'is not the name of a module' in errors and errors.count('\n') == 1


def test_a_vocabulary_that_is_gone_is_not_learnt_anew(tmp_path, capsys):
    """Learning one opens the data, and its ids would mean other texts."""
    run(
        quiet(
            'configs/base.py',
            train__steps=1,
            tokenizer__name='sentencepiece',
            tokenizer__vocab_size=276,
        ),
        tmp_path / 'run',
    )
    assert trained(tmp_path / 'run')[1]
    (tmp_path / 'run' / 'sentencepiece_276.model').unlink()
    before = sorted(tmp_path.rglob('*'))
    for program, arguments in [(sample, ['1+1=']), (evaluate, [])]:
        status, errors = called(program, capsys, '--workdir', tmp_path / 'run', QUICK, *arguments)
        assert (
            status == 2
            and 'config.tokenizer: the vocabulary that this run has learnt is not in its workdir'
            in errors
        )
    assert sorted(tmp_path.rglob('*')) == before


def test_programs_name_the_flag_where_they_may_need_it(capsys):
    for program in (train, sample, evaluate, convert, compare):
        with pytest.raises(SystemExit, match='0'):
            program.main(['--help'])
        assert '--trust MODULE' in capsys.readouterr().out
