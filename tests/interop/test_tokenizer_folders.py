"""Hugging Face folders as they come: which files make a tokenizer, which tokens end an answer, what
is refused."""

import json
import pathlib
import subprocess
import sys

import pytest
import template_styles

from reasonjax.data import tokenizers
from reasonjax.errors import UserError
from reasonjax.interop.huggingface.tokenizers import huggingface

ROOT = pathlib.Path(__file__).parents[2]
ASK = [{'role': 'user', 'content': 'Tom'}]
PLAIN = "{% for m in messages %}{{ m.content + '\n' }}{% endfor %}"


def opened(folder, **knobs):
    return huggingface(None, None, path=str(folder), **knobs)


def edit(folder, name, **changes):
    """Changes a JSON file of a folder; None takes a key out."""
    path = pathlib.Path(folder) / name
    content = (json.loads(path.read_text()) if path.is_file() else {}) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


# What ends an answer.


@pytest.mark.parametrize(
    ('eos', 'generation', 'template', 'ends'),
    [
        # the template's end of turn is not the tokenizer's EOS
        ('<|endoftext|>', None, 'chatml', (0, 2)),
        ('<|im_end|>', {'eos_token_id': [2, 0]}, 'chatml', (2, 0)),
        ('<|endoftext|>', {'eos_token_id': 1}, 'chatml', (0, 1, 2)),
        (None, None, 'chatml', (2,)),
        (None, {'eos_token_id': 0}, PLAIN, (0,)),
        ('<|endoftext|>', {'temperature': 1.0}, PLAIN, (0,)),  # a line break is no token of its own
        ('<|endoftext|>', None, "{{ raise_exception('no') }}", (0,)),
        # answers are left out
        ('<|endoftext|>', None, '<|im_start|>{{ messages[0].content }}', (0,)),
        ('<|endoftext|>', None, None, (0,)),
    ],
)
def test_eos_set(tmp_path, hugging_face_folder, eos, generation, template, ends):
    given = {} if template == 'chatml' else {'template': template}
    tokenizer = opened(hugging_face_folder(tmp_path, eos=eos, generation=generation, **given))
    assert tokenizer.eos_ids == ends and tokenizer.pad_id not in ends


def test_bad_eos(tmp_path, hugging_face_folder):
    folder = hugging_face_folder(tmp_path, eos=None, template=PLAIN)
    with pytest.raises(
        UserError, match='neither the tokenizer nor generation_config.json .* names an EOS'
    ):
        opened(folder)
    for wrong in (330, -1, '<|im_end|>'):
        edit(folder, 'generation_config.json', eos_token_id=wrong)
        with pytest.raises(
            UserError,
            match='generation_config.json: eos_token_id .* is not an id of the tokenizer, which '
            'has 330',
        ):
            opened(folder)
    (tmp_path / 'generation_config.json').write_text('[2]')
    with pytest.raises(
        UserError, match='generation_config.json: expected a JSON object, found list'
    ):
        opened(folder)
    (tmp_path / 'generation_config.json').write_text('{"eos')
    with pytest.raises(UserError, match='generation_config.json: not valid JSON'):
        opened(folder)


# Templates.


def test_a_template_in_either_file(tmp_path, hugging_face_folder):
    folder = hugging_face_folder(tmp_path, template=PLAIN)
    in_jinja = opened(folder).chat_text(ASK, True)
    assert (tmp_path / 'chat_template.jinja').is_file()
    (tmp_path / 'chat_template.jinja').unlink()
    with pytest.raises(
        UserError, match='has no chat template.*tokenizer.chat_template names a file'
    ):
        opened(folder).chat_text(ASK, True)
    edit(folder, 'tokenizer_config.json', chat_template=PLAIN)
    assert opened(folder).chat_text(ASK, True) == in_jinja == 'Tom\n'


def test_several_named_templates(tmp_path, hugging_face_folder):
    folder = hugging_face_folder(tmp_path, template=None)
    named = {'default': 'D', 'tool_use': 'T{# tools #}', 'rag': 'R'}
    edit(
        folder,
        'tokenizer_config.json',
        chat_template=[{'name': name, 'template': text} for name, text in named.items()],
    )
    assert opened(folder).chat_text(ASK, True) == 'D'
    assert opened(folder).chat_text(ASK, True, tools=[{'name': 'add'}]) == 'T'
    assert opened(folder, chat_template='rag').chat_text(ASK, True) == 'R'
    assert opened(folder, chat_template='rag').fingerprint() != opened(folder).fingerprint()
    with pytest.raises(
        UserError,
        match='"rga" is neither a file nor a template of .*which names default, rag, tool_use. Did you '
        'mean "rag"',
    ):
        opened(folder, chat_template='rga')
    with pytest.raises(UserError, match='tokenizer.chat_template: '):
        opened(folder, chat_template=PLAIN * 9)
    edit(
        folder,
        'tokenizer_config.json',
        chat_template=[{'name': 'tool_use', 'template': 'T'}, {'name': 'rag', 'template': 'R'}],
    )
    with pytest.raises(
        UserError, match='several chat templates and none is called default; .*: rag, tool_use'
    ):
        opened(folder).chat_text(ASK, True)


def test_a_template_of_ones_own(tmp_path, hugging_face_folder):
    folder = hugging_face_folder(tmp_path, template=None)
    (tmp_path / 'mine.jinja').write_text(
        "{% for m in messages %}{{ m.content + '<|im_start|>' }}{% endfor %}"
    )
    tokenizer = opened(folder, chat_template=str(tmp_path / 'mine.jinja'))
    assert tokenizer.chat_text(ASK, True) == 'Tom<|im_start|>'
    assert tokenizer.eos_ids == (2, 1)  # what the new template ends turns with
    # so that an export has it
    assert tokenizer.tokenizer.chat_template == (tmp_path / 'mine.jinja').read_text()


# Text in, text out.


def test_settings_of_the_folder_change_no_text(tmp_path, hugging_face_folder):
    folder = hugging_face_folder(tmp_path)
    plain = opened(folder)
    even_so = 'clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output'
    edit(folder, 'tokenizer_config.json', **{'clean_up_tokenization_spaces': True, even_so: True})
    truncation = {'direction': 'Right', 'max_length': 3, 'strategy': 'LongestFirst', 'stride': 0}
    padding = {
        'strategy': {'Fixed': 64},
        'direction': 'Left',
        'pad_to_multiple_of': None,
        'pad_id': 0,
        'pad_type_id': 0,
        'pad_token': 'x',
    }
    edit(folder, 'tokenizer.json', truncation=truncation, padding=padding)
    for text in ("It 's 12 , or 13 ; do n't  add .", 'Tom has 12 apples and buys 345 more.'):
        ids = opened(folder).encode(text)
        assert ids == plain.encode(text) and opened(folder).decode(ids) == text


@pytest.mark.parametrize('style', template_styles.STYLES)
def test_a_text_that_continues_another_gets_the_ids_it_has_there(tmp_path, style):
    tokenizer = opened(template_styles.write_style(tmp_path, style))
    end = tokenizer.token(tokenizer.eos_ids[-1])
    for before in ('Tom has 12', f'Tom{end}', f'Tom{end}\n', 'x' * 100):
        for text in ('So 2 more.', '357', f'a{end}b'):
            whole, start = tokenizer.encode(before + text), tokenizer.encode(before)
            assert start + tokenizer.encode_more(text, before) == whole


def test_tokens_as_a_person_reads_them(tmp_path):
    for style in ('llama3', 'gemma3', 'phi'):
        tokenizer = opened(template_styles.write_style(tmp_path / style, style))
        text = 'Tom has 12 é\n' + tokenizer.token(tokenizer.eos_ids[1])
        read = ''.join(map(tokenizer.token, tokenizer.encode(text)))
        assert read.strip().startswith('Tom has 12 ') and read.endswith(
            '\n' + tokenizer.token(tokenizer.eos_ids[1])
        )
        assert (
            tokenizer.token(tokenizer.pad_id) == '<pad>'
            and tokenizer.token(tokenizer.mask_id) == '<mask>'
        )


# Folders of SentencePiece models.


def sentencepiece_folder(folder, **config):
    import sentencepiece

    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(template_styles.TEXTS),
        model_prefix=str(folder / 'tokenizer'),
        vocab_size=340,
        model_type='bpe',
        byte_fallback=True,
        normalization_rule_name='identity',
        remove_extra_whitespaces=False,
        pad_id=-1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    (folder / 'tokenizer.vocab').unlink()
    (folder / 'tokenizer_config.json').write_text(
        json.dumps({'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'} | config)
    )
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / 'tokenizer.model'))


def test_a_folder_with_a_sentencepiece_model_only(tmp_path):
    model = sentencepiece_folder(tmp_path, tokenizer_class='LlamaTokenizer', add_bos_token=True)
    tokenizer = opened(tmp_path)
    assert (tokenizer.eos_ids, tokenizer.bos_id, tokenizer.pad_id) == ((2,), 1, 340)
    for text in ('Tom has 12 apples.\n\n#### 357', 'é中😀', 'x'):
        assert (
            tokenizer.encode(text) == model.encode(text)
            and tokenizer.decode(tokenizer.encode(text)) == text
        )
    assert tokenizer.encode('Tom') + tokenizer.encode_more(' has', 'Tom') == model.encode('Tom has')


def test_a_sentencepiece_model_that_is_read_wrongly(tmp_path):
    sentencepiece_folder(tmp_path, tokenizer_class='GemmaTokenizer')
    with pytest.raises(
        UserError,
        match='other ids from it than SentencePiece does .*use tokenizer.name=sentencepiece',
    ):
        opened(tmp_path)
    model = tokenizers.sentencepiece(None, tmp_path, path=str(tmp_path / 'tokenizer.model'))
    assert (
        model.eos_ids == (2,)
        and model.encode_more(' has', 'Tom') == model.encode('Tom has')[len(model.encode('Tom')) :]
    )


# What is refused.


def test_folders_without_a_tokenizer(tmp_path, hugging_face_folder):
    qwen = tmp_path / 'qwen'
    qwen.mkdir()
    with pytest.raises(UserError, match='tokenizer.path: no folder .*qwne.*Did you mean "qwen"'):
        opened(tmp_path / 'qwne')
    with pytest.raises(UserError, match="tokenizer.path: no folder ''"):
        huggingface(None, None)
    # For this one transformers would make a tokenizer up.
    (qwen / 'config.json').write_text('{"model_type": "qwen2"}')
    with pytest.raises(
        UserError,
        match='no tokenizer in .*expected tokenizer.json or tokenizer.model; found config.json',
    ):
        opened(qwen)
    for broken in (
        '{"version"',
        '{"version": "1.0"}',
        '{"version": "1.0", "added_tokens": [], "model": {"type": "Nothing"}}',
    ):
        (qwen / 'tokenizer.json').write_text(broken)
        with pytest.raises(UserError, match='the tokenizer in .*qwen cannot be read'):
            opened(qwen)


@pytest.mark.parametrize('name', ['tokenizer_config.json', 'config.json'])
@pytest.mark.parametrize('auto', [{'AutoTokenizer': ['code.Mine', None]}, ['code.Mine', None]])
def test_code_of_the_folder_is_not_run(tmp_path, hugging_face_folder, name, auto):
    folder = hugging_face_folder(tmp_path)
    (tmp_path / 'code.py').write_text('raise SystemExit("was run")')
    edit(folder, name, auto_map=auto, model_type='mine')
    with pytest.raises(
        UserError,
        match=f'is code that comes with the folder .auto_map in {name}: trust_remote_code.*not run',
    ):
        opened(folder)


def test_code_of_the_model_does_not_concern_the_tokenizer(tmp_path, hugging_face_folder):
    folder = hugging_face_folder(tmp_path)
    edit(
        folder,
        'config.json',
        auto_map={'AutoConfig': 'code.Mine', 'AutoModelForCausalLM': 'code.Mine'},
        model_type='mine',
    )
    (tmp_path / 'code.py').write_text('raise SystemExit("was run")')
    assert opened(folder).encode('Tom')


def test_opening_asks_nobody_and_needs_no_torch(tmp_path, hugging_face_folder):
    folder = hugging_face_folder(tmp_path)
    edit(folder, 'config.json', auto_map={'AutoConfig': 'code.Mine'}, model_type='mine')
    script = f"""
import sys
sys.modules['torch'] = None  # as if it were not installed
from reasonjax.interop.huggingface.tokenizers import huggingface
tokenizer = huggingface(None, None, path={folder!r})
assert tokenizer.decode(tokenizer.encode('Tom has 12')) == 'Tom has 12'
assert tokenizer.chat([{{'role': 'user', 'content': 'Tom'}}], True)[0] == 1
assert 'tensorflow' not in sys.modules
"""
    result = subprocess.run(
        [sys.executable, '-c', script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0 and not result.stdout, result.stderr


# Ids and texts.


def test_special_ids(tmp_path, hugging_face_folder):
    tokenizer = opened(
        hugging_face_folder(tmp_path, generation={'eos_token_id': [2, 0]}, pad='<|im_start|>')
    )
    assert tokenizer.eos_ids == (2, 0)  # the tokenizer's own first: it is the one training appends
    assert tokenizer.pad_id == 1 and tokenizer.bos_id is None
    assert (tokenizer.mask_id, tokenizer.vocab_size) == (330, 331)


@pytest.mark.parametrize('pad', [None, '<|im_end|>', '<|endoftext|>'])
def test_pad_is_never_an_eos(tmp_path, pad, hugging_face_folder):
    tokenizer = opened(hugging_face_folder(tmp_path, pad=pad, generation={'eos_token_id': [2, 0]}))
    assert tokenizer.pad_id == 330 and tokenizer.mask_id == 331 and tokenizer.vocab_size == 332


def test_own_mask_and_no_mask(tmp_path, hugging_face_folder):
    folder = hugging_face_folder(tmp_path, mask='[MASK]')
    assert opened(folder).mask_id == 3 and opened(folder).vocab_size == 330
    assert opened(folder, mask='').mask_id is None
    assert opened(folder, mask='').fingerprint() != opened(folder).fingerprint()


@pytest.mark.parametrize('text', ['Tom has 12.\n\n  #### 357 ', 'é中😀', ' a , b', ''])
def test_round_trip(tmp_path, text, hugging_face_folder):
    tokenizer = opened(hugging_face_folder(tmp_path, pad=None))
    ids = tokenizer.encode(text)
    assert tokenizer.decode([*ids, 2, 330, 331]) == text


def test_bos_only_where_the_tokenizer_puts_it(tmp_path, hugging_face_folder):
    tokenizer = opened(hugging_face_folder(tmp_path, bos='<s>'))
    assert tokenizer.bos_id == 3
    assert 3 not in tokenizer.encode('Tom')  # specials are added by rendering, once
    assert tokenizer.encode('<s>Tom')[0] == 3
    unused = tmp_path / 'unused'
    hugging_face_folder(unused)
    config = json.loads((unused / 'tokenizer_config.json').read_text())
    (unused / 'tokenizer_config.json').write_text(
        json.dumps(config | {'bos_token': '<|endoftext|>'})
    )
    assert opened(unused).bos_id is None


def test_chat_is_the_template(tmp_path, hugging_face_folder):
    tokenizer = opened(hugging_face_folder(tmp_path))
    messages = [{'role': 'user', 'content': 'Tom has 1'}]
    text = '<|im_start|>user\nTom has 1<|im_end|>\n<|im_start|>assistant\n'
    assert tokenizer.chat_text(messages, True) == text
    assert tokenizer.chat(messages, True) == tokenizer.encode(text)
    assert tokenizer.chat(messages, True)[0] == 1
    assert tokenizer.chat(messages, False) == tokenizer.encode(
        '<|im_start|>user\nTom has 1<|im_end|>\n'
    )


def test_template_errors(tmp_path, hugging_face_folder):
    with pytest.raises(UserError, match='tokenizer.chat_template'):
        opened(hugging_face_folder(tmp_path / 'a', template=None)).chat(
            [{'role': 'user', 'content': 'x'}], True
        )
    strict = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(UserError, match=r'refuses message 1 \(role "user"\): roles must alternate'):
        opened(hugging_face_folder(tmp_path / 'b', template=strict)).chat(
            [{'role': 'user', 'content': 'x'}], True
        )
