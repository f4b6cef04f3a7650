"""Runs whose weights stop being numbers, or lose what is learnt: none ends as if nothing were
wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import ROOT, checkpoints, quiet, small

from reasonjax import evaluate, sample
from reasonjax.config import to_json
from reasonjax.errors import UserError
from reasonjax.training import keep as keeping
from reasonjax.training import loop
from reasonjax.training import run as runs
from reasonjax.training.run import run, trained
from reasonjax.training.saved_run import saved
from reasonjax.weights import finite

# Finite losses and gradients, and yet: the update of the step `at` spoils the weights that match.
OPTIMIZERS = """
import jax, jax.numpy as jnp, optax

def spoils(learning_rate, *, at=1, part='', value=float('nan')):
    def update(grads, count, params=None):
        def one(path, g):
            hit = (count + 1 == at) & (part in jax.tree_util.keystr(path))
            return jnp.where(hit, value, 0.0 * g)
        return jax.tree_util.tree_map_with_path(one, grads), count + 1
    init = lambda params: jnp.zeros((), jnp.int32)
    return optax.GradientTransformation(init, update)
"""


@pytest.fixture(autouse=True)
def own_optimizers(tmp_path, monkeypatch):
    (tmp_path / 'own_optimizers.py').write_text(OPTIMIZERS)
    monkeypatch.syspath_prepend(tmp_path)


def config(location='configs/sft.py', stage='train', **settings):
    own = {f'{stage}__optimizer__name': 'own_optimizers.spoils'}
    return quiet(location, **own | {f'{stage}__{name}': value for name, value in settings.items()})


def steps_saved(workdir, stage='00_train'):
    return sorted(
        int(path.name) for path in (workdir / 'stages' / stage / 'checkpoints').glob('[0-9]*')
    )


@pytest.mark.parametrize(
    ('optimizer', 'words'),
    [
        (
            dict(at=1),
            'stage train, step 1: 8,416 of 8,416 parameters are not finite numbers: embed (',
        ),
        (dict(at=1, value='inf', part='mlp'), 'stage train, step 1: '),
        (dict(at=1, part='embed'), 'parameters are not finite numbers: embed (576 of 576).'),
    ],
)
def test_a_stage_never_ends_with_weights_that_are_no_numbers(tmp_path, optimizer, words):
    settings = config(steps=1, **{f'optimizer__{name}': value for name, value in optimizer.items()})
    with pytest.raises(UserError) as error:
        run(settings, tmp_path / 'run')
    assert (
        words in str(error.value)
        and 'lower train.learning_rate.peak' in str(error.value)
        and '\n' not in str(error.value)
    )
    assert (
        not list((tmp_path / 'run').glob('stages/*/done.json'))
        and steps_saved(tmp_path / 'run') == []
    )


def test_earlier_checkpoints_stay_and_the_same_command_says_it_again(tmp_path):
    settings = config(steps=4, optimizer__at=3, checkpoint_every=1)
    for _ in range(2):
        with pytest.raises(
            UserError, match=r'^stage train, step 3: 8,416 of .* Earlier checkpoints stay\.$'
        ):
            run(settings, tmp_path / 'run')
        assert steps_saved(tmp_path / 'run') == [1, 2]
    finite.check(saved(tmp_path / 'run').params, 'here')


def test_they_are_not_evaluated(tmp_path):
    settings = small(
        'configs/sft.py',
        train__optimizer__name='own_optimizers.spoils',
        train__eval_every=1,
        train__checkpoint_every=0,
        train__steps=3,
        evaluation__task__size=4,
    )
    with pytest.raises(
        UserError,
        match='^evaluation: this model says nothing: 8,416 of 8,416 parameters are not finite',
    ):
        run(settings, tmp_path / 'run')
    assert not any(
        'eval_accuracy' in line
        for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
    )


@pytest.mark.parametrize('changes', [dict(), dict(on_device=True, iterations_per_call=2)])
def test_a_stage_that_reinforces_is_no_exception(tmp_path, changes):
    settings = config(
        'configs/grpo.py',
        'grpo',
        **changes,
        steps=2,
        optimizer__at=2,
        eval_every=0,
        checkpoint_every=0,
    )
    with settings.unlocked():
        settings.stages = ('grpo',)
    with pytest.raises(
        UserError, match='stage grpo, step 2: 8,416 of 8,416 parameters are not finite'
    ):
        run(settings, tmp_path / 'run')


@pytest.fixture
def spoilt(tmp_path, monkeypatch):
    """A run as older versions left it: finished, and its weights are no numbers."""
    with monkeypatch.context() as patch:
        patch.setattr(finite, 'check', lambda *arguments, **options: None)
        run(config(steps=1, optimizer__name='own_optimizers.spoils'), tmp_path / 'spoilt')
    return tmp_path / 'spoilt'


def test_what_a_finished_run_left_is_refused_wherever_it_is_read(spoilt, tmp_path, capsys):
    found = '8,416 of 8,416 parameters are not finite numbers: embed (576 of 576)'
    for settings in (
        quiet('configs/sft.py', init=f'checkpoint:{spoilt}'),
        keep(init=f'checkpoint:{spoilt}'),
    ):
        with pytest.raises(UserError) as error:
            run(settings, tmp_path / 'on')
        assert str(error.value).startswith(f'{spoilt}: stage train, checkpoint of step 1: {found}')
    for program, arguments in ((evaluate, ['--config.evaluation.task.size=4']), (sample, ['1+1='])):
        assert program.main(['--workdir', str(spoilt), '--skip_selfcheck', *arguments]) == 2
        error = capsys.readouterr().err
        assert (
            f'error: {spoilt}: stage train, checkpoint of step 1: {found}' in error
            and error.count('error') == 1
        )


def test_a_stage_behind_it_is_refused_too(spoilt, tmp_path):
    settings = config(steps=1)
    with settings.unlocked():
        settings.stages = ('train', 'train')
    (spoilt / 'config.json').write_text(to_json(settings))
    with pytest.raises(UserError, match='^stage train: its checkpoint of step 1: 8,416 of'):
        run(settings, spoilt)


def keep(**overrides):
    settings = quiet('configs/sft.py', **overrides)
    with settings.unlocked():
        settings.kept, settings.stages = dict(kind='keep'), ('kept',)
    return settings


def test_weights_that_a_cast_makes_infinite_are_refused(tmp_path):
    run(keep(), tmp_path / 'plain')
    of_run, params = trained(tmp_path / 'plain')
    large = params | {'embed': params['embed'].at[0, 0].set(7e4)}
    keeping.run(of_run, runs.stages_of(of_run.config, tmp_path / 'large')[0], lambda: large, None)
    (tmp_path / 'large' / 'config.json').write_text(
        (tmp_path / 'plain' / 'config.json').read_text()
    )
    init = f'checkpoint:{tmp_path / "large"}'
    run(
        keep(init=init, model__param_dtype='bfloat16', model__compute_dtype='bfloat16'),
        tmp_path / 'fits',
    )
    for narrow in (dict(model__param_dtype='float16'), dict(model__compute_dtype='float16')):
        with pytest.raises(
            UserError,
            match=r'config.init: .*large, in float\d\d: 1 of 8,416 parameters .*embed \(1 of 576\)',
        ):
            run(keep(init=init, **narrow), tmp_path / str(narrow))


def lora(dtype: str, **overrides):
    return quiet(
        'configs/lora.py', model__param_dtype=dtype, model__compute_dtype=dtype, **overrides
    )


def test_factors_over_a_bfloat16_base_train_and_resume_in_float32(tmp_path, capsys):
    run(lora('bfloat16'), tmp_path / 'run')
    error = capsys.readouterr().err
    warning = 'trains weights in bfloat16: what an update changes by less than 1/256 of a weight is rounded away. config.model.param_dtype'
    assert (
        error.count(f'warning: stage pretrain {warning}') == 1 and 'stage lora trains' not in error
    )
    _, params = trained(tmp_path / 'run')
    node = params['layers']['attention']['q']
    assert (node.a.dtype, node.b.dtype, node.base.dtype) == (jnp.float32, jnp.float32, jnp.bfloat16)
    arrays, _ = checkpoints(tmp_path / 'run')['01_lora/2']
    moments = [x for x in jax.tree.leaves(arrays['train']['optimizer']) if np.ndim(x)]
    assert len(moments) == 2 * 2 * 6 and {str(x.dtype) for x in moments} == {'float32'}
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        step = loop._Training._step
        patch.setattr(
            loop._Training,
            '_step',
            lambda self, n: step(self, n) if (self.stage.name, n) != ('lora', 2) else interrupt(),
        )
        run(lora('bfloat16'), tmp_path / 'killed')
    run(lora('bfloat16'), tmp_path / 'killed')
    for a, b in zip(
        jax.tree.leaves(params), jax.tree.leaves(trained(tmp_path / 'killed')[1]), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def interrupt():
    raise KeyboardInterrupt


def test_nothing_is_said_of_weights_that_keep_their_updates(tmp_path, capsys):
    run(quiet('configs/sft.py', model__compute_dtype='bfloat16'), tmp_path / 'run')
    assert 'rounded away' not in capsys.readouterr().err
    assert (ROOT / 'configs' / 'hf.py').read_text().count(
        "param_dtype='float32', compute_dtype='bfloat16'"
    ) == 1
