"""What cannot work is refused before anything is loaded, compiled or trained: also what only the
second stage would have met."""

import numpy as np
import pytest
from small_runs import quiet, small

from reasonjax import convert, evaluate, sample
from reasonjax.errors import UserError
from reasonjax.interop.huggingface import convert as converting
from reasonjax.interop.peft import write
from reasonjax.interop.peft.read import Pair
from reasonjax.reporting import report
from reasonjax.training import run as runs
from reasonjax.training import saved_run, supervised
from reasonjax.training.run import run

QUICK = '--skip_selfcheck'


def never(*arguments, **options):
    raise AssertionError('loaded, though it is refused')


@pytest.fixture(scope='module')
def patched():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, 'write', lambda workdir: None)
        yield


# Of a config of two stages, of which the first could run: settings, and what is said.
ALONE = {
    'minibatches': (dict(grpo__minibatches=3), 'config.grpo.minibatches=3: must divide'),
    'generations': (dict(grpo__num_generations=1), 'config.grpo.num_generations=1'),
    'dynamic sampling': (dict(grpo__dynamic_sampling=-1), 'config.grpo.dynamic_sampling=-1'),
    'temperature': (dict(grpo__temperature=0.0), 'config.grpo.temperature=0.0'),
    'on device': (
        dict(grpo__on_device=True, grpo__packing=True),
        'config.grpo.packing=True: not with on_device',
    ),
    'periods': (
        dict(grpo__on_device=True, grpo__iterations_per_call=2, grpo__steps=3),
        'config.grpo.iterations_per_call=2: does not',
    ),
    'best': (
        dict(grpo__keep_best='eval_acuracy', evaluation__enabled=True),
        'Did you mean "eval_accuracy"',
    ),
    'best of nothing': (dict(grpo__keep_best='eval_accuracy'), 'there is nothing to choose by'),
    'a mode': (dict(grpo__keep_best_mode='maximum'), 'config.grpo.keep_best_mode="maximum"'),
    'spikes': (dict(grpo__spike_window=1), 'config.grpo.spike_window=1'),
    'a limit': (dict(grpo__token_limit=-1), 'config.grpo.token_limit=-1'),
    'checkpoints': (dict(grpo__keep_checkpoints=0), 'config.grpo.keep_checkpoints=0'),
    'a form': (dict(warmup__data__form='preference'), 'config.warmup: data.form is "preference"'),
    'init': (dict(init='nowhere'), 'config.init="nowhere"'),
    'no answer': (
        dict(evaluation__enabled=True, evaluation__greedy=False, evaluation__samples=0),
        'draws no answer',
    ),
}


@pytest.mark.parametrize('case', ALONE)
def test_of_the_config_alone(case, tmp_path, patched, monkeypatch):
    settings, words = ALONE[case]
    monkeypatch.setattr(runs, 'open_run', never)
    with pytest.raises(UserError) as error:
        run(
            small('configs/grpo.py', **dict(evaluation__enabled=False) | settings), tmp_path / 'run'
        )
    assert words in str(error.value) and not (tmp_path / 'run').exists()


COLLECTED = {
    'nobody': ('stage:colect', 'no such stage. Did you mean "collect"'),
    'itself': ('stage:resft', 'collects nothing before stage resft starts'),
    'a stage that trains': (
        'stage:sft',
        'collects nothing before stage resft starts; stages that do: collect',
    ),
}


@pytest.mark.parametrize('case', COLLECTED)
def test_of_what_is_collected(case, tmp_path, patched, monkeypatch):
    path, words = COLLECTED[case]
    monkeypatch.setattr(runs, 'open_run', never)
    with pytest.raises(UserError) as error:
        run(
            small('configs/quickstart.py:filtered_sft', resft__data__source__path=path),
            tmp_path / 'run',
        )
    assert words in str(error.value) and not (tmp_path / 'run').exists()


# What the tokenizer, the mesh or the shape of the model decides.
OPENED = {
    'a filter without an adapter': (
        dict(lora__adapter__name='none'),
        'config.filter.name=lora: no low-rank weights here',
    ),
    'a pattern': (
        dict(lora__adapter__target_modules='("layers/atention/*",)'),
        '"layers/atention/*" matches no matrix',
    ),
    'a filter': (
        dict(lora__filter__name='paths', lora__filter__include='("nothing",)'),
        'pattern "nothing" matches no weight',
    ),
    'a block': (
        dict(lora__adapter__quantise='int8', lora__adapter__quantise_block=7),
        'config.adapter.quantise_block=7',
    ),
    'a dtype': (dict(lora__optimizer__mu_dtype='floot32'), 'floot32'),
}


@pytest.mark.parametrize('case', OPENED)
def test_of_an_opened_run(case, tmp_path, patched, monkeypatch):
    settings, words = OPENED[case]
    for name in ('fresh_params', 'load_params'):
        monkeypatch.setattr(runs, name, never)
    monkeypatch.setattr(supervised, 'open_data', never)
    with pytest.raises(UserError) as error:
        run(quiet('configs/lora.py', **settings), tmp_path)
    assert words in str(error.value)


DRAWN = {
    'a text that ends': (dict(grpo__stop='("?",)'), 'config.grpo.stop: '),
    'a prefix': (dict(grpo__forced_prefix='?'), 'config.grpo.forced_prefix: '),
    'thinking': (dict(grpo__thinking__budget=3), 'config.grpo.thinking: budget and times need'),
    'top_p': (dict(grpo__top_p=0.0), 'top_p=0.0'),
    'slots': (dict(grpo__sampler__slots=-1), 'slots=-1'),
    'packing': (dict(grpo__packing=True, grpo__share_prompts=False), 'config.grpo.packing'),
}


@pytest.mark.parametrize('case', DRAWN)
def test_of_what_is_drawn(case, tmp_path, patched, monkeypatch):
    settings, words = DRAWN[case]
    monkeypatch.setattr(runs, 'fresh_params', never)
    with pytest.raises(UserError) as error:
        run(quiet('configs/grpo.py', **settings), tmp_path)
    assert words in str(error.value)


@pytest.fixture(scope='module')
def adapted(tmp_path_factory, patched):
    """A run with a LoRA adapter that a Hugging Face architecture can hold."""
    shape = dict(model__gated=True, model__activation='silu')
    folder = tmp_path_factory.mktemp('adapted') / 'run'
    run(quiet('configs/lora.py', pretrain__steps=1, lora__steps=1, **shape), folder)
    return folder


def refused(program, capsys, *arguments):
    status = program.main([QUICK, *map(str, arguments)])
    errors = capsys.readouterr().err
    assert status == 2 and errors.startswith('error: ') and errors.count('\n') == 1, errors
    return errors


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ([], 'stage lora of'),
        (['--stage', 'pretrain', '--adapter'], 'stage pretrain of'),
        (['--adapter'], 'this run started from fresh parameters'),
        (['--merge', '--stage', 'lara'], 'Did you mean "lora"'),
        (['--merge', '--base', 'nowhere'], 'no such folder'),
    ],
)
def test_of_an_export(arguments, words, adapted, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(saved_run, 'load_params', never)
    assert words in refused(convert, capsys, adapted, tmp_path / 'out', *arguments)
    assert not list(tmp_path.iterdir())


def test_of_an_export_to_what_is_there(adapted, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(saved_run, 'load_params', never)
    (tmp_path / 'mine').write_text('')
    assert 'is there already' in refused(convert, capsys, adapted, tmp_path, '--merge')


def test_of_an_adapter_for_another_model(model_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(converting, 'initial', never)
    (tmp_path / 'adapter').mkdir()
    pairs = {
        'model.layers.0.self_attn.q_proj': Pair(
            np.ones((2, 5), np.float32), np.ones((7, 2), np.float32), 1.0
        )
    }
    write.save_adapter(tmp_path / 'adapter', pairs, base='x', layers=1)
    arguments = [tmp_path / 'adapter', tmp_path / 'out', '--merge', '--base', model_folder]
    status = convert.main([QUICK, *map(str, arguments)])
    assert (
        status == 2
        and 'the adapter does not fit this model' in capsys.readouterr().err
        and not (tmp_path / 'out').exists()
    )


@pytest.mark.parametrize(
    ('program', 'arguments', 'words'),
    [
        (sample, ['what?'], "'w'"),
        (sample, ['--chat', '1+1='], 'has no chat template'),
        (sample, ['--stage', 'x', '1+1='], 'no training stage "x"'),
        (evaluate, ['--k', '9'], 'pass@9 needs --samples 9'),
        (evaluate, ['--config.evaluation.task.sise=1'], 'Did you mean "size"'),
        (
            evaluate,
            ['--config.evaluation.max_prompt_length=2', '--config.evaluation.overlong=error'],
            'max_prompt_length',
        ),
        (evaluate, ['--config.evaluation.stop=("?",)'], 'config.evaluation.stop'),
        (evaluate, ['--output', '/dev/null/x'], '--output=/dev/null/x'),
    ],
)
def test_of_what_is_asked_of_a_model(program, arguments, words, adapted, capsys, monkeypatch):
    monkeypatch.setattr(saved_run, 'load_params', never)
    assert words in refused(program, capsys, '--workdir', adapted, *arguments)


@pytest.mark.parametrize(
    'arguments', ['batch_size=0', 'max_length=0', 'max_gen_toks=x', 'stage=x', 'trusted=x']
)
def test_of_the_harness(arguments, adapted, monkeypatch):
    pytest.importorskip('lm_eval')
    from reasonjax.interop.lm_eval import Harness

    monkeypatch.setattr(saved_run, 'load_params', never)
    with pytest.raises(UserError):
        Harness.create_from_arg_string(f'workdir={adapted},{arguments}')
