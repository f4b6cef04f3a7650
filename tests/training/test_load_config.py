"""A run that starts from a Hugging Face folder or from another run: its shape, its tokenizer, its
parameters."""

import json
import shutil

import folders
import jax
import numpy as np
import pytest
import toys
from small_runs import ROOT

from reasonjax import config as configs
from reasonjax.errors import UserError
from reasonjax.smoke import shrink
from reasonjax.training import load_config
from reasonjax.training.context import open_run
from reasonjax.training.run import initial, load_initial_params, run, stages_of, trained

ROWS = [
    {
        'prompt': [{'role': 'user', 'content': f'{a}+{b}'}],
        'completion': [{'role': 'assistant', 'content': str(a + b)}],
    }
    for a in range(4)
    for b in range(4)
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return folders.write(tmp_path_factory.mktemp('hf') / 'tiny', dtype='bfloat16')


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp('rows') / 'train.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in ROWS))
    return path


def config(folder, rows, *pairs):
    """SFT on conversations, from the folder."""
    data = [
        ('train.data.source.name', 'jsonl'),
        ('train.data.source.path', str(rows)),
        ('train.data.max_length', '64'),
    ]
    overrides = [('init', f'hf:{folder}'), ('evaluation.enabled', 'False'), *data, *pairs]
    # Smoke tests shrink stages, not a model that is given.
    return shrink(load_config.load(str(ROOT / 'configs/sft.py'), overrides))


def test_shape_and_tokenizer_come_from_the_folder(folder, rows):
    c = config(folder, rows, ('model.compute_dtype', 'bfloat16'), ('model.norm_eps', '0.001'))
    assert (c.model.dim, c.model.qk_norm, c.model.tied, c.model.max_positions) == (
        32,
        'head',
        True,
        512,
    )
    assert (c.tokenizer.name, c.tokenizer.path) == ('huggingface', str(folder))
    # What a run may choose stays, and an override has the last word.
    assert (c.model.compute_dtype, c.model.norm_eps) == ('bfloat16', 0.001)
    # 259 tokens, and behind them PAD (theirs is an EOS) and the mask: they find room in the
    # folder's 272 rows.
    assert c.model.vocab_size == 272
    assert configs.from_json(configs.to_json(c)).model.to_dict() == c.model.to_dict()


def test_parameters_are_the_folders(folder, rows, tmp_path):
    params = initial(open_run(config(folder, rows), tmp_path))
    wanted = jax.tree.map(
        lambda x: np.asarray(x.astype('bfloat16')).astype(np.float32), toys.params(folders.QWEN3)
    )
    toys.assert_trees_equal(params, wanted)


def test_embedding_grows_for_pad_and_mask_alone(rows, tmp_path):
    exact = toys.changed(folders.QWEN3, vocab_size=259)
    path = folders.write(tmp_path / 'exact', exact)
    c = config(path, rows)
    assert c.model.vocab_size == 261
    params = initial(open_run(c, tmp_path / 'run'))
    theirs = np.asarray(toys.params(exact)['embed'])
    np.testing.assert_array_equal(params['embed'][:259], theirs)
    np.testing.assert_allclose(params['embed'][259:], np.stack([theirs.mean(0)] * 2), atol=1e-6)
    small = folders.write(tmp_path / 'small', toys.changed(folders.QWEN3, vocab_size=250))
    with pytest.raises(
        UserError, match=r'9 tokens from id 250 on .* have no embedding: hf:.*small has 250 rows'
    ):
        config(small, rows)


def test_a_run_from_a_folder_and_a_run_from_that_run(folder, rows, tmp_path):
    first = config(folder, rows)
    run(first, tmp_path / 'first')
    _, params = trained(tmp_path / 'first')
    before = initial(open_run(first, tmp_path / 'other'))
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(before)))
    # The second config knows nothing of the folder: model and tokenizer come from the first run.
    overrides = [
        ('init', f'checkpoint:{tmp_path / "first"}'),
        ('evaluation.enabled', 'False'),
        ('train.data.source.name', 'jsonl'),
    ]
    overrides += [('train.data.source.path', str(rows)), ('train.data.max_length', '64')]
    second = shrink(load_config.load(str(ROOT / 'configs/sft.py'), overrides))
    assert second.model.to_dict() == first.model.to_dict() and second.tokenizer.path == str(folder)
    opened = open_run(second, tmp_path / 'second')
    toys.assert_trees_equal(
        load_initial_params(opened, stages_of(second, tmp_path / 'second')[0], None), params
    )


def test_a_kept_model_is_a_run(folder, tmp_path):
    overrides = [('init', f'hf:{folder}'), ('evaluation.enabled', 'False')]
    c = load_config.load(str(ROOT / 'configs/sft.py'), overrides)
    with c.unlocked():
        c.base = dict(kind='keep')
        c.stages = ('base',)
    run(c, tmp_path)
    wanted = initial(open_run(c, tmp_path))
    toys.assert_trees_equal(trained(tmp_path)[1], wanted)
    saved = tmp_path / 'stages' / '00_base' / 'checkpoints' / '0' / 'meta' / 'metadata'
    once = saved.stat().st_mtime_ns
    assert [stage['name'] for stage in run(c, tmp_path)['stages']] == [
        'base'
    ] and saved.stat().st_mtime_ns == once


def test_sequences_longer_than_the_positions_are_refused(folder, rows, tmp_path):
    c = config(folder, rows, ('train.data.max_length', '513'))
    with pytest.raises(
        UserError,
        match=r'config.train: sequences of 513 tokens, .* good for 512; .*config.model.max_positions=513',
    ):
        open_run(c, tmp_path)
    open_run(
        config(folder, rows, ('train.data.max_length', '513'), ('model.max_positions', '513')),
        tmp_path,
    )
    scaled = toys.changed(
        folders.QWEN3,
        rope_scaling=(
            ('factor', 4.0),
            ('length', 0),
            ('name', 'dynamic'),
            ('original_max_position_embeddings', 32),
        ),
        max_positions=32,
    )
    path = folders.write(tmp_path / 'dynamic', scaled)
    with pytest.raises(UserError, match=r'good for 32; .*config.model.rope_scaling.length=64'):
        open_run(config(path, rows), tmp_path)
    opened = open_run(config(path, rows, ('model.rope_scaling.length', '64')), tmp_path)
    assert dict(opened.model.rope_scaling)['length'] == 64


def test_what_cannot_be_adopted(folder, rows, tmp_path):
    with pytest.raises(UserError, match='no such folder. Did you mean "tiny"'):
        config(folder.with_name('tinny'), rows)
    # A tokenizer of the config's own stays, where it fits.
    other = shutil.copytree(folder, tmp_path / 'tokenizer')
    assert config(folder, rows, ('tokenizer.path', str(other))).tokenizer.path == str(other)
    with pytest.raises(UserError, match=str(tmp_path)):
        load_config.load(str(ROOT / 'configs/sft.py'), [('init', f'checkpoint:{tmp_path}')])
    (tmp_path / 'bare').mkdir()
    for name in ('config.json', 'model.safetensors'):
        shutil.copy(folder / name, tmp_path / 'bare')
    with pytest.raises(UserError, match='no tokenizer'):
        config(tmp_path / 'bare', rows)


def test_a_config_that_was_not_adopted_is_refused(folder, tmp_path):
    c = configs.load(str(ROOT / 'configs/sft.py'), [('evaluation.enabled', 'False')])
    with c.unlocked():
        c.init = f'hf:{folder}'
    with pytest.raises(
        UserError, match='has 272 embedding rows|not those of a Qwen3ForCausalLM of config.model'
    ):
        run(c, tmp_path)
