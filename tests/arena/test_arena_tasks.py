"""Every task of the arena: texts fit, splits are apart, its rule says the same on tokens, and what
it stands beside looks different."""

import pytest

from reasonjax import tasks as functions
from reasonjax.arena import recipes, tasks
from reasonjax.data.tokenizers import characters
from reasonjax.errors import UserError


def rows(node, number):
    task = tasks._made(node | {'size': min(number, node['size'])})
    return task, [task.examples[i] for i in range(len(task.examples))]


@pytest.fixture(scope='module')
def tokenizer():
    return characters(None, None, alphabet=tasks.ALPHABET, pad='_', eos='$', mask='M')


@pytest.mark.parametrize('name', tasks.GROUPS['arena'])
def test_texts_fit_and_demonstrations_are_right(name, tokenizer):
    arena = tasks.ARENA[name]
    for knobs in (arena.warm, arena.train):
        task, found = rows(arena.node('train', 300, 0, **knobs), 300)
        for row in found:
            assert len(tokenizer.encode(row['prompt'])) <= arena.max_prompt_length
            assert len(tokenizer.encode_more(row['completion'])) < arena.max_completion_length
            if not row.get('noised'):
                assert task.verify(row['completion'], row, True)['correct']
    for of in ('test', 'ood', 'warm', 'validation'):
        if of != 'ood' or arena.ood is not None:
            _, found = rows(arena.exam(of), 100)
            assert max(len(row['prompt']) for row in found) <= arena.max_prompt_length
    assert task.on_tokens is not None, 'online stages take the rule that runs on tokens'


@pytest.mark.parametrize('name', tasks.GROUPS['arena'])
def test_what_is_asked_was_not_trained_on(name):
    arena = tasks.ARENA[name]
    trained = {
        row['prompt']
        for knobs in (arena.warm, arena.train)
        for row in rows(arena.node('train', 1000, 3, **knobs), 1000)[1]
    }
    for of in ('test', 'validation'):
        asked = {row['prompt'] for row in rows(arena.exam(of), 1000)[1]}
        assert asked and not asked & trained
    other = {row['prompt'] for row in rows(tasks.ARENA[arena.beside].exam('warm'), 200)[1]}
    assert not other & (trained | asked)


@pytest.mark.parametrize('name', tasks.GROUPS['arena'])
def test_an_exam_has_its_parts_in_order_and_each_rule_marks_its_own(name):
    arena, exam = tasks.ARENA[name], tasks.exam(arena=name, problems=5)
    found = [exam.examples[i] for i in range(len(exam.examples))]
    parts = ['test'] + ['ood'] * (arena.ood is not None) + [f'other:{arena.beside}']
    assert [row['part'] for row in found] == [part for part in parts for _ in range(5)]
    for row in found:
        assert (
            exam.verify(f'#{row["solution"]}', row, True)['correct']
            and not exam.verify('#', row, True)['correct']
        )
    assert exam.examples.fingerprint() != tasks.exam(arena=name, problems=4).examples.fingerprint()


def test_gsm8k_is_divided_and_needs_a_model(data_dir):
    arena = tasks.ARENA['gsm8k']
    prompts = {}
    for name in ('train', 'validation', 'test'):
        task = tasks._made(arena.node(name, 8000, 0, path=str(data_dir / 'gsm8k')))
        prompts[name] = {task.examples[i]['prompt'] for i in range(len(task.examples))}
    assert (
        5500 < len(prompts['train']) < 6500
        and 600 < len(prompts['validation']) < 900
        and len(prompts['test']) > 1300
    )
    assert (
        not prompts['train'] & prompts['validation']
        and not (prompts['train'] | prompts['validation']) & prompts['test']
    )
    with pytest.raises(UserError, match='gsm8k needs a model'):
        recipes.warm_config('gsm8k')


def test_a_mixture_takes_turns():
    nodes = ({'name': 'chain', 'levels': (1,)}, {'name': 'tracking'})
    mixed, chain = (
        tasks.mixture(sources=nodes, size=5),
        functions.chain(split='train', size=3, levels=(1,)),
    )
    assert len(mixed.examples) == 5
    assert [mixed.examples[i]['prompt'] for i in (0, 2, 4)] == [
        chain.examples[i]['prompt'] for i in range(3)
    ]
    assert mixed.examples[1]['prompt'].startswith('G')
    with pytest.raises(UserError, match='mixture: .*name one task'):
        mixed.verify('', {}, True)


def test_names_of_tasks():
    assert tasks.find('arena') == list(tasks.GROUPS['arena']) and tasks.find(
        'knights, chain,arena'
    )[:2] == ['knights', 'chain']
    with pytest.raises(UserError, match='--tasks: .*Known: '):
        tasks.find(' ,')


def test_all_recipes_of_a_task_learn_alike(tmp_path):
    """Data, batch, steps and learning rate are the task's; objective, corruption and adapter are
    the recipe's."""
    warm = tmp_path / 'warm'
    warm.mkdir()
    (warm / 'config.json').write_text(recipes.configs.to_json(recipes.warm_config('chain')))
    plain, masked, low = (
        recipes.retargeted(recipes.find(name)[0], 'chain', 3, warm)
        for name in ('sft', 'masked_thought', 'lora@lora')
    )
    stages = [c[c.stages[0]] for c in (plain, masked, low)]
    for key in ('steps', 'batch_size', 'learning_rate'):
        assert len({str(stage[key]) for stage in stages}) == 1, key
    assert len({str(stage.data.source) for stage in stages}) == 1
    assert [stage.corruption.name for stage in stages] == ['none', 'masked_thought', 'none']
    assert [stage.adapter.name for stage in stages] == ['none', 'none', 'lora']
    for c in (plain, masked, low):
        assert (
            c.seed == 3
            and c.init == f'checkpoint:{warm}'
            and {key: c.model[key] for key in tasks.MODEL} == tasks.MODEL
        )
