"""Our tokenizers as Hugging Face folders: transformers must give the same ids, and a folder of
theirs must come out as it was."""

import json
import random

import folders
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer

from reasonjax.data import sources
from reasonjax.data import tokenizers as ours
from reasonjax.errors import UserError
from reasonjax.interop.huggingface.tokenizers import huggingface
from reasonjax.interop.huggingface.tokenizers import saved as saving

WORDS = [
    'hello',
    'world',
    'the',
    'answer',
    'naïve',
    '日本語',
    '🙂',
    'foo_bar',
    'a=b',
    '  ',
    '\n',
    '\t',
    '12',
    '345',
    'aaaa',
    'ababab',
    '=',
]
HARD = [
    *WORDS,
    '</s>',
    '<s>',
    '<pad>',
    '<mask>',
    '<unk>',
    '<0x41>',
    '▁',
    ' ',
    '\r',
    '\0',
    'é',
    'e\u0301',
    '\u200b',
    '\U0010ffff',
    'ﬁ',
]


def saved(tokenizer, path):
    path.mkdir()
    saving.save_tokenizer(tokenizer, path)
    return AutoTokenizer.from_pretrained(path)


def trained(path, seed=0, size=350):
    draw = random.Random(seed)
    texts = [' '.join(draw.choice(WORDS) for _ in range(20)) for _ in range(200)]
    return ours.sentencepiece(lambda: texts, path, vocab_size=size)


@pytest.mark.parametrize('special', [{}, dict(bos='.', mask='')])
def test_characters(tmp_path, special):
    tokenizer = ours.characters(None, None, **special)
    loaded = saved(tokenizer, tmp_path / 'saved')
    draw = random.Random(1)
    alphabet = [
        c
        for i, c in enumerate(tokenizer.alphabet)
        if i not in (tokenizer.pad_id, tokenizer.mask_id)
    ]
    for _ in range(100):
        text = ''.join(draw.choices(alphabet, k=30))
        ids = tokenizer.encode(text)
        assert loaded.encode(text, add_special_tokens=False) == ids
        assert loaded(text).input_ids == [] + ([tokenizer.bos_id] if special else []) + ids
        assert loaded.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)
    assert (loaded.pad_token, loaded.eos_token, loaded.mask_token) == (
        '_',
        '$',
        None if special else 'M',
    )
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.bos_token_id) == (
        0,
        2,
        tokenizer.bos_id,
    )
    assert loaded.padding_side == 'left'
    with pytest.raises(Exception, match='UNK'):
        loaded.encode('what is not in the alphabet')


def test_sentencepiece(tmp_path):
    tokenizer = trained(tmp_path)
    loaded = saved(tokenizer, tmp_path / 'saved')
    draw = random.Random(2)
    for _ in range(1500):
        text = ''.join(draw.choices(HARD, k=10))
        ids = tokenizer.encode(text)
        assert loaded(text).input_ids == [tokenizer.bos_id, *ids], text
        assert loaded.decode(ids, skip_special_tokens=True) == text
    # Read as a folder of its own, it is the same tokenizer.
    again = huggingface(None, None, path=str(tmp_path / 'saved'))
    for name in ('pad_id', 'eos_ids', 'bos_id', 'mask_id', 'vocab_size'):
        assert getattr(again, name) == getattr(tokenizer, name)


def test_sentencepiece_over_real_texts(tmp_path, data_dir):
    rows = sources.jsonl(path=str(data_dir / 'gsm8k' / 'train.jsonl'))
    texts = [text for i in range(800) for text in (rows[i]['question'], rows[i]['answer'])]
    tokenizer = ours.sentencepiece(lambda: texts[:600], tmp_path, vocab_size=1000)
    loaded = saved(tokenizer, tmp_path / 'saved')
    assert [loaded.encode(text, add_special_tokens=False) for text in texts] == [
        tokenizer.encode(text) for text in texts
    ]
    assert max(map(len, loaded.get_vocab())) > 5


def test_pad_and_mask_behind_the_last_piece(tmp_path):
    """A model with neither, as others train them."""
    path = tmp_path / 'm'
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(['the cat sat on the mat'] * 50),
        model_prefix=str(path),
        model_type='bpe',
        vocab_size=290,
        minloglevel=2,
        byte_fallback=True,
        normalization_rule_name='identity',
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        hard_vocab_limit=False,
    )
    tokenizer = ours.sentencepiece(None, tmp_path, path=f'{path}.model')
    loaded = saved(tokenizer, tmp_path / 'saved')
    assert (loaded.pad_token, loaded.mask_token) == ('<pad>', '<mask>')
    assert (
        (loaded.pad_token_id, loaded.mask_token_id)
        == (tokenizer.pad_id, tokenizer.mask_id)
        == (len(loaded) - 2, len(loaded) - 1)
    )


@pytest.mark.parametrize(
    'options, reason',
    [
        (dict(model_type='unigram'), 'not byte pairs'),
        (dict(normalization_rule_name='nmt_nfkc'), 'changes the text'),
        (dict(remove_extra_whitespaces=True), 'changes the text'),
        (dict(add_dummy_prefix=True), 'a space in front of every text'),
        (dict(user_defined_symbols=['<think>']), 'pieces of the user'),
        (dict(byte_fallback=False), 'unknown characters in bytes'),
    ],
)
def test_models_whose_ids_are_not_sure_are_refused(tmp_path, options, reason):
    plain = dict(
        model_type='bpe',
        byte_fallback=True,
        normalization_rule_name='identity',
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
    )
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(['the cat sat on the mat'] * 50),
        model_prefix=str(tmp_path / 'm'),
        vocab_size=300,
        minloglevel=2,
        hard_vocab_limit=False,
        **plain | options,
    )
    tokenizer = ours.sentencepiece(None, tmp_path, path=str(tmp_path / 'm.model'))
    with pytest.raises(UserError, match=f'{reason}.*tokenizer.name=huggingface'):
        saved(tokenizer, tmp_path / 'saved')


def test_a_piece_of_characters_that_are_no_pieces_is_refused(tmp_path):
    """SentencePiece puts such a piece together all the same; byte pairs of the tokenizers library
    cannot."""
    trained(tmp_path)
    file = tmp_path / 'sentencepiece_350.model'
    model = sentencepiece_model_pb2.ModelProto.FromString(file.read_bytes())
    next(piece for piece in model.pieces if piece.piece == 'w').piece = 'Ж'
    file.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match='tokenizer.path: .*no pieces.*tokenizer.name=huggingface'):
        saved(trained(tmp_path), tmp_path / 'saved')


def test_a_folder_is_copied_byte_for_byte(tmp_path):
    source = folders.write(tmp_path / 'source')
    (source / 'additional_chat_templates').mkdir()
    (source / 'additional_chat_templates' / 'tool_use.jinja').write_text('x')
    saved(huggingface(None, None, path=str(source)), tmp_path / 'saved')
    copied = {
        str(p.relative_to(tmp_path / 'saved')): p.read_bytes()
        for p in (tmp_path / 'saved').rglob('*')
        if p.is_file()
    }
    assert {
        'tokenizer.json',
        'tokenizer_config.json',
        'chat_template.jinja',
        'additional_chat_templates/tool_use.jinja',
    } == copied.keys()
    assert all((source / name).read_bytes() == content for name, content in copied.items())


def test_a_chat_template_of_the_config_goes_with_the_tokenizer(tmp_path):
    source = folders.write(tmp_path / 'source')
    file = tmp_path / 'plain.jinja'
    file.write_text('{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}')
    tokenizer = huggingface(None, None, path=str(source), chat_template=str(file))
    loaded = saved(tokenizer, tmp_path / 'saved')
    messages = [{'role': 'user', 'content': 'hi'}]
    assert (
        loaded.apply_chat_template(messages, tokenize=False)
        == '[user] hi<|im_end|>'
        == tokenizer.chat_text(messages, False)
    )


def test_a_tokenizer_that_transformers_reads_with_a_class_of_its_own_is_refused(tmp_path):
    path = tmp_path / 'saved'
    path.mkdir()
    (path / 'config.json').write_text(json.dumps({'model_type': 'qwen2'}))
    with pytest.raises(UserError, match='reads the folder as a Qwen2Tokenizer'):
        saving.save_tokenizer(trained(tmp_path), path)
