"""A context and its continuation as lm-evaluation-harness splits them, where the tokenizer merges
across the border."""

import json
import types

import numpy as np
import pytest
import small_runs
import yaml
from test_harness import requests
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from reasonjax.training.context import fresh_params, open_run

lm_eval = pytest.importorskip('lm_eval')
adapter = pytest.importorskip('lm_eval.models.huggingface')
onnx = pytest.importorskip('lm_eval.models._onnx_base')

from lm_eval.tasks import TaskManager  # noqa: E402

from reasonjax.interop.lm_eval import Harness  # noqa: E402

# "ab" is one token, and so is "a b": of ("a", "b") and ("a ", "b") nothing is left to score.
PAIRS = [
    ('a', 'b'),
    ('a', 'c'),
    ('ca', 'b'),
    ('a ', 'b'),
    ('', 'b'),
    ('ab', 'c'),
    ('a', ' b'),
    ('c', 'ab'),
    ('', '</s>'),
]


@pytest.fixture(scope='module')
def merging(tmp_path_factory):
    folder = tmp_path_factory.mktemp('merging')
    vocabulary = {'a': 0, 'b': 1, 'c': 2, ' ': 3, 'ab': 4, ' b': 5, 'a b': 6, '\n': 7, '</s>': 8}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[('a', 'b'), (' ', 'b'), ('a', ' b')]))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token='</s>', bos_token=None)
    tokenizer.save_pretrained(folder)
    config = small_runs.quiet(
        'configs/sft.py', tokenizer__name='huggingface', tokenizer__path=str(folder)
    )
    of_run = open_run(config, folder, active=False)
    return of_run, fresh_params(of_run), tokenizer


def test_what_merges_into_its_context_scores_nothing_and_the_rest_goes_on(merging, caplog):
    """Classes of the harness that do not give up on such a pair (HFLM asserts that there is none)
    give it 0, most likely."""
    of_run, params, tokenizer = merging
    (expected,) = onnx._ONNXLMBase._loglikelihood_tokens(
        types.SimpleNamespace(), [(('a', 'b'), [0], [])], disable_tqdm=True
    )
    assert expected == (0.0, True)
    harness = Harness(of_run, params, batch_size=4)
    theirs = types.SimpleNamespace(
        backend='causal',
        tokenizer=tokenizer,
        prefix_token_id=8,
        add_bos_token=False,
        tok_encode=lambda text, **options: tokenizer.encode(text, add_special_tokens=False),
    )
    for pair in PAIRS:
        assert not pair[0] or harness._encode_pair(*pair) == adapter.HFLM._encode_pair(
            theirs, *pair
        )
    results = harness.loglikelihood(requests('loglikelihood', *PAIRS))
    empty = [
        i
        for i, (a, b) in enumerate(PAIRS)
        if (a and not harness._encode_pair(a, b)[1]) or b == '</s>'
    ]
    assert len(empty) == 5 and [results[i] for i in empty] == [expected] * 5
    others = [i for i in range(len(PAIRS)) if i not in empty]
    alone = [harness.loglikelihood(requests('loglikelihood', PAIRS[i]))[0] for i in others]
    np.testing.assert_allclose(
        [results[i][0] for i in others], [logprob for logprob, _ in alone], atol=1e-5
    )
    assert all(logprob < 0 for logprob, _ in alone)
    assert '5 of 9 continuations add no token to their context and score 0' in caplog.text
    assert harness.get_model_info()['without_tokens'] == 5


def test_an_evaluation_with_such_a_pair_is_finished(merging, tmp_path):
    of_run, params, _ = merging
    rows = [
        {'q': 'a', 'choices': ['b', 'c'], 'label': 0},
        {'q': 'c', 'choices': ['b', 'c'], 'label': 1},
    ]
    (tmp_path / 'merge.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    task = {
        'task': 'merge',
        'dataset_path': 'json',
        'test_split': 'test',
        'output_type': 'multiple_choice',
        'doc_to_text': '{{q}}',
        'dataset_kwargs': {
            'data_files': {'test': str(tmp_path / 'merge.jsonl')},
            'cache_dir': str(tmp_path / 'cache'),
        },
        'doc_to_choice': '{{choices}}',
        'doc_to_target': 'label',
        'target_delimiter': '',
        'metric_list': [{'metric': 'acc'}],
    }
    (tmp_path / 'merge.yaml').write_text(yaml.safe_dump(task))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = lm_eval.simple_evaluate(
        model=Harness(of_run, params), tasks=['merge'], task_manager=manager, bootstrap_iters=0
    )
    assert results['samples']['merge'][0]['acc'] == 1.0  # 0 is more likely than anything
    assert results['config']['without_tokens'] == 1
