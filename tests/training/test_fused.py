"""Steps as one program: what the staged path gives, whatever is compiled together, however often it
is disturbed."""

import itertools

import numpy as np
import pytest
from small_runs import (
    checkpoints,
    crash,
    crash_in_update,
    install_rewards,
    left_behind,
    quiet,
    records,
)
from toys import assert_trees_close, assert_trees_equal

from reasonjax.data import pipeline
from reasonjax.errors import Stopped, UserError
from reasonjax.reporting import report
from reasonjax.tracking.metrics import Writer
from reasonjax.training import fused, loop, stopping
from reasonjax.training.checkpoint import Checkpoints
from reasonjax.training.context import open_run, stages_of
from reasonjax.training.run import run, trained

# A task of the user's own. Its rewards tell an untrained model's completions apart, and need the
# row: the marks of a digit that the solution begins with count more. Whole numbers, so that both
# ways are exact.
TASK = """
from reasonjax.tasks import OnTokens, Task, TokenRule, addition

def marks(prompts, completions, solution, **kwargs):
    return [float(sum(map(str.isdigit, text)) + 5 * text.count(gold[0]) - len(text)) for text, gold in zip(completions, solution)]

def on_tokens(tokenizer, max_tokens):
    import jax.numpy as jnp
    text = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    worth = jnp.asarray([float(c.isdigit()) - len(c) for c in text])

    def reward(tokens, length, terminated, columns):
        each = worth[tokens] + 5.0 * (tokens == columns['first'][..., None])
        return jnp.where(jnp.arange(max_tokens) < length[..., None], each, 0.0).sum(-1) + columns['bad']

    def of_row(row):
        return {'first': tokenizer.encode(row['solution'][0])[0], 'bad': float('inf') if row.get('bad') else 0.0}

    return TokenRule(of_row, reward)

def counting(*, split='train', size, levels=(1, 2), seed=0):
    task = addition(split=split, size=size, levels=levels, seed=seed)
    return Task('counting', task.examples, task.verify, OnTokens({'name': 'toy_task.marks'}, on_tokens))
"""


@pytest.fixture(scope='module', autouse=True)
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp('task')
    (folder / 'toy_task.py').write_text(TASK)
    with pytest.MonkeyPatch.context() as patch:
        install_rewards(folder, patch)
        patch.setattr(report, 'write', lambda workdir: None)
        yield


def compile_once(monkeypatch):
    """From here on, the runs of one config share the program of their steps, as far as a process
    can tell."""
    real, programs = loop.compile_update, []

    def compiled(*arguments):
        if not programs:
            programs.append(real(*arguments))
        return programs[0]

    monkeypatch.setattr(loop, 'compile_update', compiled)


def config(**overrides):
    """An online stage alone, from fresh weights. SGD, because Adam makes rounding errors of
    gradients near zero as large as the rate."""
    common = dict(
        data__source__name='toy_task.counting',
        rewards__accuracy__name='toy_task.marks',
        reward_workers=0,
        steps=4,
        checkpoint_every=0,
        optimizer__name='sgd',
        learning_rate__peak=0.3,
        learning_rate__warmup_steps=0,
        eval_every=0,
        log_completions_every=2,
    )
    return quiet(
        'configs/grpo.py',
        stages="('grpo',)",
        **{f'grpo__{name}': x for name, x in (common | overrides).items()},
    )


UPDATES = dict(
    minibatches=2,
    num_iterations=2,
    accumulation=2,
    objective__beta=0.1,
    objective__loss_type='dr_grpo',
    mask_truncated_completions=True,
)
OTHERS = dict(
    prompts_at_once=2,
    rewards__accuracy__weight=0.5,
    data__max_prompt_length=8,
    data__overlong='drop',
)


@pytest.mark.parametrize('knobs, together', [(OTHERS, 1), (UPDATES, 2)], ids=['one', 'updates'])
def test_one_program_equals_the_stages(knobs, together, tmp_path):
    """Whatever the number of updates, micro-batches, passes and steps a call: tokens and rewards
    are equal, the rest to rounding."""
    run(config(**knobs), tmp_path / 'staged')
    run(config(on_device=True, iterations_per_call=together, **knobs), tmp_path / 'program')
    assert_same_to_rounding(tmp_path / 'program', tmp_path / 'staged')
    assert all(r['grad_norm'] > 0 and 0 < r['reward_std'] for r in records(tmp_path / 'staged'))


def assert_same_to_rounding(workdir, staged):
    ours, theirs = left_behind(workdir), left_behind(staged)
    assert [r.keys() for r in ours['metrics']] == [r.keys() for r in theirs['metrics']]
    for one, other in zip(ours['metrics'], theirs['metrics']):
        for name in one.keys() - {'stage', 'nonfinite'}:
            values = [np.nan if r[name] is None else r[name] for r in (one, other)]
            np.testing.assert_allclose(
                *values, rtol=1e-4, atol=1e-5, err_msg=f'{name}, step {one["step"]}'
            )
    assert (
        ours['completions'].keys() == theirs['completions'].keys() and len(ours['completions']) == 2
    )
    for name, table in ours['completions'].items():
        for one, other in zip(table, theirs['completions'][name], strict=True):
            np.testing.assert_allclose(
                one.pop('advantage'), other.pop('advantage'), rtol=1e-5, atol=1e-6
            )
            assert one == other
    assert_trees_close(trained(workdir)[1], trained(staged)[1], atol=1e-5)


def on_device(**overrides):
    return config(on_device=True, iterations_per_call=2, **overrides)


def test_a_disturbed_run_ends_as_one_that_was_left_alone(tmp_path, monkeypatch):
    """Killed before a call, between its batches, after its table and after a save, then asked to
    stop: the same to the last bit."""
    compile_once(monkeypatch)
    calm = on_device(steps=8, checkpoint_every=4, log_completions_every=1, **UPDATES)
    run(calm, tmp_path / 'alone')
    workdir = tmp_path / 'disturbed'
    for death in [
        crash_in_update(2),  # before there is any checkpoint
        crash(Writer, 'completions', 3, after=True),  # of a call that is not saved
        crash(Checkpoints, 'save', after=True),  # of step 4
        crash(pipeline.Batches, '__next__', 2),  # between the batches of one call
    ]:
        with death:
            run(calm, workdir)
    with (
        monkeypatch.context() as patch,
        pytest.raises(Stopped, match='step 6 of 8 is done and saved'),
    ):
        patch.setattr(stopping, 'asked', lambda: True)
        run(calm, workdir)
    run(calm, workdir)
    one, other = left_behind(workdir), left_behind(tmp_path / 'alone')
    for name in one:
        assert one[name] == other[name], name
    assert len(one['completions']) == 8
    ours, theirs = checkpoints(workdir), checkpoints(tmp_path / 'alone')
    for name in theirs:
        assert_trees_equal(ours[name][0], theirs[name][0])
        assert ours[name][1] == theirs[name][1], name
    assert_trees_equal(trained(workdir)[1], trained(tmp_path / 'alone')[1])


@pytest.fixture
def poison(monkeypatch):
    """`poison({3})` gives the prompts of the third batch a reward that is not finite."""
    real = pipeline.Batches.__next__

    def set_(wrong):
        count = itertools.count(1)

        def next_(batches):
            batch = real(batches)
            bad = next(count) in wrong
            return batch | {'rows': [row | {'bad': bad} for row in batch['rows']]}

        monkeypatch.setattr(pipeline.Batches, '__next__', next_)

    return set_


def test_a_bad_stretch_is_left_behind_between_calls(poison, tmp_path, capfd):
    """Steps 4 to 6 are not finite: after the call of steps 5 and 6, back to step 2, the last
    checkpoint that a step was finite from."""
    poison({4, 5, 6})
    run(on_device(steps=8, checkpoint_every=2, keep_checkpoints=9, max_nonfinite=1), tmp_path)
    assert (
        'step 6: loss or gradient was not finite 3 steps in a row; weights and optimiser go back '
        'to the checkpoint of step 2' in (' '.join(capfd.readouterr().err.split()))
    )
    found = records(tmp_path)
    assert [r['skipped_updates'] for r in found] == [0, 0, 0, 1, 2, 3, 3, 3]
    assert [r['rollbacks'] for r in found] == [0] * 5 + [1] * 3
    states = {int(name.split('/')[1]): state for name, (state, _) in checkpoints(tmp_path).items()}
    assert_trees_equal(states[6]['params'], states[2]['params'])
    assert int(states[6]['train']['step']) == 6
    assert not np.array_equal(states[8]['params']['embed'], states[6]['params']['embed'])


def test_a_bad_stretch_that_ends_within_a_call_is_only_counted(poison, tmp_path):
    poison({1, 3})
    run(on_device(max_nonfinite=0), tmp_path)
    assert [(r['skipped_updates'], r['rollbacks']) for r in records(tmp_path)] == [
        (1, 0),
        (1, 0),
        (2, 0),
        (2, 0),
    ]


@pytest.mark.parametrize(
    'knobs, words',
    [
        (dict(iterations_per_call=3), ['iterations_per_call=3', 'grpo.steps=4', 'nearest: 2']),
        (
            dict(iterations_per_call=4, steps=8, checkpoint_every=6),
            ['grpo.checkpoint_every=6', 'nearest: 3'],
        ),
        (dict(iterations_per_call=0), ['iterations_per_call=0', 'at least 1']),
        (dict(on_device=False, iterations_per_call=2), ['iterations_per_call=2', 'on_device=True']),
        (
            dict(rewards__accuracy__name='toy_rewards.digits'),
            ['toy_rewards.digits', "dict(name='toy_task.marks')", 'on_device=False'],
        ),
        (
            dict(data__source__name='addition'),
            ['toy_task.marks', "extract='hash'", 'require_termination=True'],
        ),
        (dict(data__source__name='jsonl', data__source__path='{file}'), ['"jsonl"', 'on_tokens']),
        (dict(dynamic_sampling=2), ['dynamic_sampling=2', 'on_device']),
        (dict(packing=True), ['packing=True', 'on_device']),
        (dict(pipelined=True), ['pipelined=True', 'on_device']),
    ],
)
def test_what_cannot_be_one_program_is_refused(knobs, words, tmp_path):
    (tmp_path / 'rows.jsonl').write_text('{"prompt": "1+1=", "solution": "02"}\n')
    knobs = {
        name: x.format(file=tmp_path / 'rows.jsonl') if isinstance(x, str) else x
        for name, x in knobs.items()
    }
    with pytest.raises(UserError) as error:
        run(config(**dict(on_device=True) | knobs), tmp_path / 'work')
    for word in words:
        assert word in str(error.value)


def opened(tmp_path, **overrides):
    settings = quiet('configs/quickstart.py', stages="('grpo',)", grpo__on_device=True, **overrides)
    context = open_run(settings, tmp_path)
    return context, stages_of(settings, tmp_path)[0]


def test_the_quickstart_needs_only_the_flag(tmp_path):
    """Its reward is the one that the addition task checks on tokens."""
    context, stage = opened(tmp_path)
    fused.check(stage.config, stage.name)
    found = fused.reward_of(context, stage)
    ids = [*context.tokenizer.encode('+#0545'), context.tokenizer.eos_ids[0], 0]
    marked = found.rule.reward(
        np.array(ids), np.int32(7), np.True_, found.rule.columns({'solution': '0545'})
    )
    assert (found.name, found.weight, float(marked)) == ('accuracy', 1.0, 1.0)


def test_a_tokenizer_whose_tokens_are_no_characters_is_refused(tmp_path):
    with pytest.raises(
        UserError, match='config.grpo.on_device: .*one token for each character.* on_device=False'
    ):
        fused.reward_of(
            *opened(tmp_path, tokenizer__name='sentencepiece', tokenizer__vocab_size=276)
        )
