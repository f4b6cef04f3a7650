"""Completions that a rule on tokens might mark otherwise than the rule on text, for any task whose
answers stand after '#'."""

import jax
import numpy as np

from reasonjax import config as configs
from reasonjax.data.tokenizers import characters
from reasonjax.sampling.sampler import Rollout
from reasonjax.sampling.text import completions

SPECIAL = '_.$M'


def tokenizer(text):
    """The shared vocabulary with a task's characters: padding, a character no task uses, the end of
    sequence and the mask come first."""
    return characters(None, None, alphabet=SPECIAL + text)


def damaged(ids, special, vocab_size, rng):
    """A right answer, changed in one of many ways; a third of the time not at all."""
    ids, at, kind = list(ids), int(rng.integers(0, len(ids) + 1)), int(rng.integers(0, 15))
    mark = ids.index(special['#'])
    inside = int(rng.integers(mark, len(ids)))
    if kind < 3:
        ids.insert((at, inside + 1, inside + 1)[kind], special['##_'[kind]])
    elif kind == 3:
        ids.insert(at, special['M'])
    elif kind == 4:
        ids[inside] = int(rng.integers(0, vocab_size))
    elif kind == 5:
        del ids[inside]
    elif kind == 6:
        ids.insert(inside + 1, int(rng.integers(0, vocab_size)))
    elif kind == 7:
        ids = ids[:at]
    elif kind == 8:
        ids = ids + [special['#']] + ids[mark + 1 :]
    elif kind == 9:
        ids = rng.integers(0, vocab_size, at).tolist()
    return ids


def check_on_tokens(task, rows, alphabet, number=10_000, seed=0):
    """Marks `number` damaged completions by the task, by the reward that a config names for it, and
    on tokens; all three must agree."""
    made, rng = tokenizer(alphabet), np.random.default_rng(seed)
    special = {c: made.ids[c] for c in '#_M$'}
    rows = [rows[i % len(rows)] for i in range(number)]
    C = max(len(row['completion']) for row in rows) + 4
    # what lies behind the end does not count
    tokens = rng.integers(0, made.vocab_size, (number, C))
    length, terminated = np.zeros(number, np.int32), np.zeros(number, bool)
    for i, row in enumerate(rows):
        text = row['completion'] if rng.random() < 0.5 else f'#{row["solution"]}'
        ids = damaged(made.encode(text), special, made.vocab_size, rng)[: C - 1]
        terminated[i] = rng.random() < 0.9 or not ids
        ids += [special['$']] * int(terminated[i])
        tokens[i, : len(ids)], length[i] = ids, len(ids)
    rule = task.on_tokens.build(made, C)
    columns = [rule.columns(row) for row in rows]
    stacked = {name: np.stack([x[name] for x in columns]) for name in columns[0]}
    found = np.asarray(jax.jit(rule.reward)(tokens, length, terminated, stacked))
    none = np.zeros((number, 1, C))
    texts = [
        group[0]
        for group in completions(
            Rollout(tokens[:, None], none, none, length[:, None], terminated[:, None]), made
        )
    ]
    wanted = [
        float(task.verify(t.text, row, t.terminated)['correct']) for t, row in zip(texts, rows)
    ]
    np.testing.assert_array_equal(found, np.asarray(wanted, np.float32))
    reward = configs.resolve(task.on_tokens.reward, 'rewards')
    said = [t.text for t in texts]
    assert (
        reward(
            [row['prompt'] for row in rows],
            said,
            solution=[r['solution'] for r in rows],
            terminated=list(terminated),
        )
        == wanted
    )
    assert 0.2 < np.mean(wanted) < 0.8
