"""What rows do to rewards in real stages: columns that clash, are missing or hold the unexpected,
forms of prompts, odd solutions."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_runs import install_rewards, quiet, records
from tokenizer_folders import write_folder

from reasonjax.errors import UserError
from reasonjax.reporting import report
from reasonjax.sampling.reward_pool import RewardPool, RewardSpec
from reasonjax.sampling.text import Completion
from reasonjax.training.rewards import list_columns, score_completions
from reasonjax.training.run import run

ROWS = [{'prompt': f'{a}+{b}=', 'solution': str(a + b)} for a in range(3) for b in range(4)]
REWARDS = """
import collections

given = []

def record(prompts, completions, completion_ids, terminated, solution, **columns):
    given.extend(zip(prompts, completions, solution, columns.get('level', [0] * len(prompts))))
    return [None if right is None else 0.1 * len(text) for text, right in zip(completions, solution)]

def needs_level(completions, level, **kwargs):
    return [None if x is None else float(x) + 0.1 * len(text) for x, text in zip(level, completions)]

def optional(completions, level=None, **kwargs):
    return [0.1 * len(text) + sum(x is not None for x in level or []) for text in completions]

def fills(completions, **kwargs):
    import numpy as np
    held = []
    while True:
        held.append(np.empty(2**24, np.uint8))

def silent(completions, **kwargs):
    return [None] * len(completions)
"""


@pytest.fixture(autouse=True)
def prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(report, 'write', lambda workdir: None)
    (tmp_path / 'row_rewards.py').write_text(REWARDS)
    install_rewards(tmp_path, monkeypatch)


def lines(path, rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path


def online(path, reward='accuracy', *, kind='grpo', source='jsonl', **overrides):
    """Two steps on rows of short sums, scored in this process; `kind` may be 'collect'."""
    settings = {
        'data__source__name': source,
        'data__source__path': path,
        'rewards__accuracy__name': reward,
        'reward_workers': 0,
    }
    changes = {f'{kind}__{name}': value for name, value in (settings | overrides).items()}
    location = 'configs/grpo.py' if kind == 'grpo' else 'configs/quickstart.py:filtered_sft'
    changes |= {} if kind == 'grpo' else {'collect__min_reward': -1.0}
    return quiet(location, stages=f"('{kind}',)", **changes)


@pytest.mark.parametrize('name', ['completions', 'prompts'])
def test_a_column_with_a_name_of_ours_stops_the_run_and_names_file_and_row(name, tmp_path):
    rows = [dict(row) for row in ROWS]
    rows[3][name] = ['3'] * 2
    with pytest.raises(
        UserError,
        match=rf'rows\.jsonl:4: column "{name}" has the name of what reward functions .*rename',
    ):
        run(online(lines(tmp_path / 'rows.jsonl', rows), steps=4), tmp_path / 'work')


def test_a_column_with_the_name_of_a_knob_names_file_and_row(tmp_path):
    path = lines(tmp_path / 'rows.jsonl', [row | {'extract': 'hash'} for row in ROWS])
    with pytest.raises(
        UserError, match=r'rows\.jsonl:\d+: rewards.accuracy: "extract" is a knob of .*rename'
    ):
        run(online(path), tmp_path / 'work')


def test_renamed_columns_reach_the_functions(tmp_path):
    import row_rewards

    rows = [
        row | {'completions': [row['solution']], 'completion': 'gold', 'level': 1} for row in ROWS
    ]
    config = online(lines(tmp_path / 'rows.jsonl', rows), 'row_rewards.record')
    config.unlock()
    config.grpo.data.transforms = (
        dict(name='rename', columns=dict(completions='steps', level='difficulty')),
    )
    row_rewards.given.clear()
    run(config, tmp_path / 'work')
    assert len(row_rewards.given) == 16 and all(level == 0 for *_, level in row_rewards.given)
    assert not any(text in ('gold', ['gold']) for _, text, *_ in row_rewards.given)


@pytest.mark.parametrize('kind', ['grpo', 'collect'])
def test_a_row_without_its_column_loses_its_own_reward_only(kind, tmp_path):
    import row_rewards

    rows = [dict(row) if i % 3 else {'prompt': row['prompt']} for i, row in enumerate(ROWS)]
    rows[1]['solution'] = None
    row_rewards.given.clear()
    run(
        online(lines(tmp_path / 'rows.jsonl', rows), 'row_rewards.record', kind=kind, steps=3),
        tmp_path / 'work',
    )
    assert len(row_rewards.given) == 24  # all rows once
    without = {row['prompt'] for row in rows if row.get('solution') is None}
    for prompt, _, solution, _ in row_rewards.given:
        assert (solution is None) == (prompt in without)
        assert solution is None or solution == str(sum(map(int, prompt[:-1].split('+'))))
    if kind == 'grpo':
        assert sum(r['rewards/accuracy/dropped'] for r in records(tmp_path / 'work')) == 2 * len(
            without
        )
        assert all(r['rewards/accuracy/mean'] is not None for r in records(tmp_path / 'work'))


def test_a_step_of_rows_without_solution_teaches_nothing_and_goes_on(tmp_path):
    rows = [{'prompt': row['prompt']} for row in ROWS[:4]] + ROWS[4:8]
    config = online(
        lines(tmp_path / 'rows.jsonl', rows), num_prompts=1, steps=8, data__overlong='error'
    )
    run(config, tmp_path / 'work')
    dropped = [r['rewards/accuracy/dropped'] for r in records(tmp_path / 'work')]
    assert sorted(dropped) == [0] * 4 + [2] * 4
    assert all(r['loss'] == 0 for r in records(tmp_path / 'work') if r['rewards/accuracy/dropped'])


def test_a_function_that_says_nothing_of_whole_rows_stops_the_run(tmp_path):
    with pytest.raises(UserError, match='stage grpo, step 1'):
        run(online(lines(tmp_path / 'rows.jsonl', ROWS), 'row_rewards.silent'), tmp_path / 'work')


@pytest.mark.parametrize(
    ('reward', 'row', 'message', 'kind'),
    [
        (
            'accuracy',
            {'solutions': '7'},
            'needs a column "solution", which no row .* has.*Did you mean "solutions".* are: ',
            'grpo',
        ),
        (
            'accuracy',
            {'solution': ''},
            'needs a column "solution", and no row of the data has a value in it. There',
            'grpo',
        ),
        (
            'row_rewards.needs_level',
            {'levl': 1},
            'row_rewards.needs_level needs a column "level", .*Did you mean "levl"',
            'collect',
        ),
        ('verified', {'answer': '7'}, 'needs a column "solution"', 'grpo'),
    ],
)
def test_a_column_that_no_row_has_is_an_error_before_anything_is_sampled(
    reward, row, message, kind, tmp_path, monkeypatch
):
    monkeypatch.setattr(RewardPool, 'score', None)
    path = lines(tmp_path / 'rows.jsonl', [{'prompt': '1+1='} | row] * 8)
    knobs = {'rewards__accuracy__task': 'chain'} if reward == 'verified' else {}
    with pytest.raises(UserError, match=f'rewards.accuracy: .*{message}'):
        run(online(path, reward, kind=kind, **knobs), tmp_path / 'work')


def test_a_column_that_one_late_row_has_is_enough(tmp_path):
    rows = [{'prompt': row['prompt']} for row in ROWS] + [ROWS[0] | {'level': 3}]
    run(
        online(lines(tmp_path / 'rows.jsonl', rows), 'row_rewards.needs_level', steps=3),
        tmp_path / 'work',
    )
    assert [r['rewards/accuracy/dropped'] for r in records(tmp_path / 'work')].count(8) >= 2


def test_an_optional_column_that_some_rows_have(tmp_path):
    rows = [row | ({'level': 1} if i % 2 else {}) for i, row in enumerate(ROWS)]
    run(
        online(lines(tmp_path / 'rows.jsonl', rows), 'row_rewards.optional', steps=3),
        tmp_path / 'work',
    )
    assert all(r['rewards/accuracy/errors'] == 0 for r in records(tmp_path / 'work'))


@pytest.mark.parametrize(
    ('solution', 'message'),
    [(float('nan'), 'found NaN'), ('x+1', 'no completion can be marked right with')],
)
def test_a_solution_that_cannot_be_read_names_file_and_row(solution, message, tmp_path):
    rows = [dict(row) for row in ROWS]
    rows[5]['solution'] = solution
    harness = dict(rewards__accuracy__extract='flexible', rewards__accuracy__equality='number')
    config = online(lines(tmp_path / 'rows.jsonl', rows), steps=4, **harness)
    with pytest.raises(UserError, match=rf'rows\.jsonl:6: column "solution": .*{message}'):
        run(config, tmp_path / 'work')


def test_parquet_rows_with_dates_bytes_and_numbers(tmp_path):
    """A column of dates, of bytes and of floats beside a solution: the run ends, and its table of
    completions is written."""
    import datetime
    import decimal

    others = {'raw': b'\xff', 'price': decimal.Decimal('1.50')}
    rows = [
        row | {'solution': float(row['solution']), 'level': datetime.date(2020, 1, 1 + i)} | others
        for i, row in enumerate(ROWS)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / 'rows.parquet')
    import row_rewards

    row_rewards.given.clear()
    run(
        online(tmp_path / 'rows.parquet', 'row_rewards.record', source='parquet'), tmp_path / 'work'
    )
    assert all(
        type(level) is datetime.date and type(solution) is float
        for _, _, solution, level in row_rewards.given
    )
    dated = [row | {'solution': datetime.date(2020, 1, 2)} for row in rows]
    pq.write_table(pa.Table.from_pylist(dated), tmp_path / 'dated.parquet')
    run(online(tmp_path / 'dated.parquet', source='parquet'), tmp_path / 'dated')
    table = pq.read_table(
        tmp_path / 'dated' / 'completions' / 'completions_00001.parquet'
    ).to_pylist()
    assert '2020-01-02' in table[0]['solution']


def test_solutions_of_other_forms_go_through_a_whole_run(tmp_path):
    forms = [['3'], {'ground_truth': '3'}, 3.0, '#### 3', 10**30, True, 'The answer is 3.', '3']
    rows = [{'prompt': '1+2=', 'solution': solution} for solution in forms]
    run(online(lines(tmp_path / 'rows.jsonl', rows)), tmp_path / 'work')
    assert all(
        r['rewards/accuracy/errors'] == r['rewards/accuracy/dropped'] == 0
        for r in records(tmp_path / 'work')
    )


GAPS = """
from reasonjax.data import sources
from reasonjax.tasks import Task, addition
from reasonjax.tasks.exact import ON_TOKENS, verify

def gaps(*, solution: str = 'none'):
    examples = addition(size=16, levels=(2,)).examples
    rows = [dict(examples[i]) for i in range(16)]
    for i in range(0, 16, 3):
        rows[i]['solution'] = {'none': None, 'nan': float('nan')}[solution]
    return Task('gaps', sources.memory(rows=rows, label='gaps'), verify, ON_TOKENS)
"""


@pytest.mark.parametrize('on_device', [False, True])
def test_rows_without_solution_on_the_host_and_on_the_device(on_device, tmp_path):
    (tmp_path / 'gap_task.py').write_text(GAPS)
    rule = dict(
        grpo__rewards__accuracy__extract='hash',
        grpo__rewards__accuracy__equality='text',
        grpo__reward_workers=0,
    )
    rule |= dict(
        grpo__rewards__accuracy__require_termination=True, grpo__on_device=on_device, grpo__steps=4
    )
    run(
        quiet(
            'configs/grpo.py', stages="('grpo',)", grpo__data__source__name='gap_task.gaps', **rule
        ),
        tmp_path / 'work',
    )
    assert sum(r['rewards/accuracy/dropped'] for r in records(tmp_path / 'work')) == 2 * 6
    bad = dict(grpo__data__source__name='gap_task.gaps', grpo__data__source__solution='nan')
    with pytest.raises(UserError, match=r'gaps:\d+: column "solution": .*NaN'):
        run(quiet('configs/grpo.py', stages="('grpo',)", **rule, **bad), tmp_path / 'bad')


# Without a model: completions that are given


def said(*texts):
    return [Completion(text, [1] * len(text), len(text), True) for text in texts]


CHAT = [{'role': 'user', 'content': '1+1='}]


@pytest.mark.parametrize('order', [(0, 1), (1, 0)])
def test_each_row_keeps_the_form_of_its_prompt(order):
    """Texts for a text, messages for a conversation, whichever comes first."""
    rows = [
        [{'prompt': '1+1=', 'solution': '2'}, {'prompt': CHAT, 'solution': '2'}][i] for i in order
    ]
    seen = []

    def record(prompts, completions, **kwargs):
        seen.extend(zip(prompts, completions))
        return [0.0] * len(prompts)

    pool = RewardPool({'right': RewardSpec('accuracy'), 'record': RewardSpec(record)}, workers=0)
    found = score_completions(pool, rows, [said('2', '3'), said('5', '#2')])
    assert found.values[:, 0].tolist() == [1, 0, 0, 1]
    for prompt, completion in seen:
        assert isinstance(prompt, str) == isinstance(completion, str)
        assert isinstance(completion, str) or completion[0]['role'] == 'assistant'


def test_samples_win_over_columns_and_missing_ones_are_none():
    pool = RewardPool({'right': RewardSpec('accuracy')}, workers=0)
    rows = [
        {
            'prompt': 'p',
            'solution': '2',
            'completion': '2',
            'completions': ['2', '2'],
            'terminated': True,
        },
        {'prompt': 'q'},
    ]
    assert list_columns(pool, rows) == {'solution'} == list_columns(pool, rows[1:])
    found = score_completions(pool, rows, [said('3', '2'), said('2', '2')])
    np.testing.assert_array_equal(found.total, [0, 1, np.nan, np.nan])
    assert found.counts['rewards/right/dropped'] == 2


OPENING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + "
    "'\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\nTHINK' }}{% endif %}"
)


@pytest.mark.parametrize(('think', 'reward'), [('<think>\n', 1.0), ('', 0.0)])
def test_a_template_that_opens_the_thoughts_counts_in_the_format(
    think, reward, tmp_path, monkeypatch
):
    """Whatever an untrained model says, 'x</think>y' is put in its place."""
    pytest.importorskip('transformers')
    from reasonjax.training import rollouts

    (tmp_path / 'tokenizer').mkdir()
    write_folder(tmp_path / 'tokenizer', template=OPENING.replace('THINK', think))
    monkeypatch.setattr(
        rollouts,
        'completions',
        lambda rollout, _: [said(*['x</think>y'] * 2) for _ in rollout.length],
    )
    path = lines(
        tmp_path / 'rows.jsonl',
        [{'prompt': [{'role': 'user', 'content': row['prompt']}]} for row in ROWS],
    )
    config = quiet(
        'configs/grpo.py',
        stages="('grpo',)",
        tokenizer__name='huggingface',
        tokenizer__path=tmp_path / 'tokenizer',
        grpo__data__source__name='jsonl',
        grpo__data__source__path=path,
        grpo__rewards__accuracy__name='format',
        grpo__reward_workers=0,
        grpo__data__max_prompt_length=96,
        grpo__data__overlong='error',
    )
    run(config, tmp_path / 'work')
    assert [r['rewards/accuracy/mean'] for r in records(tmp_path / 'work')] == [reward] * 2


@pytest.mark.parametrize('on_error', ['raise', 'drop'])
def test_a_function_that_fills_the_memory_is_a_failure_like_others(on_error, tmp_path):
    config = online(
        lines(tmp_path / 'rows.jsonl', ROWS),
        'row_rewards.fills',
        steps=1,
        reward_workers=1,
        reward_memory_limit=0.5,
        rewards_on_error=on_error,
    )
    message = (
        r'row_rewards.fills needs more than 0.5 GiB of memory \(reward_memory_limit\)'
        if on_error == 'raise'
        else 'no sample has'
    )
    with pytest.raises(UserError, match=message):
        run(config, tmp_path / 'work')


def test_the_memory_limit_is_checked(tmp_path):
    with pytest.raises(UserError, match=r'reward_memory_limit=0\.0: must be above 0'):
        run(
            online(lines(tmp_path / 'rows.jsonl', ROWS), reward_memory_limit='0.0'),
            tmp_path / 'work',
        )
