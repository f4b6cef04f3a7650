"""The report: self-contained, escaped, and built from whatever a run has written so far."""

import json
import re

import pytest
from html_page import Page, addresses

from reasonjax.reporting import charts, pages, report
from reasonjax.tracking import metrics

EVIL = '</pre><script>alert(1)</script> & "$x_1$"'


def build(workdir):
    path = report.write(workdir)
    assert path == workdir / 'report.html'
    assert not list(workdir.glob('*.tmp'))
    return path.read_text(encoding='utf-8')


def evaluation(accuracy):
    return {
        'eval_accuracy': accuracy,
        'eval_accuracy_lo': accuracy - 0.02,
        'eval_accuracy_hi': accuracy + 0.02,
        'eval_sampled_accuracy': accuracy / 2,
        'eval_mean_length': 20.0,
    }


@pytest.fixture
def workdir(tmp_path):
    folder = tmp_path / 'run & <one>'
    with metrics.Writer(folder, tensorboard=False) as writer:
        writer.write('fresh', 0, evaluation(0.02))
        for step in range(1, 6):
            writer.write(
                'sft',
                step,
                {'loss': 1 / step, 'tokens_per_second': 9e4, 'time/update': 0.1, 'nothing': None},
            )
        writer.write('sft', 5, evaluation(0.5))
        for step in range(1, 4):
            writer.write(
                'grpo',
                step,
                {
                    'reward': 0.5 if step > 1 else float('nan'),
                    'entropy': 0.1,
                    'kl': 0.0,
                    'completions/mean_length': 30.0,
                    'time/generate': 0.2,
                    'time/update': 0.1,
                },
            )
            writer.completions(
                'grpo',
                step,
                [
                    {
                        'prompt': f'p{step}',
                        'completion': EVIL,
                        'accuracy': 1.0,
                        'format': None,
                        'advantage': 0.25,
                    }
                ]
                * 9,
            )
        writer.environment()
    (folder / 'summary.json').write_text(
        json.dumps(
            {
                'stages': [
                    {'name': 'fresh', 'accuracy': 0.02, 'ci95': [0.0, 0.04]},
                    {
                        'name': 'grpo',
                        'accuracy': 0.98,
                        'ci95': [0.97, 0.99],
                        'sampled_accuracy': 0.9,
                        'sampled_ci95': [0.88, 0.92],
                        'mean_length': 29.94,
                        'problems': 1000,
                        'seconds': 19.2,
                    },
                ],
                'examples': [
                    {
                        'prompt': '1+1=' + EVIL,
                        'solution': '2',
                        'answers': {'fresh': '#7$', 'grpo': EVIL + '#2$'},
                    }
                ],
            }
        )
    )
    (folder / 'config.json').write_text(
        json.dumps(
            {
                'model': {'width': 96},
                'stages': [{'name': 'sft', 'note': EVIL}],
                'rewards': ['accuracy'],
            }
        )
    )
    return folder


def test_whole_page(workdir):
    text = build(workdir)
    page = Page(text)
    assert 'script' not in page.tags and text.count('<script') == 0
    assert page.words.count(EVIL) == 1 + 1 + 3 * 8 and page.words.count(json.dumps(EVIL)) == 1
    for said in (
        'run & <one>',
        '2.0 % fresh → 98.0 % grpo',
        '98.0 % [97.0, 99.0]',
        '90.0 % [88.0, 92.0]',
        '29.9',
        '1,000',
        'The same problem, before and after',
        '#7$',
        'grpo, step 1',
        'grpo, step 3',
        '8 of 9 completions',
        'model.width',
        'stages[0].name',
        '["accuracy"]',
        'device_kind',
    ):
        assert said in page.words, said
    captions = re.findall(r'<figcaption>(.*?)</figcaption>', text)
    assert captions == [
        'Accuracy on held-out problems',
        'Response length, tokens',
        'Reward',
        'Loss',
        'Entropy, nats per token',
        'KL to the reference',
        'Tokens per second',
        'Time per step, seconds',
    ]
    assert page.tags.count('svg') == len(captions)


def test_nothing_is_fetched(workdir):
    text = build(workdir)
    assert addresses(text) == set()


def test_curves_take_the_colour_of_the_page(workdir):
    text = build(workdir)
    assert pages.INK not in text and 'currentColor' in text
    assert 'color-scheme' in text and 'width=device-width' in text


def test_is_the_same_for_the_same_run(workdir):
    assert build(workdir) == build(workdir)


def test_empty_and_partial_runs(tmp_path):
    assert 'Nothing is recorded yet' in Page(build(tmp_path)).words
    with metrics.Writer(tmp_path, tensorboard=False) as writer:
        writer.write('sft', 1, {'loss': float('nan')})
        assert '<svg' not in build(tmp_path)
        writer.write('sft', 2, {'loss': 0.5})
        with writer.path.open('a') as file:
            file.write('{"stage": "sft", "st')
        page = Page(build(tmp_path))
    assert 'In progress: stage sft, step 2.' in page.words
    assert page.tags.count('svg') == 1 and 'Results' not in page.words


def test_stages_stand_side_by_side(workdir):
    records = metrics.read(workdir / 'metrics.jsonl')
    axis = charts._Axis(records, ['eval_accuracy', 'reward'])
    assert axis.series(['eval_accuracy', 'eval_accuracy_lo']).tolist() == [
        [0, 0.02, 0.0],
        [1, 0.5, 0.48],
    ]
    # The first reward is nan, so it is not drawn; the stage spans 1 to 2 all the same.
    assert axis.series(['reward'], 'grpo')[:, 0].tolist() == pytest.approx([1 + 2 / 3, 2])
    assert axis.ticks() == ([0, 0.4, 1, pytest.approx(1 + 1 / 3), 2], ['0', '2', '5 | 0', '1', '3'])


def test_long_curves_are_thinned_without_bias():
    records = [{'stage': 'sft', 'step': step, 'loss': float(step)} for step in range(1, 10_001)]
    series = charts._Axis(records, ['loss']).series(['loss'])
    thin = charts._thin(series)
    assert len(thin) == charts.POINTS
    assert thin.mean(0).tolist() == pytest.approx(series.mean(0).tolist())


def test_many_stages(tmp_path):
    with metrics.Writer(tmp_path, tensorboard=False) as writer:
        for number in range(9):
            for step in (1, 2):
                writer.write(
                    f'round_{number}',
                    step,
                    {'eval_mean_length': 9.0, 'completions/mean_length': 8.0, 'time/update': 1.0},
                )
    page = Page(build(tmp_path))
    assert page.tags.count('svg') == 2 and 'round_8' in page.words
    assert page.words.count('training, sampled') == 1, (
        'one entry in the legend, however many stages'
    )
