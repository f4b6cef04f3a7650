"""What all generated tasks are held to: completions of all kinds, marked on the host and on
tokens."""

import jax
import numpy as np

from reasonjax import config as configs
from reasonjax.data.tokenizers import characters
from reasonjax.sampling.sampler import Rollout
from reasonjax.sampling.text import completions


def tokenizer_of(text):
    """A token for each character of `text`, and for padding, end and mask."""
    return characters(None, None, alphabet='_.$M' + ''.join(dict.fromkeys(text)))


def damaged(ids, mark, rng, tokenizer, usual):
    """A right completion, changed in one of many ways; the last ones change nothing that counts."""
    ids, kind, any_token = list(ids), int(rng.integers(15)), int(rng.integers(tokenizer.vocab_size))
    usual_token = int(rng.choice(usual))
    behind = ids.index(mark) + 1
    inside = int(rng.integers(behind, len(ids)))
    at = int(rng.integers(len(ids) + 1))
    if kind == 0:
        ids[inside] = usual_token
    elif kind == 1:
        ids.insert(inside, usual_token)
    elif kind == 2:
        ids.append(usual_token)
    elif kind == 3:
        del ids[inside]
    elif kind == 4:
        other = int(rng.integers(behind, len(ids)))
        ids[inside], ids[other] = ids[other], ids[inside]
    elif kind == 5:
        ids.insert(at, mark)
    elif kind == 6:
        ids = ids[:at]
    elif kind == 7:
        ids += [mark, *ids[behind:]]
    elif kind == 8:
        ids = ids[behind:]
    elif kind == 9:
        ids = rng.choice(usual, at).tolist()
    elif kind == 10:
        ids = [mark, *rng.integers(0, tokenizer.vocab_size, at).tolist()]
    elif kind == 11:
        ids.insert(at, tokenizer.pad_id)
    ids[len(ids) :] = [any_token] * (rng.random() < 0.05)
    return ids


def marks(task, rows, texts, tokenizer, rng, max_tokens):
    """Marks of damaged texts, one for each row: by `verify`, by the reward that a config names, and
    on tokens; and what was said.

    What stands behind the end of a completion is random, one in five is cut off, and some hold an
    end of sequence inside.
    """
    N, usual = len(rows), [i for i in range(tokenizer.vocab_size) if tokenizer.decode([i])]
    tokens = rng.integers(0, tokenizer.vocab_size, (N, max_tokens))
    length, terminated = np.zeros(N, np.int32), rng.random(N) < 0.8
    for i, text in enumerate(texts):
        ids = damaged(tokenizer.encode(text), tokenizer.ids['#'], rng, tokenizer, usual)[
            : max_tokens - 2
        ]
        if rng.random() < 0.05:
            ids.insert(int(rng.integers(len(ids) + 1)), tokenizer.eos_ids[0])
        terminated[i] |= not ids
        ids += [tokenizer.eos_ids[0]] * int(terminated[i])
        tokens[i, : len(ids)], length[i] = ids, len(ids)
    rule = task.on_tokens.build(tokenizer, max_tokens)
    columns = [rule.columns(row) for row in rows]
    stacked = {name: np.stack([x[name] for x in columns]) for name in columns[0]}
    on_tokens = np.asarray(jax.jit(rule.reward)(tokens, length, terminated, stacked))
    none = np.zeros((N, 1, max_tokens))
    said = [
        group[0]
        for group in completions(
            Rollout(tokens[:, None], none, none, length[:, None], terminated[:, None]), tokenizer
        )
    ]
    verified = [
        float(task.verify(t.text, row, t.terminated)['correct']) for t, row in zip(said, rows)
    ]
    others = {
        name: [row[name] for row in rows]
        for name in rows[0]
        if name not in ('prompt', 'completion')
    }
    reward = configs.resolve(task.on_tokens.reward, 'rewards')
    rewarded = reward(
        [row['prompt'] for row in rows],
        [t.text for t in said],
        terminated=terminated.tolist(),
        **others,
    )
    return verified, rewarded, on_tokens.tolist(), [t.text for t in said], terminated
