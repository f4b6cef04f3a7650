"""GSM8K rows, template and marking."""

import json
import pathlib
import random

import jax
import pytest
import yaml

from reasonjax.errors import UserError
from reasonjax.tasks import gsm8k
from reasonjax.tasks.gsm8k import rows_to_prompt, verify

ANSWER = 'She has 48/2 = <<48/2=24>>24.\nIn all 48+1,176 = <<48+1176=1224>>1,224.\n#### 1,224'


@pytest.fixture
def folder(tmp_path):
    rows = [{'question': f'Number {i}?', 'answer': ANSWER, 'id': i} for i in range(3)]
    (tmp_path / 'train.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n')
    return tmp_path


def test_template():
    row = rows_to_prompt('How many?', ANSWER, keep_calculator=False)
    assert row == {
        'prompt': 'Question: How many?\nAnswer:',
        'completion': ' She has 48/2 = 24.\nIn all 48+1,176 = 1,224.\n#### 1,224',
        'solution': '1224',
    }
    assert rows_to_prompt('How many?', ANSWER, keep_calculator=True)['completion'] == ' ' + ANSWER
    with pytest.raises(UserError, match='#### number'):
        rows_to_prompt('How many?', 'Many.', keep_calculator=False)


def test_rows(folder):
    task = gsm8k(path=str(folder), split='train')
    assert task.name == 'gsm8k/train' and len(task.examples) == 3
    row = task.examples[1]
    assert row['question'] == 'Number 1?' and row['answer'] == ANSWER and row['id'] == 1
    assert row['prompt'] == 'Question: Number 1?\nAnswer:' and row['solution'] == '1224'
    assert task.examples.where(1).endswith('train.jsonl:2')
    assert len(gsm8k(path=str(folder), split='train', limit=2).examples) == 2
    kept = gsm8k(path=str(folder), split='train', keep_calculator=True)
    assert '<<' in kept.examples[0]['completion'] and '<<' not in row['completion']
    assert kept.examples.fingerprint() != task.examples.fingerprint()
    assert '0x' not in repr(task.examples)


@pytest.mark.parametrize(
    'completion,answer,strict,flexible',
    [
        (' It is 1224.\n#### 1224', '1224', True, True),
        (' #### 1,224', '1,224', True, True),
        (' so 1224', '1224', False, True),
        (' #### 7 or rather 1224', '7', False, True),
        (' #### 1224\n\nQuestion: Next?\nAnswer: 9 #### 9', '1224', True, True),
        (' #### 1224 for 3 of them', '1224', True, False),
        (' #### $1224', '$1224', False, True),
        (' #### 1224.</s> 5', '1224.', True, True),
        (' #### 1224.0', '1224.0', False, False),
        (' none', None, False, False),
    ],
)
@pytest.mark.parametrize('terminated', [True, False])
def test_marking(folder, completion, answer, strict, flexible, terminated):
    result = gsm8k(path=str(folder), split='train').verify(
        completion, {'solution': '1224'}, terminated
    )
    assert result == {'correct': strict, 'answer': answer, 'strict': strict, 'flexible': flexible}


def test_missing_folder_split_and_setting(folder, monkeypatch):
    monkeypatch.delenv('REASONJAX_DATA', raising=False)
    with pytest.raises(UserError, match='data.path.*REASONJAX_DATA'):
        gsm8k()
    with pytest.raises(UserError, match='no folder.*data.path'):
        gsm8k(path=str(folder / 'nowhere'))
    with pytest.raises(UserError, match='Did you mean "train"'):
        gsm8k(path=str(folder), split='trian')
    with pytest.raises(UserError, match='limit'):
        gsm8k(path=str(folder), split='train', limit=0)
    (folder / 'gsm8k').mkdir()
    (folder / 'train.jsonl').rename(folder / 'gsm8k' / 'test.jsonl')
    monkeypatch.setenv('REASONJAX_DATA', str(folder))
    assert len(gsm8k().examples) == 3


@pytest.mark.parametrize(
    'row,message',
    [
        ({'question': 'q', 'anser': 'a'}, 'line.jsonl:2: .*"answer".*Did you mean "anser"'),
        ({'question': 3, 'answer': 'a'}, 'line.jsonl:2: .*"question"'),
        ({'question': 'q', 'answer': 'no number'}, 'line.jsonl:2: .*#### number'),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    good = {'question': 'q', 'answer': '#### 1'}
    (tmp_path / 'line.jsonl').write_text(json.dumps(good) + '\n' + json.dumps(row) + '\n')
    source = gsm8k(path=str(tmp_path), split='line').examples
    assert source[0]['solution'] == '1'
    with pytest.raises(UserError, match=message):
        source[1]


def test_the_real_test_set_marks_its_own_answers_right(data_dir):
    task = gsm8k(path=str(data_dir / 'gsm8k'))
    assert len(task.examples) == 1319
    for i in range(0, 1319, 20):
        row = task.examples[i]
        result = task.verify(row['completion'], row, True)
        assert result['strict'] and result['flexible']
        assert not task.verify(row['completion'].replace('#### ', '#### 9'), row, True)['correct']


def harness_task():
    """The task gsm8k as lm-evaluation-harness has it."""
    lm_eval = pytest.importorskip('lm_eval')
    return yaml.safe_load(
        (pathlib.Path(lm_eval.__file__).parent / 'tasks' / 'gsm8k' / 'gsm8k.yaml').read_text()
    )


def marked_by_the_harness(texts, answer):
    """(strict, flexible) of each text by lm-evaluation-harness's own stop strings, filters and
    metric for its task gsm8k."""
    pytest.importorskip('lm_eval')
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_metric
    from lm_eval.filters import build_filter_ensemble
    from lm_eval.models.utils import postprocess_generated_text

    task = harness_task()
    (metric,) = task['metric_list']
    options = {
        name: value
        for name, value in metric.items()
        if name not in ('metric', 'aggregation', 'higher_is_better')
    }
    doc = {'answer': answer}
    instances = [
        Instance(request_type=task['output_type'], doc=doc, arguments=('',), idx=0) for _ in texts
    ]
    for instance, text in zip(instances, texts, strict=True):
        instance.resps = [
            postprocess_generated_text(text, task['generation_kwargs']['until'], None)
        ]
    for named in task['filter_list']:
        steps = [
            (step['function'], {k: v for k, v in step.items() if k != 'function'})
            for step in named['filter']
        ]
        build_filter_ensemble(named['name'], steps).apply(instances)
    equal = get_metric(metric['metric'])
    return [
        tuple(
            bool(
                equal(references=[answer], predictions=[i.filtered_resps[name]], **options)[
                    'exact_match'
                ]
            )
            for name in ('strict-match', 'flexible-extract')
        )
        for i in instances
    ]


PIECES = [
    '#### ',
    '#### ',
    '#### ',
    '####',
    '72',
    '72',
    '72',
    '1,224',
    '1,224',
    '1224',
    '-72',
    '72.',
    '72.0',
    '72.00',
    '72..',
    '072',
    '+72',
    '$72',
    '$1,224.',
    '7,2',
    '.72',
    '72%',
    '72 apples',
    '72/3',
    '1e3',
    '.',
    '..',
    ',',
    ',,',
    '$',
    '-',
    ' ',
    '\n',
    '=',
    'so',
    'is ',
    'Question:',
    'Question: 5',
    '</s>',
    '<|im_end|>',
    'QUESTION:',
    '\u0667\u0662',
    '#',
    '\\boxed{72}',
]
CRAFTED = [
    ' It is 72.\n#### 72',
    '#### 72.',
    '#### 72.0',
    '#### 1,224',
    '#### 1,224.',
    '#### $1,224',
    '$1,224.00',
    '#### 1224 dollars',
    '72%',
    '#### 72%',
    '#### 72 and #### 5',
    '#### 5 and #### 72',
    '#### -72',
    '-72',
    '- 72',
    '72-',
    '#### 72\n\nQuestion: How many?\nAnswer: 9',
    '5 Question: 72',
    '#### 72</s>9',
    '9<|im_end|>72',
    '72.',
    '72..',
    '#### 72..',
    '#### 072',
    '#### +72',
    '72.5',
    'none',
    '',
    '####',
    '#### ',
    '#### .',
    '#### ,',
    '#### ,72',
    '#### 72,',
    '7,2',
    '#### 1.224',
    '1,224,',
    '$72',
    '$ 72',
    '72 $',
    '#### 72/1',
    '72\xa0',
    '\t72',
    '#### \t72',
    '72 72',
    '72 $',
    '72 ...',
    '72 .',
    '72 , 5',
    '**72**',
    '#### **72**',
    '\\boxed{72}',
    '72.\n',
    '####72',
    '###72',
    '#### 72.#### 5',
    '1 224',
    '#### 1 224',
    '#### 1\xa0224',
    '7.2e1',
    '#### 72e0',
    '#### 0x48',
    '(72)',
    '72)',
    '#### (72)',
    '#### 72)',
    'x72y',
    '-$72',
    '$-72',
]


@pytest.mark.parametrize(
    ('answer', 'solution'),
    [('So 70 + 2.\n#### 72', '72'), ('#### 1,224', '1224'), ('It falls.\n#### -72', '-72')],
)
def test_marks_are_those_of_the_harness(answer, solution):
    rng = random.Random(0)
    texts = CRAFTED + [''.join(rng.choices(PIECES, k=rng.randint(1, 7))) for _ in range(5000)]
    assert rows_to_prompt('?', answer)['solution'] == solution
    wanted = marked_by_the_harness(texts, answer)
    marks = [verify(text, {'solution': solution}, True) for text in texts]
    differing = [
        (text, mark, want)
        for text, mark, want in zip(texts, marks, wanted)
        if (mark['strict'], mark['flexible']) != want
    ]
    assert not differing
    assert min(sum(strict for strict, _ in wanted), sum(flexible for _, flexible in wanted)) > 10
    assert any(strict and not flexible for strict, flexible in wanted) and any(
        flexible and not strict for strict, flexible in wanted
    )


def write_task(folder, data, **changes):
    """The harness's own task over local files."""
    task = harness_task()
    del task['dataset_name'], task['tag']
    files = {split: str(data / f'{split}.jsonl') for split in ('train', 'test')}
    task |= {
        'task': 'local',
        'dataset_path': 'json',
        'dataset_kwargs': {'data_files': files, 'cache_dir': str(folder / 'cache')},
    }
    (folder / 'local.yaml').write_text(yaml.safe_dump(task | changes))
    return task


def evaluate(model, folder, **options):
    """Results and, by problem, (prompt, answer, strict, flexible)."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    results = lm_eval.simple_evaluate(
        model=model, tasks=['local'], task_manager=manager, bootstrap_iters=0, **options
    )
    samples = sorted(
        results['samples']['local'],
        key=lambda sample: (sample['doc_id'], sample['filter'] != 'strict-match'),
    )
    pairs = zip(samples[::2], samples[1::2])
    return results['results']['local'], [
        (s['arguments'][0][0], s['resps'][0][0], s['exact_match'], f['exact_match'])
        for s, f in pairs
    ]


WAYS = ('{}', '{}.', '{}\n\nQuestion: 5', '{} or 7', '{}.0', '7\n{}', '{}</s> 7', '${}')


def test_planted_answers_are_marked_alike(data_dir, tmp_path):
    """Real problems, five shots, answers made from the true ones: the harness's task and our
    verifier give the same numbers."""
    lm_eval = pytest.importorskip('lm_eval')
    from reasonjax.interop.lm_eval import cut_at

    class Planted(lm_eval.api.model.LM):
        def generate_until(self, requests):
            self.said = []
            for i, request in enumerate(requests):
                answer = request.doc['answer']
                self.said.append(
                    WAYS[i % len(WAYS)].format(answer if i % 3 else answer.replace('#### ', ''))
                )
            return [
                cut_at(text, request.args[1]['until']) for text, request in zip(self.said, requests)
            ]

        loglikelihood = loglikelihood_rolling = None

    write_task(tmp_path, data_dir / 'gsm8k')
    results, samples = evaluate(model := Planted(), tmp_path, limit=96)
    task = gsm8k(path=str(data_dir / 'gsm8k'))
    marks = [task.verify(text, task.examples[i], True) for i, text in enumerate(model.said)]
    assert len(marks) == 96 and samples[0][0].count('Question:') == 6
    for place, name, filtered in (
        (2, 'strict', 'strict-match'),
        (3, 'flexible', 'flexible-extract'),
    ):
        assert [sample[place] for sample in samples] == [mark[name] for mark in marks]
        share = sum(mark[name] for mark in marks) / 96
        assert results[f'exact_match,{filtered}'] == pytest.approx(share) and 0.2 < share < 0.8


def test_a_model_scores_the_same_both_ways(data_dir, tmp_path):
    """The harness on a model and our evaluation of it: the same prompts, the same texts, the same
    numbers."""
    pytest.importorskip('lm_eval')
    from small_runs import quiet

    from reasonjax.interop.lm_eval import Harness, cut_at
    from reasonjax.training import context
    from reasonjax.training import evaluate as evaluation

    settings = write_task(tmp_path, data_dir / 'gsm8k', num_fewshot=0)['generation_kwargs']
    limits = dict(evaluation__max_prompt_length=512, evaluation__max_completion_length=24)
    config = quiet('configs/gsm8k.py', data__path=data_dir / 'gsm8k', **limits)
    run = context.open_run(config, tmp_path / 'run', active=False)
    params = context.fresh_params(run)
    # A fresh model says its last token again.
    params['layers'] = jax.tree.map(lambda x: 5 * x, params['layers'])
    found = evaluation.make(run)(params)
    results, samples = evaluate(Harness(run, params, max_gen_toks=24), tmp_path, limit=8)
    assert [prompt for prompt, *_ in samples] == [
        row['prompt'] for row in found.rows
    ] and found.dropped == 0
    texts = [answer.completion.text for answer in found.greedy]
    assert [text for _, text, *_ in samples] == [
        cut_at(text, settings['until']) for text in texts
    ] and len(set(texts)) > 4
    verdicts = [(answer.verdict['strict'], answer.verdict['flexible']) for answer in found.greedy]
    assert [(strict, flexible) for *_, strict, flexible in samples] == verdicts
    summary = evaluation.summarise(found)
    assert (results['exact_match,strict-match'], results['exact_match,flexible-extract']) == (
        summary['strict'],
        summary['flexible'],
    )
