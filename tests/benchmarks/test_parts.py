"""The parts that are measured, at a tiny size in this process: they run, and what they count is
what was done. Times are not looked at."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    device,
    device_text,
    peer_data,
    peer_ours,
    peer_runs,
    phases,
    programs,
    stage_runs,
    workload,
)
from reasonjax.errors import UserError
from reasonjax.parallel import mesh as meshes

SMALL = [
    ('model.layers', '1'),
    ('model.dim', '32'),
    ('model.heads', '2'),
    ('model.kv_heads', '1'),
    ('model.head_dim', '16'),
    ('model.mlp_dim', '64'),
    ('sft.steps', '2'),
    ('grpo.steps', '2'),
]
TINY = {
    'SFT': dict(steps=2, warm=1),
    'GRPO': dict(prompts=2, generations=4, completion_length=6, steps=2),
    'SAMPLE': dict(calls=1),
    'LONG_TAIL': dict(short=3, long=9),
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    for group, values in TINY.items():
        for name, value in values.items():
            monkeypatch.setitem(getattr(workload, group), name, value)


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp('bench'), np.random.default_rng(0)
    words = [''.join(rng.choice(list('abcdefgh'), rng.integers(2, 6))) for _ in range(60)]
    texts = [' '.join(rng.choice(words, 40)) for _ in range(900)]
    rows = [{'question': f'{text}, 12 < 3?\n', 'answer': f'{text[:50]} 7'} for text in texts]
    (folder / 'train.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return peer_data.prepare(folder / 'data', folder / 'train.jsonl', vocab_size=400)


def test_rows_are_exactly_full_and_read_alike(prepared):
    import sentencepiece
    import transformers

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(prepared / 'gsm4k.model'))
    fast = transformers.PreTrainedTokenizerFast.from_pretrained(prepared / 'hf_tokenizer')
    rows = [json.loads(line) for line in (prepared / 'sft.jsonl').read_text().splitlines()]
    assert len(rows) == 96
    for row in rows:
        assert len(row['ids']) == 256 and row['ids'] == [2, *pieces.encode(row['text']), 1]
        assert [*fast(row['text'])['input_ids'], 1] == row['ids']
        assert fast.decode(row['ids'][1:-1]) == row['text']
    prompts = [
        json.loads(line)['prompt'] for line in (prepared / 'prompts.jsonl').read_text().splitlines()
    ]
    assert len(prompts) == 64 and all(len(fast(prompt)['input_ids']) <= 128 for prompt in prompts)
    # What no piece spells is spelt in bytes by both.
    assert fast('é ☃ 12')['input_ids'] == [2, *pieces.encode('é ☃ 12')]


def test_prepared_once(prepared):
    before = (prepared / 'sft.jsonl').stat().st_mtime_ns
    assert (
        peer_data.prepare(prepared, prepared / 'not there') == prepared
        and (prepared / 'sft.jsonl').stat().st_mtime_ns == before
    )


def test_config_is_the_workload(prepared):
    from reasonjax.model import config as model_config
    from reasonjax.model import spec

    config = peer_ours.config_of('grpo', prepared)
    model = model_config.from_config(config.model, vocab_size=workload.MODEL['vocab'], pad_id=0)
    assert spec.count(spec.specs(model)) == workload.MODEL['parameters']
    assert (
        config.grpo.objective.beta == 0.04
        and config.grpo.num_prompts == 2
        and config.stages == ('grpo',)
    )


def measured(what, data, workdir, overrides):
    return peer_ours.measure(what, peer_ours.config_of(what, data, overrides), workdir)


def test_sft_counts_full_rows(prepared, tmp_path):
    found = measured('sft', prepared, tmp_path, SMALL)
    assert len(found['seconds']) == 2 and found['first_step_s'] > 0 and found['peak_gb'] > 0.05
    assert found['sft_tok_s'] == pytest.approx(8 * 256 / found['seconds'][1])
    assert not list(tmp_path.glob('stages/*/checkpoints/*')), (
        'a checkpoint was written: it is no part of a step'
    )


@pytest.mark.parametrize(('what', 'name'), [('grpo', 'grpo_step_s'), ('first_step', None)])
def test_grpo_has_full_lengths_and_phases(prepared, tmp_path, what, name):
    found = measured(what, prepared, tmp_path, SMALL if what == 'grpo' else SMALL[:-1])
    assert found['tokens'] == 2 * 4 * 6
    if what == 'grpo':
        assert found[name] == found['seconds'][1] and {'generate', 'update'} <= set(found['phases'])
    else:
        assert len(found['seconds']) == 1


def test_sampling_counts_its_tokens(prepared, tmp_path):
    found = measured('sample', prepared, tmp_path, SMALL)
    assert found['tokens'] == 48 and found['sample_tok_s'] == pytest.approx(
        48 / found['seconds'][1]
    )


def test_long_tail_ends_where_the_workload_says(prepared, tmp_path):
    from reasonjax.training import samplers

    plain = samplers.generate
    found = measured('long_tail', prepared, tmp_path, [*SMALL, ('grpo.sampler.slots', '3')])
    records = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
    lengths = workload.lengths()
    assert lengths.count(9) == 2 and found['tokens'] == sum(lengths)
    assert samplers.generate is plain
    for record in records:
        assert (record['completions/min_length'], record['completions/max_length']) == (3, 9)
        assert (
            record['completions/mean_length'] == np.mean(lengths)
            and record['completions/clipped_ratio'] == 0
        )


def test_end_is_drawn_at_its_place_and_nowhere_else():
    ends, state = (
        peer_ours.EndsAt((2, 5), eos=1),
        types.SimpleNamespace(job=jnp.array([1, 0, 2]), step=jnp.array([4, 0, 4])),
    )
    logits = ends(jnp.zeros((3, 4)), state)
    assert logits[0].argmax() == 1 and logits[1, 1] < -1e8 and (logits[:, 2:] == 0).all()


def test_program_times_and_kinds(prepared):
    found = phases.programs_of('grpo', prepared, [*SMALL, ('grpo.num_prompts', '2')], repeats=1)
    assert set(found) == set(phases.PROGRAMS['grpo'])
    for timed in found.values():
        assert (
            timed.seconds > 0 and timed.flops > 0 and sum(timed.kinds.values()) == pytest.approx(1)
        )
        assert 'matrix products' in timed.kinds and timed.kinds.get('other', 0) < 0.2
    text = phases.programs_table({'grpo': found}, 1e12)
    assert len(text.splitlines()) == 2 + len(found) and 'decode' in text


def test_operations_are_told_apart():
    text = """
%fused (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %e = f32[4]{0} exponential(f32[4]{0} %p)
}
ENTRY %main (a: f32[4,4]) -> f32[4] {
  %a = f32[4,4]{1,0} parameter(0)
  %dot.1 = f32[4,4]{1,0} dot(%a, %a), lhs_contracting_dims={1}
  %loop = (s32[], f32[4]{0}) while((s32[], f32[4]{0}) %t), condition=%c, body=%b
  %copy.2 = f32[4,4]{0,1} copy(%dot.1)
  ROOT %fusion.3 = f32[4]{0} fusion(%copy.2), kind=kLoop, calls=%fused
}
"""
    kinds = programs.kinds_of(text)
    assert (
        kinds['dot.1'] == 'matrix products'
        and kinds['fusion.3'] == 'exponentials, roots'
        and kinds['copy.2'] == programs.COPIES
    )
    assert kinds['loop'] == ''
    shares = programs.by_kind(
        {'dot.1': 3.0, 'fusion.3': 0.5, 'copy.2': 0.25, 'loop': 9.0, 'unknown': 0.25}, kinds
    )
    assert shares == {
        'matrix products': 0.75,
        'exponentials, roots': 0.125,
        programs.COPIES: 0.0625,
        'other': 0.0625,
    }
    assert next(iter(shares)) == 'matrix products' and programs.by_kind({'loop': 1.0}, kinds) == {}


def test_ceilings_count_operations_and_bytes(monkeypatch):
    monkeypatch.setattr(programs, 'times', lambda call, repeats: [call() is None or 0.5, 2.0])
    found = programs.ceilings('float32', 8, 1)
    assert found.matmul == 2 * 8**3 / 0.5 and found.copy == 2 * 2**20 / 0.5


def test_training_goes_on_from_its_own_state():
    function = lambda state, x: (state + x, None)  # noqa: E731
    for trains, wanted in ((True, [3, 5, 7]), (False, [3, 3, 3])):
        run = programs.calls(function, (1, 2), trains)
        assert [next(run)[0] for _ in range(3)] == wanted


def test_made_up_arguments_have_the_shapes():
    home = meshes.replicated(meshes.make_mesh({'data': 1}, jax.devices()[:1]))
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = {
        'x': jax.ShapeDtypeStruct((2, 3), jnp.bfloat16, sharding=home),
        'i': jax.ShapeDtypeStruct((4,), jnp.int32, sharding=home),
        'k': jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=home),
    }
    made = programs.concrete(shapes)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes
    )
    assert (made['i'] == 1).all() and (made['x'] > 0).all()


def test_device_parts_at_small_size(monkeypatch):
    monkeypatch.setattr(device, 'BATCHES', (8,))
    found = {part: device.RUN[part]('small', []) for part in device.PARTS}
    assert (
        found['sft']['flop_s'] > 0
        and set(found['decode']) == {'8'}
        and {'generate', 'update'} <= set(found['grpo']['phases'])
    )
    # prompts of 16 tokens, completions of 8
    assert found['grpo']['tokens_s'] == pytest.approx(3 * found['grpo']['drawn_s'])
    text = device.page(json.loads(json.dumps(found)), 'small')
    assert (
        'numbers mean nothing' in text
        and 'not yet measured' not in text
        and 'decoding at batch 8' in text
    )
    assert device.table({'ceilings': found['ceilings'], 'sft': None}).count('not yet measured') == 3


def test_bytes_of_drawing_by_hand():
    model = types.SimpleNamespace(
        compute_dtype='bfloat16', layers=3, kv_heads=2, head_dim=4, tied=False
    )
    stage = {
        'num_prompts': 2,
        'num_generations': 5,
        'max_completion_length': 4,
        'data': {'max_prompt_length': 7},
    }
    params = {'embed': np.zeros((10, 6)), 'layers': [np.zeros((6, 6))], 'head': np.zeros((6, 10))}
    by_hand = 0
    for place in range(4):
        caches = 2 * 7 + 10 * (place + 1)  # prompts once, completions as far as they have come
        by_hand += 2 * (36 + 60) + 2 * caches * (3 * 2 * 2 * 4)
    assert device.read_bytes(model, params, stage) == by_hand
    # A tied table is the head.
    assert (
        device.read_bytes(types.SimpleNamespace(**vars(model) | {'tied': True}), params, stage)
        == by_hand + 4 * 2 * 60
    )


def test_text_of_devices_has_the_lengths():
    tokenizer = device_text.tokenizer(None, None, vocab_size=300)
    assert [
        len(tokenizer.encode(row['prompt'])) + 1
        for row in device_text.letters(size=3, length=20).rows
    ] == [20] * 3
    assert [
        len(tokenizer.encode(row['text'])) + 2
        for row in device_text.full_rows(size=2, length=20).rows
    ] == [20] * 2
    assert tokenizer.decode([*tokenizer.encode('abc'), 299]) == 'abc<299>'


@pytest.mark.parametrize('part', ['sft', 'decode', 'grpo'])
def test_full_sizes_are_the_published_models(part):
    config = device.config_of(part, 'full')
    assert config.tokenizer.vocab_size == config.model.vocab_size == 151_936
    assert config.model.dim == (4096 if part == 'grpo' else 2048)
    small = device.config_of(part, 'small', [('model.dim', '48')])
    assert (
        small.tokenizer.vocab_size == 512
        and small.model.dim == 48
        and small.grpo.data.source.length == 16
    )


def test_measurements_are_kept_and_failures_are_not(tmp_path, capfd):
    python = peer_runs.sys.executable
    code = 'import os; print("noise"); print(\'{"x": 1}\'); print("more"); assert "JAX_COMPILATION_CACHE_DIR" not in os.environ'
    good = [python, '-c', code]
    file = tmp_path / 'results' / '0_sft_ours.json'
    found = peer_runs.measure(good, file, {'system': 'ours', 'round': 0}, {'A': 'b'})
    assert found['x'] == 1 and found['system'] == 'ours' and found['process_s'] > 0
    assert (
        peer_runs.measure(['no such program'], file, {}, {})
        == found
        == peer_runs.measured(tmp_path / 'results')[0]
    )
    for name, code, said in (
        ('a', 'raise ValueError("broken here")', 'broken here'),
        ('b', 'print(1)', 'printed no result'),
    ):
        assert peer_runs.measure([python, '-c', code], tmp_path / f'{name}.json', {}, {}) is None
        assert said in capfd.readouterr().err
    assert (
        peer_runs.measure(
            [python, '-c', 'import time; time.sleep(60)'], tmp_path / 'c.json', {}, {}, timeout=0.5
        )
        is None
    )
    assert 'took more than' in capfd.readouterr().err
    assert not list(tmp_path.glob('*.json'))


def test_what_cannot_be_made_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv('REASONJAX_DATA', str(tmp_path))
    with pytest.raises(UserError, match='REASONJAX_DATA'):
        peer_data.source()
    from benchmarks import peers

    with pytest.raises(UserError, match='--cores=4096'):
        peers.restrict(4096)
    assert peers.main(['--only', 'tunx']) == 2


def test_first_step_is_counted_from_the_start_of_the_process():
    assert 0 < workload.since_start() < 86_400
    steps = (
        {'time/update': 9.0},
        {'time/update': 1.0, 'time/data': 0.5},
        {'time/update': 3.0},
        {'time/update': 7.0},
    )
    notes = list(enumerate(steps))
    assert stage_runs.phases(notes) == {'update': 2.0, 'data': 0.25}
    assert stage_runs.phases(notes[:2]) == {'update': 1.0, 'data': 0.5}
