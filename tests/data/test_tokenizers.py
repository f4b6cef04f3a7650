"""Tokenizers: round trips, special ids, and what each refuses."""

import json
import pathlib

import pytest

from reasonjax.data import tokenizers, vocabulary
from reasonjax.errors import UserError

ALPHABET = '_.$M#=,0123456789+'
HARD = [
    'a\n\nb',
    '  two  spaces ',
    ' ',
    '\t\r\n',
    '<mask> </s> <pad> <s>',
    'é中😀',
    '\u2581x \u2581',
    '0123456789',
    '',
]


def no_texts():
    raise AssertionError('texts were read')


def characters(**knobs):
    return tokenizers.characters(
        no_texts, pathlib.Path('/nowhere'), **{'alphabet': ALPHABET} | knobs
    )


# Characters.


def test_characters_are_numbered_in_the_order_of_the_alphabet():
    tokenizer = characters()
    assert tokenizer.encode('12+3=#$') == [8, 9, 17, 10, 5, 4, 2]
    assert (tokenizer.pad_id, tokenizer.eos_ids, tokenizer.mask_id, tokenizer.bos_id) == (
        0,
        (2,),
        3,
        None,
    )
    assert tokenizer.vocab_size == 18


def test_characters_decode_drops_special_ids_only():
    tokenizer = characters(bos='.')
    assert tokenizer.decode([1, 8, 3, 9, 2, 0, 0]) == '12'
    assert tokenizer.decode(tokenizer.encode('0123456789+=,#')) == '0123456789+=,#'


@pytest.mark.parametrize(
    ('text', 'shown'),
    [('1?2', "'?' at position 2"), ('a', "'a' at position 1"), ('1_', "'_' at position 2")],
)
def test_characters_name_what_they_cannot_encode(text, shown):
    with pytest.raises(UserError) as error:
        characters().encode(text)
    assert shown in str(error.value) and ALPHABET in str(error.value)


@pytest.mark.parametrize(
    ('knobs', 'message'),
    [
        ({'alphabet': '_$MM'}, "'M' appears twice"),
        ({'pad': '?'}, "tokenizer.pad: expected one character of the alphabet .* got '\\?'"),
        ({'eos': ''}, 'tokenizer.eos: expected one character'),
        ({'eos': '_'}, 'must be different characters'),
    ],
)
def test_characters_refuse_bad_knobs(knobs, message):
    with pytest.raises(UserError, match=message):
        characters(**knobs)


def test_characters_without_mask():
    assert characters(mask='').mask_id is None


def test_fingerprints_tell_tokenizers_apart():
    assert characters().fingerprint() == characters().fingerprint()
    prints = {
        characters().fingerprint(),
        characters(mask='').fingerprint(),
        characters(alphabet='_.$M').fingerprint(),
    }
    assert len(prints) == 3


def test_tokenizers_without_a_template_refuse_to_chat():
    with pytest.raises(UserError, match='tokenizer.chat_template'):
        characters().chat([{'role': 'user', 'content': '1'}], True)


# SentencePiece.


@pytest.fixture(scope='module')
def trained(tmp_path_factory, texts):
    return tokenizers.sentencepiece(lambda: texts, tmp_path_factory.mktemp('sp'), vocab_size=340)


def test_sentencepiece_special_ids(trained):
    assert (trained.pad_id, trained.eos_ids, trained.bos_id, trained.mask_id) == (0, (1,), 2, 4)
    assert trained.vocab_size == 340


@pytest.mark.parametrize('text', [*HARD, 'Tom has 12 apples.\n\n#### 357'])
def test_sentencepiece_gives_back_any_text(trained, text):
    ids = trained.encode(text)
    assert trained.decode(ids) == text
    assert not {0, 1, 2, 3, 4} & set(ids)


def test_sentencepiece_decode_drops_special_ids(trained):
    ids = trained.encode('12 apples')
    assert trained.decode([2, *ids, 4, 1, 0, 0]) == '12 apples'


def test_sentencepiece_splits_digits(trained):
    assert len(trained.encode('345')) == 3


def test_sentencepiece_is_trained_once_and_the_same_each_time(tmp_path, trained, texts):
    first = tokenizers.sentencepiece(lambda: texts, tmp_path / 'a' / 'b', vocab_size=340)
    assert first.fingerprint() == trained.fingerprint()
    assert [file.name for file in (tmp_path / 'a' / 'b').iterdir()] == ['sentencepiece_340.model']
    again = tokenizers.sentencepiece(no_texts, tmp_path / 'a' / 'b', vocab_size=340)
    assert again.fingerprint() == first.fingerprint()


def test_sentencepiece_does_not_skip_long_texts(tmp_path):
    text = ' '.join(f'word{i} zebra' for i in range(2000))
    vocabulary.train_sentencepiece([text, 'a'], tmp_path / 'm.model', 295)
    tokenizer = tokenizers.sentencepiece(no_texts, tmp_path, path=str(tmp_path / 'm.model'))
    assert len(tokenizer.encode(' zebra')) <= 2


def test_sentencepiece_adds_ids_a_foreign_model_lacks(tmp_path, texts):
    import sentencepiece

    prefix = str(tmp_path / 'foreign')
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(texts),
        model_prefix=prefix,
        vocab_size=60,
        model_type='bpe',
        pad_id=-1,
        minloglevel=2,
    )
    tokenizer = tokenizers.sentencepiece(no_texts, tmp_path, path=prefix + '.model')
    assert (tokenizer.eos_ids, tokenizer.bos_id) == ((2,), 1)
    assert (tokenizer.pad_id, tokenizer.mask_id, tokenizer.vocab_size) == (60, 61, 62)
    assert tokenizer.decode([1, *tokenizer.encode('Tom has apples'), 2, 60, 61]) == 'Tom has apples'


def test_a_continued_text_gets_no_space_in_front(tmp_path, texts, trained):
    import sentencepiece

    prefix = str(tmp_path / 'foreign')
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(texts),
        model_prefix=prefix,
        vocab_size=330,
        model_type='bpe',
        byte_fallback=True,
        normalization_rule_name='identity',
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    foreign = tokenizers.sentencepiece(no_texts, tmp_path, path=prefix + '.model')
    # the model adds spaces
    assert foreign.decode([*foreign.encode('Tom'), *foreign.encode('has')]) == 'Tom has'
    for tokenizer in (foreign, trained, characters(alphabet='_$MabcdefghijklmnopqrstuvwxyzT 12\n')):
        for text in ('has 12', ' has', '', '\nhas'):
            assert (
                tokenizer.decode([*tokenizer.encode('Tom'), *tokenizer.encode_more(text)])
                == 'Tom' + text
            )


def test_sentencepiece_errors(tmp_path, texts):
    with pytest.raises(
        UserError,
        match=r'tokenizer.path: no SentencePiece model at .*vocab.modl.*Did you mean "vocab.model"',
    ):
        (tmp_path / 'vocab.model').write_bytes(b'no')
        tokenizers.sentencepiece(no_texts, tmp_path, path=str(tmp_path / 'vocab.modl'))
    with pytest.raises(UserError, match=r'tokenizer\.path: \S+vocab\.model is'):
        tokenizers.sentencepiece(no_texts, tmp_path, path=str(tmp_path / 'vocab.model'))
    with pytest.raises(
        UserError, match='tokenizer.vocab_size: no vocabulary of 9000 pieces from 120 texts'
    ):
        tokenizers.sentencepiece(lambda: texts, tmp_path, vocab_size=9000)
    with pytest.raises(UserError, match='tokenizer sentencepiece'):
        tokenizers.sentencepiece(lambda: ['', ''], tmp_path, vocab_size=300)
    assert [file.name for file in tmp_path.iterdir()] == ['vocab.model']


def test_sentencepiece_gives_back_real_text(tmp_path, data_dir):
    rows = [
        json.loads(line) for line in (data_dir / 'gsm8k' / 'train.jsonl').read_text().splitlines()
    ]
    real = [f'Question: {row["question"]}\nAnswer: {row["answer"]}' for row in rows]
    tokenizer = tokenizers.sentencepiece(lambda: real[:2000], tmp_path, vocab_size=2048)
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in real)
