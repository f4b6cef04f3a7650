"""The reward that is a task's own rule."""

import pytest

from reasonjax import config as configs
from reasonjax.errors import UserError
from reasonjax.methods.rewards import verified
from reasonjax.sampling.reward_pool import RewardPool, RewardSpec
from reasonjax.tasks import addition, countdown, knights
from reasonjax.tasks.countdown import reaches

COMPLETIONS = ['2*8=16+4=20#2*8+4', '#8*2+4', '#2*8+4', '#4+2*8', '']
ENDED = [True, True, False, True, True]


def test_it_says_what_the_task_says():
    prompts = ['284>20:'] * 5
    assert verified(prompts, COMPLETIONS, ENDED, task='countdown') == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert verified(
        prompts, COMPLETIONS, ENDED, task='countdown', level=[3] * 5, solution=['x'] * 5
    ) == [1.0, 1.0, 0.0, 0.0, 0.0]
    said = [[{'role': 'assistant', 'content': text}] for text in COMPLETIONS]
    assert verified(prompts, said, ENDED, task='countdown') == [1.0, 1.0, 0.0, 0.0, 0.0]
    answers = ['#KKN', '#KNN']
    assert verified(['p'] * 2, answers, [True, True], task='knights', solution=['KKN', 'KKN']) == [
        1.0,
        0.0,
    ]
    assert verified(
        ['p'] * 2, ['#### 72', '#### 7'], [False, False], task='gsm8k', solution=['72', '72']
    ) == [1.0, 0.0]


@pytest.mark.parametrize('task', [addition, countdown, knights])
def test_demonstrations_of_a_task_are_rewarded(task):
    examples = task(size=20).examples
    rows = [examples[i] for i in range(20)]
    columns = {name: [row[name] for row in rows] for name in ('solution', 'level')}
    texts = [row['completion'] for row in rows]
    scores = verified(
        [row['prompt'] for row in rows], texts, [True] * 20, task=task.__name__, **columns
    )
    assert scores == [1.0] * 20
    others = texts[1:] + texts[:1]
    scores = verified(
        [row['prompt'] for row in rows], others, [True] * 20, task=task.__name__, **columns
    )
    assert 0.0 in scores


def test_a_pool_gives_it_the_columns_it_needs():
    node = countdown(size=1).on_tokens.reward
    assert configs.resolve(node, 'rewards').func is verified
    pool = RewardPool(
        {'right': RewardSpec('verified', {'task': 'countdown'}, weight=2.0)}, workers=0
    )
    columns = {'terminated': ENDED[:4], 'level': [3] * 4, 'completion_ids': [[1]] * 4}
    found = pool.score(
        ['284>20:', '284>20:', '284>64:', '284>64:'], COMPLETIONS[:4], columns, group=2
    )
    assert found.total.tolist() == [2.0, 2.0, 0.0, 0.0] and not reaches('2*8+4', [2, 8, 4], 64)


def test_unknown_tasks_and_missing_columns():
    with pytest.raises(
        UserError, match='unknown task "countdwn".*Did you mean "countdown".*chain, countdown'
    ):
        verified(['p'], ['#1'], [True], task='countdwn')
    for name in ('base', 'Task', 'os', '__name__', ''):
        with pytest.raises(UserError, match=f'verified: .*"{name}"'):
            verified(['p'], ['#1'], [True], task=name)
    with pytest.raises(
        UserError, match='chain reads the column "solution".*Did you mean "solutions".*prompt'
    ):
        verified(['p'], ['#1'], [True], task='chain', solutions=['1'])
    with pytest.raises(ValueError):
        verified(['284>20:'], COMPLETIONS, ENDED, task='countdown')
