"""Runs as Hugging Face folders and back: transformers and PEFT load what we write and compute what
we do."""

import copy
import dataclasses
import json
import shutil

import folders
import jax
import numpy as np
import peft
import pytest
import sentencepiece
import small_runs
import torch
import toys
import transformers
from safetensors.numpy import load_file

from reasonjax import convert
from reasonjax.errors import UserError
from reasonjax.interop.huggingface import card, export, exported, pretrained
from reasonjax.methods.adapters import lora
from reasonjax.sampling.sampler import Sampling
from reasonjax.smoke import shrink
from reasonjax.training import keep, load_config, saved_run
from reasonjax.training import run as stages
from reasonjax.training.answer_prompts import sample
from reasonjax.training.context import open_run
from reasonjax.weights.linear import merge_tree

PROMPTS = ['2+3', 'How are you?', 'ab']
CHATS = [[{'role': 'user', 'content': text}] for text in PROMPTS]


def converted(*arguments) -> int:
    return convert.main([*map(str, arguments), '--skip_selfcheck'])


@pytest.fixture(scope='module')
def hf(tmp_path_factory):
    """A random Qwen3 of torch with a tokenizer, a chat template, and what else folders have."""
    path = tmp_path_factory.mktemp('hf') / 'models--acme--Tiny-1' / 'snapshots' / 'abc'
    torch.manual_seed(0)
    model = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=272,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            rope_parameters=dict(rope_type='default', rope_theta=5e4),
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    model.bfloat16().save_pretrained(path)
    folders.tokenizer().save_pretrained(path)
    ends = folders.tokenizer().convert_tokens_to_ids(['<|im_end|>', '<|endoftext|>'])
    (path / 'generation_config.json').write_text(
        json.dumps({'eos_token_id': ends, 'pad_token_id': ends[1], 'temperature': 0.6})
    )
    # Of a stranger: not UTF-8.
    (path / 'README.md').write_bytes(
        '---\nlicense: apache-2.0\ntags: [x]\n---\n# Tiny café\n'.encode('latin-1')
    )
    (path / 'LICENSE').write_text('do as you like')
    return path


@pytest.fixture(scope='module')
def lora_run(hf, tmp_path_factory):
    """SFT with LoRA, then GRPO on the same pairs."""
    workdir = tmp_path_factory.mktemp('runs') / 'lora'
    rows = workdir.parent / 'rows.jsonl'
    pairs = [(f'{a}+{b}', str(a + b)) for a in range(4) for b in range(4)]
    said = [
        {
            'prompt': [{'role': 'user', 'content': q}],
            'completion': [{'role': 'assistant', 'content': a}],
        }
        for q, a in pairs
    ]
    rows.write_text(''.join(json.dumps(row) + '\n' for row in said))
    with pytest.MonkeyPatch.context() as patch:
        reward = (
            "def length(completions, **_):\n    return [len(c[0]['content']) for c in completions]"
        )
        (workdir.parent / 'length_rewards.py').write_text(reward)
        patch.syspath_prepend(str(workdir.parent))
        overrides = [
            ('init', f'hf:{hf}'),
            ('model.compute_dtype', 'float32'),
            ('sft.adapter.r', '4'),
        ]
        for stage in ('sft', 'grpo'):
            changed = {
                'data.source.name': 'jsonl',
                'data.source.path': str(rows),
                'data.transforms': '()',
                'learning_rate.peak': '0.1',
            }
            changed |= {'learning_rate.name': 'constant', 'learning_rate.warmup_steps': '0'}
            overrides += [(f'{stage}.{key}', value) for key, value in changed.items()]
        overrides += [
            ('grpo.rewards.accuracy.name', 'length_rewards.length'),
            ('evaluation.transforms', '()'),
        ]
        overrides += [
            ('evaluation.task.name', 'addition'),
            ('evaluation.task.size', '8'),
            ('evaluation.greedy', 'False'),
        ]
        overrides += [('evaluation.samples', '2'), ('model.remat', 'none')]
        once = [
            ('grpo.reward_workers', '0'),
            ('sft.eval_every', '0'),
            ('grpo.eval_every', '0'),
            ('sft.checkpoint_every', '0'),
        ]
        config = shrink(load_config.load(f'{small_runs.ROOT}/configs/hf.py:lora', overrides), once)
        stages.run(config, workdir)
    return workdir


@pytest.fixture(scope='module')
def merged(lora_run):
    """The run, merged, in float32."""
    assert converted(lora_run, lora_run.parent / 'merged', '--merge', '--dtype', 'float32') == 0
    return lora_run.parent / 'merged'


@pytest.fixture(scope='module')
def scratch_run(tmp_path_factory):
    """A Llama from scratch on characters."""
    workdir = tmp_path_factory.mktemp('runs') / 'scratch'
    stages.run(
        small_runs.quiet(
            'configs/sft.py', model__gated=True, model__activation='silu', tokenizer__bos='.'
        ),
        workdir,
    )
    return workdir


def logits_of(run, params, tokens):
    tokens = np.asarray(tokens)
    positions = np.tile(np.arange(tokens.shape[1]), (len(tokens), 1))
    # Without what keeps PAD from being drawn.
    config = toys.changed(run.model, pad_id=-1)
    return np.asarray(
        toys.all_logits(config)(
            params, {'tokens': tokens, 'segments': np.ones_like(tokens), 'positions': positions}
        )
    )


def torch_logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.float().numpy()


def ours_greedy(run, params, prompts, length=12):
    settings = Sampling(max_tokens=length, temperature=0.0, eos_ids=run.tokenizer.eos_ids)
    return [group[0]['ids'] for _, group in sample(run, params, prompts, settings, 0, 8)]


def their_greedy(path, prompts, length=12, **options):
    """Greedy ids of transformers, each prompt by itself, up to the first EOS."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    found = []
    for prompt in prompts:
        if isinstance(prompt, str):
            inputs = tokenizer(prompt, return_tensors='pt')
        else:
            inputs = tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, return_dict=True, return_tensors='pt'
            )
        ids = model.generate(**inputs, max_new_tokens=length, do_sample=False, **options)
        found.append(ids[0, inputs.input_ids.shape[1] :].tolist())
    return found


def test_hub_folder_to_sft_lora_to_grpo_to_transformers(hf, lora_run, merged):
    run, params = stages.trained(lora_run)
    assert export.has_adapters(params)
    wanted = ours_greedy(run, params, CHATS)
    assert wanted != ours_greedy(run, stages.initial(run), CHATS)
    assert their_greedy(merged, CHATS) == wanted
    # What the folder brought along is there again.
    theirs, ours = (json.loads((path / 'config.json').read_text()) for path in (hf, merged))
    assert ours == theirs | {'dtype': 'float32'}
    for name in ('tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja', 'LICENSE'):
        assert (merged / name).read_bytes() == (hf / name).read_bytes()
    generation = transformers.GenerationConfig.from_pretrained(merged)
    assert generation.eos_token_id == list(run.tokenizer.eos_ids) and generation.temperature == 0.6
    # PAD is a new id here, because theirs is an EOS; it lies in a row that the embedding has to
    # spare.
    assert (
        generation.suppress_tokens == [run.tokenizer.pad_id] == [259]
        and generation.pad_token_id == run.tokenizer.eos_ids[1]
    )


def test_the_adapter_alone_loads_in_peft(hf, lora_run):
    path = lora_run.parent / 'adapter'
    assert converted(lora_run, path, '--adapter') == 0
    settings = json.loads((path / 'adapter_config.json').read_text())
    assert settings['base_model_name_or_path'] == 'acme/Tiny-1' and (
        settings['r'],
        settings['lora_alpha'],
    ) == (4, 64)
    run, params = stages.trained(lora_run)
    tokens = np.random.default_rng(0).integers(0, 259, (2, 9))
    base = transformers.AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(path)).eval()
    wanted = logits_of(run, params, tokens)
    np.testing.assert_allclose(torch_logits(loaded, tokens), wanted, atol=2e-5)
    assert np.abs(torch_logits(base, tokens) - wanted).max() > 0.1
    # Merged by itself, in the base's dtype.
    assert (
        converted(
            path, path.parent / 'merged_by_itself', '--merge', '--base', hf, '--dtype', 'float32'
        )
        == 0
    )
    again = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent / 'merged_by_itself'
    ).eval()
    np.testing.assert_allclose(torch_logits(again, tokens), wanted, atol=2e-5)
    assert (
        'PEFT adapter `adapter` merged'
        in (path.parent / 'merged_by_itself' / 'README.md').read_text()
    )


def test_training_goes_on_from_an_adapter_folder(hf, lora_run, tmp_path):
    assert converted(lora_run, tmp_path / 'adapter', '--adapter') == 0
    before = json.loads((lora_run / 'config.json').read_text())
    overrides = [
        ('init', f'hf:{hf}'),
        ('model.compute_dtype', 'float32'),
        ('evaluation.enabled', 'False'),
        ('stages', "('sft',)"),
    ]
    overrides += [
        ('sft.data.source.name', 'jsonl'),
        ('sft.data.source.path', before['sft']['data']['source']['path']),
    ]
    overrides += [
        ('sft.data.transforms', '()'),
        ('sft.adapter.name', 'peft'),
        ('sft.adapter.path', str(tmp_path / 'adapter')),
    ]
    config = shrink(
        load_config.load(
            f'{small_runs.ROOT}/configs/hf.py:lora', [*overrides, ('model.remat', 'none')]
        )
    )
    stages.run(config, tmp_path / 'more')
    _, params = stages.trained(tmp_path / 'more')
    _, start = stages.trained(lora_run)
    for node, old in zip(
        *(jax.tree.leaves(t['layers'], is_leaf=lambda x: hasattr(x, 'a')) for t in (params, start)),
        strict=True,
    ):
        if hasattr(node, 'a'):
            assert 0 < np.abs(node.b - old.b).max() < 1e-3
            np.testing.assert_array_equal(node.base, old.base)


def test_the_card_says_how_it_was_made(lora_run, merged):
    text = (merged / 'README.md').read_text()
    front = text.split('---')[1]
    for line in (
        'library_name: transformers',
        'base_model: "acme/Tiny-1"',
        'license: apache-2.0',
        '- "sft"',
        '- "grpo"',
        '- "lora"',
    ):
        assert line in front
    results = json.loads((lora_run / 'summary.json').read_text())['stages']
    low, high = results[1]['sampled_ci95']
    assert (
        f'{100 * results[1]["sampled_accuracy"]:.1f} % [{100 * low:.1f}, {100 * high:.1f}]' in text
    )
    for part in (
        '--merge --dtype float32',
        '| grpo | online | 2 |',
        'lora(',
        'rows.jsonl',
        '- seed: 0',
        'jax 0.',
        '"lora_alpha": 64.0',
        'apply_chat_template',
        'addition(',
    ):
        assert part in text
    # An earlier stage's card ends with it.
    run, stage, _, _ = saved_run.saved(lora_run, 'sft')
    shorter = card.render(
        'x', run, None, architecture='Qwen3ForCausalLM', adapter=False, stage=stage.name
    )
    assert '| sft | supervised' in shorter and '| grpo | online' not in shorter


def test_an_adapter_over_weights_that_were_trained_is_not_the_model(hf, lora_run, tmp_path):
    run, params = stages.trained(lora_run)
    moved = params | {'norm': params['norm'] + 1e-6}
    with pytest.raises(
        UserError, match=r'these weights are not those of .*: model.norm.weight. Give .*--merge'
    ):
        export.export(run, moved, tmp_path / 'out', base=hf, adapter=True)
    assert not any(tmp_path.iterdir())


def test_bfloat16_comes_back_bit_for_bit(hf, tmp_path, capsys):
    assert converted(hf, tmp_path / 'base') == 0
    run, params = stages.trained(tmp_path / 'base')
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {
        'bfloat16'
    } and run.model.compute_dtype == 'bfloat16'
    assert converted(hf, tmp_path / 'wide', '--dtype', 'float32') == 0
    for name in ('base', 'wide'):
        assert converted(tmp_path / name, tmp_path / f'{name}_back') == 0
        before, after = (
            load_file(path / 'model.safetensors') for path in (hf, tmp_path / f'{name}_back')
        )
        assert before.keys() == after.keys()
        assert all(
            before[n].dtype == after[n].dtype and before[n].tobytes() == after[n].tobytes()
            for n in before
        )
        assert json.loads((tmp_path / f'{name}_back' / 'config.json').read_text()) == json.loads(
            (hf / 'config.json').read_text()
        )
    assert 'rounded from float32 to bfloat16' in capsys.readouterr().err
    # The run is one to start from: another run adopts its shape, and its chain leads back to the
    # folder.
    config = load_config.load(
        f'{small_runs.ROOT}/configs/sft.py', [('init', f'checkpoint:{tmp_path / "wide"}')]
    )
    assert export.base_of(config).resolve() == hf.resolve()
    toys.assert_trees_equal(
        stages.initial(open_run(config, tmp_path / 'next')), stages.trained(tmp_path / 'wide')[1]
    )


def test_a_run_from_scratch(scratch_run, tmp_path):
    assert converted(scratch_run, tmp_path / 'out') == 0
    run, params = stages.trained(scratch_run)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out').eval()
    assert type(model).__name__ == 'LlamaForCausalLM'
    tokens = np.random.default_rng(0).integers(0, 18, (3, 11))
    ours = logits_of(run, params, tokens)
    np.testing.assert_allclose(torch_logits(model, tokens), ours, atol=1e-5)
    assert their_greedy(tmp_path / 'out', ['12+34=', '9+1=']) == ours_greedy(
        run, params, ['12+34=', '9+1=']
    )
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (
        1,
        2,
        0,
    )
    text = (tmp_path / 'out' / 'README.md').read_text()
    assert (
        'trained from scratch' in text
        and 'base_model' not in text
        and 'No stage was evaluated' in text
    )


def test_transformers_never_draws_pad_either(scratch_run, tmp_path):
    run, params = stages.trained(scratch_run)
    # A head that wants PAD nearly always.
    wanting = params | {'head': params['head'].at[:, 0].set(40 * params['head'][:, 5])}
    export.export(run, wanting, tmp_path / 'out')
    prompts = ['12+34=', '9+1=', '77+1=']
    wanted = ours_greedy(run, wanting, prompts)
    assert their_greedy(tmp_path / 'out', prompts) == wanted
    assert not any(0 in ids for ids in wanted) and any(
        0 in ids for ids in their_greedy(tmp_path / 'out', prompts, suppress_tokens=None)
    )


def test_shards_with_an_index(scratch_run, tmp_path):
    run, params = stages.trained(scratch_run)
    export.export(run, params, tmp_path / 'out', shard_bytes=30_000)
    index = json.loads((tmp_path / 'out' / 'model.safetensors.index.json').read_text())
    files = sorted(p.name for p in (tmp_path / 'out').glob('*.safetensors'))
    assert len(files) > 1 and sorted(set(index['weight_map'].values())) == files
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'out').eval()
    tokens = np.arange(18)[None]
    np.testing.assert_allclose(
        torch_logits(model, tokens), logits_of(run, params, tokens), atol=1e-5
    )
    back = pretrained.load(pretrained.read_folder(tmp_path / 'out'), run.model, run.mesh)
    toys.assert_trees_equal(back, params)


def test_an_adapter_over_a_stage_that_was_exported(scratch_run, tmp_path):
    run, params = stages.trained(scratch_run)
    export.export(run, params, tmp_path / 'base')
    adapted = lora(params, jax.random.key(0), r=2, target_modules=('layers/attention/q', 'head'))
    adapted['head'] = dataclasses.replace(adapted['head'], b=adapted['head'].b + 0.1)
    export.export(run, adapted, tmp_path / 'adapter', base=tmp_path / 'base', adapter=True)
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'base')
    tokens = np.arange(1, 18)[None]
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path / 'adapter')).eval()
    np.testing.assert_allclose(
        torch_logits(loaded, tokens), logits_of(run, adapted, tokens), atol=1e-5
    )
    with pytest.raises(
        UserError,
        match=r'is not what this model started from(.|\n)*embed: \(272, 32\), here \(18, 32\)',
    ):
        export.export(
            run, adapted, tmp_path / 'out', base=folders.write(tmp_path / 'other'), adapter=True
        )


def test_a_sentencepiece_model_of_the_base_is_exported_with_the_bases_files(hf, tmp_path):
    """With a space in front of every text, so that it could not be written otherwise."""
    base = shutil.copytree(hf, tmp_path / 'base')
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(['the cat sat on the mat'] * 50),
        model_prefix=str(base / 'tokenizer'),
        model_type='bpe',
        vocab_size=30,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    (base / 'tokenizer.vocab').unlink()
    elsewhere = shutil.copyfile(base / 'tokenizer.model', tmp_path / 'mine.model')
    tokenizer = [
        ('tokenizer.name', 'sentencepiece'),
        ('tokenizer.path', str(elsewhere)),
        ('model.compute_dtype', 'float32'),
    ]
    config = load_config.load(
        f'{small_runs.ROOT}/configs/sft.py', [('init', f'hf:{base}'), *tokenizer]
    )
    run = open_run(config, tmp_path / 'run', active=False)
    params = stages.initial(run)
    export.export(run, params, tmp_path / 'out', base=base)
    assert (tmp_path / 'out' / 'tokenizer.json').read_bytes() == (
        hf / 'tokenizer.json'
    ).read_bytes()
    assert (tmp_path / 'out' / 'tokenizer.model').read_bytes() == elsewhere.read_bytes()
    with pytest.raises(UserError, match='tokenizer.path: .*tokenizer.name=huggingface'):
        export.export(run, params, tmp_path / 'again', base=hf)


def test_rows_that_only_training_has_are_left_out(tmp_path, capsys):
    exact = toys.changed(folders.QWEN3, vocab_size=259)
    base = folders.write(tmp_path / 'exact', exact)
    assert converted(base, tmp_path / 'run') == 0
    run, params = stages.trained(tmp_path / 'run')
    assert params['embed'].shape[0] == 261
    assert converted(tmp_path / 'run', tmp_path / 'back') == 0
    assert 'PAD (id 259) and mask (id 260)' in capsys.readouterr().err
    before, after = (load_file(path / 'model.safetensors') for path in (base, tmp_path / 'back'))
    assert before.keys() == after.keys() and all(
        np.array_equal(before[name], after[name]) for name in before
    )
    assert 'suppress_tokens' not in json.loads(
        (tmp_path / 'back' / 'generation_config.json').read_text()
    )
    assert their_greedy(tmp_path / 'back', CHATS) == ours_greedy(run, params, CHATS)


def test_a_folder_that_has_moved(hf, tmp_path, capsys):
    here = shutil.copytree(hf, tmp_path / 'here')
    assert converted(here, tmp_path / 'run') == 0
    config = tmp_path / 'run' / 'config.json'
    chained = shutil.copytree(tmp_path / 'run', tmp_path / 'chained')
    (chained / 'config.json').write_text(
        config.read_text().replace(f'hf:{here}', f'checkpoint:{tmp_path}/run')
    )
    here.rename(tmp_path / 'there')
    for run in ('run', 'chained'):
        assert converted(tmp_path / run, tmp_path / 'out') == 2
        assert (
            f'{here} is not there (any more); give the Hugging Face folder as --base FOLDER'
            in capsys.readouterr().err
        )
        assert (
            converted(tmp_path / run, tmp_path / f'{run}_back', '--base', tmp_path / 'there') == 0
        )
        assert (tmp_path / f'{run}_back' / 'tokenizer.json').read_bytes() == (
            hf / 'tokenizer.json'
        ).read_bytes()
    shutil.rmtree(tmp_path / 'run')
    assert converted(chained, tmp_path / 'out') == 2
    assert f'{tmp_path}/run is not there (any more)' in capsys.readouterr().err


def test_nothing_is_overwritten_and_nothing_is_left_half_done(
    scratch_run, tmp_path, monkeypatch, capsys
):
    run, params = stages.trained(scratch_run)
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'mine.txt').write_text('')
    assert converted(scratch_run, tmp_path / 'full') == 2
    assert 'is there already; nothing is overwritten' in capsys.readouterr().err
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty.unfinished').mkdir()
    (tmp_path / 'empty.unfinished' / 'of_a_kill').write_text('')
    export.export(run, params, tmp_path / 'empty')
    assert (tmp_path / 'empty' / 'model.safetensors').is_file() and not (
        tmp_path / 'empty' / 'of_a_kill'
    ).exists()

    def fail(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(exported, 'save_tensors', fail)
    with pytest.raises(KeyboardInterrupt):
        export.export(run, params, tmp_path / 'new')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['empty', 'full']


def test_what_cannot_be_exported(scratch_run, tmp_path):
    run, params = stages.trained(scratch_run)
    broken = params | {'norm': params['norm'] * 1e5}
    with pytest.raises(
        UserError, match='model.norm.weight holds values that are not finite numbers in float16'
    ):
        export.export(run, broken, tmp_path / 'out', dtype='float16')
    with pytest.raises(UserError, match='--dtype=floot32: unknown. Did you mean "float32"'):
        export.export(run, params, tmp_path / 'out', dtype='floot32')
    with pytest.raises(UserError, match='--stage.*--base'):
        export.export(run, params, tmp_path / 'out', adapter=True)
    plain = open_run(small_runs.quiet('configs/sft.py'), tmp_path / 'plain', active=False)
    with pytest.raises(
        UserError,
        match='no Hugging Face architecture can hold this model(.|\n)*gated=False would become True',
    ):
        export.export(plain, params, tmp_path / 'out')
    assert not any(tmp_path.iterdir())


def test_wrong_folders_and_options(hf, lora_run, tmp_path, capsys):
    def error(*arguments):
        assert converted(*arguments) == 2
        return capsys.readouterr().err

    out = tmp_path / 'out'
    assert 'no such folder. Did you mean "lora"' in error(lora_run.parent / 'lara', out)
    assert 'it holds none of them' in error(tmp_path, out)
    assert 'is a Hugging Face model, which is converted with --config, --dtype only' in error(
        hf, out, '--merge'
    )
    assert 'stage grpo of' in error(lora_run, out)
    assert 'give one of them' in error(lora_run, out, '--adapter', '--merge')
    assert '--config.seed' in error(lora_run, out, '--merge', '--config.seed=1')
    assert '--dtype=int8: unknown' in error(hf, out, '--dtype', 'int8')
    assert 'no training stage "grop". Did you mean "grpo"' in error(
        lora_run, out, '--merge', '--stage', 'grop'
    )
    both = shutil.copytree(hf, tmp_path / 'both')
    (both / 'adapter_config.json').write_text('{}')
    assert 'holds both a Hugging Face model and a PEFT adapter' in error(both, out)
    (both / 'config.json').unlink()
    assert 'is a PEFT adapter: give --merge and --base FOLDER' in error(both, out)
    assert not out.exists()


def test_an_import_that_was_killed_goes_on(hf, tmp_path, capsys):
    with small_runs.crash(keep, 'run'):
        converted(hf, tmp_path / 'run')
    assert not list(tmp_path.glob('run/stages/*/done.json'))
    assert converted(hf, tmp_path / 'run') == 0
    _, params = stages.trained(tmp_path / 'run')
    assert merge_tree(params)['embed'].shape == (272, 32)
    assert converted(hf, tmp_path / 'run') == 2
    assert 'is there already' in capsys.readouterr().err
