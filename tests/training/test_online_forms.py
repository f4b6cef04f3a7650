"""Online runs whose batches are laid out differently learn the same; a reference under an adapter
costs no memory."""

import jax
import numpy as np
import pytest
from small_runs import install_rewards, quiet, records
from toys import assert_trees_close

from reasonjax.errors import UserError
from reasonjax.training import loop
from reasonjax.training import run as runs
from reasonjax.training.run import run, trained

COMMON = dict(
    stages="('grpo',)",
    grpo__steps=2,
    grpo__num_prompts=4,
    grpo__num_generations=4,
    grpo__minibatches=2,
    grpo__accumulation=2,
    grpo__objective__beta=0.1,
    grpo__reward_workers=0,
    grpo__learning_rate__peak=0.01,
    grpo__learning_rate__warmup_steps=0,
    grpo__rewards__accuracy__name='toy_rewards.digits',
    grpo__max_completion_length=24,
)


def test_padded_shared_and_packed_runs_agree(tmp_path, monkeypatch):
    install_rewards(tmp_path, monkeypatch)
    forms = {
        'shared': {},
        'padded': dict(grpo__share_prompts=False),
        'packed': dict(grpo__packing=True),
    }
    for name, changes in forms.items():
        run(quiet('configs/grpo.py', **COMMON | changes), tmp_path / name)
    wanted = records(tmp_path / 'padded')
    assert min(r['grad_norm'] for r in wanted) > 1e-3 and wanted[1]['kl'] > 1e-5
    for name in ('shared', 'packed'):
        for found, expected in zip(records(tmp_path / name), wanted, strict=True):
            measured = {key for key in found if not key.startswith('packing/')}
            assert measured == expected.keys()
            for key in measured - {'stage'}:
                np.testing.assert_allclose(
                    found[key], expected[key], rtol=2e-4, atol=2e-5, err_msg=f'{name}: {key}'
                )
        assert_trees_close(trained(tmp_path / name)[1], trained(tmp_path / 'padded')[1], atol=5e-4)
    packed = records(tmp_path / 'packed')
    assert all(0 < r['packing/fill'] <= 1 and 1 <= r['packing/shapes'] <= 2 for r in packed)


@pytest.mark.parametrize(
    'changes, said',
    [
        (
            dict(grpo__share_prompts=False, grpo__packing=True),
            'config.grpo.packing=True: .*set share_prompts=True',
        ),
        (dict(grpo__packing='maybe'), 'packing'),
    ],
)
def test_forms_that_cannot_be_stop_a_run(changes, said, tmp_path):
    with pytest.raises(UserError, match=said):
        run(quiet('configs/grpo.py', **COMMON | changes), tmp_path)


def test_a_reference_under_an_adapter_is_the_frozen_base_itself(tmp_path, monkeypatch):
    """Not a copy of it: each array of the model as the stage found it has the address of one that
    the adapted model reads."""
    install_rewards(tmp_path, monkeypatch)
    references, shared, fresh, dispatch = [], [], runs.fresh_params, loop._Training._dispatch

    def drawn(context):
        params = fresh(context)
        references.extend(jax.tree.leaves(params))
        return params

    def watched(training, step):
        dispatch(training, step)
        adapted = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(training.frozen)}
        shared.append([x.unsafe_buffer_pointer() in adapted for x in references])

    monkeypatch.setattr(runs, 'fresh_params', drawn)
    monkeypatch.setattr(loop._Training, '_dispatch', watched)
    one_update = dict(grpo__minibatches=1, grpo__accumulation=1)
    run(
        quiet(
            'configs/grpo.py',
            **COMMON | one_update,
            grpo__adapter__name='lora',
            grpo__filter__name='lora',
        ),
        tmp_path,
    )
    assert len(shared) == 2 and len(references) > 5 and all(map(all, shared))
    found = records(tmp_path)
    assert found[0]['kl'] < 1e-6 < found[1]['kl']
