"""Rules on tokens say what the rules on text say, whatever a model may write."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from reasonjax import config as configs
from reasonjax.data.tokenizers import characters
from reasonjax.errors import UserError
from reasonjax.methods.rewards import accuracy
from reasonjax.sampling.sampler import Rollout
from reasonjax.sampling.text import completions
from reasonjax.tasks import addition, gsm8k
from reasonjax.tasks.on_tokens import answer_after, character_ids

ROOT = pathlib.Path(__file__).parents[2]
TOKENIZER = characters(None, None)
PAD, MASK, EOS, HASH = (TOKENIZER.ids[c] for c in '_M$#')
C = 32


def damaged(ids, rng):
    """A right answer, changed in one of many ways; the last one changes nothing."""
    ids, at, kind = list(ids), int(rng.integers(0, len(ids) + 1)), int(rng.integers(0, 12))
    mark = ids.index(HASH)
    inside = int(rng.integers(mark, len(ids)))
    if kind < 4:
        ids.insert((at, inside + 1, at, inside + 1)[kind], (HASH, HASH, PAD, MASK)[kind])
    elif kind == 4:
        ids[inside] = int(rng.integers(0, TOKENIZER.vocab_size))
    elif kind == 5:
        del ids[inside]
    elif kind == 6:
        ids.insert(inside + 1, int(rng.integers(0, TOKENIZER.vocab_size)))
    elif kind == 7:
        ids = ids[:at]
    elif kind == 8:
        ids = ids[mark + 1 :] + ids[mark:]
    elif kind == 9:
        ids = ids + [HASH] + ids[mark + 1 :]
    elif kind == 10:
        ids = rng.integers(0, TOKENIZER.vocab_size, at).tolist()
    return ids


def adversarial(rows, rng):
    """One completion of each row: lengths, ends and what lies behind the end are chosen as
    damagingly as the tokens."""
    # what lies behind the end does not count
    tokens = rng.integers(0, TOKENIZER.vocab_size, (len(rows), C))
    length, terminated = np.zeros(len(rows), np.int32), np.zeros(len(rows), bool)
    for i, row in enumerate(rows):
        text = row['completion'] if rng.random() < 0.5 else f'#{row["solution"]}'
        ids = damaged(TOKENIZER.encode(text), rng)[: C - 2]
        if rng.random() < 0.05:
            ids.insert(int(rng.integers(0, len(ids) + 1)), EOS)
        terminated[i] = rng.random() < 0.8 or not ids
        # EOS is no part of the text, the end of a stop sequence is.
        ids += [EOS if rng.random() < 0.9 else HASH + 1] * int(terminated[i])
        tokens[i, : len(ids)], length[i] = ids, len(ids)
    return tokens, length, terminated


@pytest.mark.parametrize('levels', [(1, 2, 3, 4), (5, 9, 15)])
def test_addition_on_tokens_is_addition_on_text(levels):
    """10,000 completions of all levels, each marked by the task, by the reward a config names for
    it, and on its tokens."""
    task, rng = addition(size=5000, levels=levels, seed=7), np.random.default_rng(0)
    # There is room for the working of four digits; of more, for the bare answer only.
    rows = [task.examples[i] for i in range(5000)]
    tokens, length, terminated = adversarial(rows, rng)
    rule = task.on_tokens.build(TOKENIZER, C)
    columns = [rule.columns(row) for row in rows]
    stacked = {name: np.stack([x[name] for x in columns]) for name in columns[0]}
    found = np.asarray(jax.jit(rule.reward)(tokens, length, terminated, stacked))
    none = np.zeros((len(rows), 1, C))
    texts = [
        group[0]
        for group in completions(
            Rollout(tokens[:, None], none, none, length[:, None], terminated[:, None]), TOKENIZER
        )
    ]
    wanted = [
        float(task.verify(t.text, row, t.terminated)['correct']) for t, row in zip(texts, rows)
    ]
    np.testing.assert_array_equal(found, np.asarray(wanted, np.float32))
    reward = configs.resolve(task.on_tokens.reward, 'rewards')
    solutions = [row['solution'] for row in rows]
    assert (
        reward(
            [row['prompt'] for row in rows],
            [t.text for t in texts],
            solution=solutions,
            terminated=list(terminated),
        )
        == wanted
    )
    assert 0.15 < np.mean(wanted) < 0.6
    # None of the traps is empty: right answers with padding or a mask in them, right texts that
    # were cut, right texts behind a second mark.
    right = found == 1
    special = np.isin(tokens, [PAD, MASK]) & (np.arange(C) < length[:, None])
    whole = np.array([t.text.partition('#')[2] == row['solution'] for t, row in zip(texts, rows)])
    several = np.array(
        [
            t.text.count('#') > 1 and t.text.endswith('#' + row['solution'])
            for t, row in zip(texts, rows)
        ]
    )
    assert (
        (right & special.any(1)).sum() > 20
        and (whole & ~terminated).sum() > 20
        and (several & ~right).sum() > 20
    )


def test_groups_share_a_column():
    """[P, G, C] tokens against columns [P, 1, ...], as a stage has them; a solution longer than a
    completion is never answered."""
    rule = answer_after('#', TOKENIZER, 6)
    rows = [{'solution': '05'}, {'solution': '12'}, {'solution': '1234567'}]
    columns = {
        name: np.stack([rule.columns(row)[name] for row in rows])[:, None]
        for name in ('solution', 'solution_length')
    }
    texts = [['#05$', '#12$', '##05$'], ['#05$', '#12$', '12#12$'], ['#12345', '#1234$', '$']]
    tokens = np.array([[(TOKENIZER.encode(t) + [PAD] * 6)[:6] for t in group] for group in texts])
    length = np.array([[len(t) for t in group] for group in texts])
    ended = np.array([[t.endswith('$') for t in group] for group in texts])
    assert rule.reward(tokens, length, ended, columns).tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]


def test_characters_that_no_token_is_are_never_answered():
    rule = answer_after('#', TOKENIZER, 4)
    columns = rule.columns({'solution': '1x'})
    said = np.array([HASH, TOKENIZER.ids['1'], EOS, PAD])
    assert rule.reward(said, np.int32(3), np.True_, columns) == 0


def test_what_cannot_be_checked_on_tokens_is_refused():
    class Pairs:
        vocab_size = 3

        def decode(self, ids):
            return ''.join(('', '1', '12')[i] for i in ids)

    with pytest.raises(UserError, match="'12' \\(2\\).* one token for each character"):
        character_ids(Pairs())
    with pytest.raises(UserError, match="no '@'"):
        answer_after('@', TOKENIZER, 4)
    for value in (float('nan'), [['1']], object()):
        with pytest.raises(UserError, match='column "solution"'):
            answer_after('#', TOKENIZER, 4).columns({'solution': value})


def test_a_row_without_solution_has_no_reward_as_on_the_host():
    rule = answer_after('#', TOKENIZER, 4)
    tokens = np.array([[HASH, EOS, PAD, PAD], [HASH, TOKENIZER.ids['1'], EOS, PAD]])
    length, ended = np.array([2, 3]), np.array([True, True])
    for row in ({'prompt': 'x'}, {'solution': ''}, {'solution': None}):
        assert np.isnan(rule.reward(tokens, length, ended, rule.columns(row))).all()
        assert accuracy(
            ['p'],
            ['#1'],
            [row.get('solution')],
            [True],
            extract='hash',
            equality='text',
            require_termination=True,
        ) == [None]
    for solution in (1, 1.0, ['1'], {'answer': '1'}):
        assert rule.reward(
            tokens, length, ended, rule.columns({'solution': solution})
        ).tolist() == [0, 1]


def test_tasks_are_imported_without_jax():
    """Reward workers import them, and have to start fast."""
    code = 'import sys, reasonjax.tasks; sys.exit("jax" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


def test_a_rule_that_needs_the_text_has_none(tmp_path):
    folder = tmp_path / 'gsm8k'
    folder.mkdir()
    (folder / 'test.jsonl').write_text('{"question": "1+1?", "answer": "#### 2"}\n')
    assert gsm8k(path=str(folder)).on_tokens is None
