"""Every chat template of the installed packages, and of a folder: each with a small tokenizer that
has its special tokens."""

import functools
import importlib.util
import json
import os
import pathlib
import re

# Text that a template writes and real vocabularies hold as one token.
_SPECIAL = re.compile(
    r'<\|[^|<>\s]+\|>|<\|[a-z_]+>|<[a-z_]+\|>|<｜[^｜<>]+｜>|</?[a-z_:]+>|\[/?[A-Z_]+\]|\[gMASK\]|<[A-Z_]+>'
)
# What models of a template that has the first of these stop at, beside what it writes behind an
# answer (`generation_config.json`).
_STOPS = (
    ('[gMASK]', ('<|endoftext|>', '<|user|>', '<|observation|>')),
    ('<|return|>', ('<|return|>', '<|call|>', '<|endoftext|>')),
    ('<|turn>', ('<eos>', '<turn|>', '<|tool_response>')),
    ('<|assistant_end|>', ('<|assistant_end|>', '<|tools_suffix|>')),
    ('<|eom_id|>', ('<|end_of_text|>', '<|eom_id|>', '<|eot_id|>')),
)
_EOS = '<|endoftext|>'


def files() -> list[pathlib.Path]:
    """Chat templates within the packages `trl` and `transformers`, and in the folder
    REASONJAX_TEMPLATES."""
    folders = (
        [pathlib.Path(os.environ['REASONJAX_TEMPLATES'])]
        if os.environ.get('REASONJAX_TEMPLATES')
        else []
    )
    if folders and not any(folders[0].rglob('*.jinja')):
        raise FileNotFoundError(f'REASONJAX_TEMPLATES={folders[0]} holds no *.jinja')
    for package in ('trl', 'transformers'):
        spec = importlib.util.find_spec(package)
        folders += map(pathlib.Path, spec.submodule_search_locations) if spec else []
    return [file for folder in folders for file in sorted(folder.rglob('*.jinja'))]


@functools.lru_cache(maxsize=1)
def _vocabulary() -> str:
    from template_styles import TEXTS
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer.to_str()


def write_folder(folder: pathlib.Path, template: str) -> str:
    """Writes a model folder with a template, all its special tokens and what its models stop at;
    returns its path."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(_vocabulary())
    stops = next((tokens for sign, tokens in _STOPS if sign in template), ())
    eos = stops[0] if stops else '</s>' if '[INST]' in template else _EOS
    specials = sorted({*_SPECIAL.findall(template), *stops, eos, '<s>'})
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in specials]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token='<s>', eos_token=eos)
    fast.chat_template = template
    fast.save_pretrained(folder)
    ids = [fast.convert_tokens_to_ids(token) for token in stops or (eos,)]
    (folder / 'generation_config.json').write_text(json.dumps({'eos_token_id': ids}))
    return str(folder)
