"""A tiny Hugging Face model folder, as a user would have downloaded it: weights, config, tokenizer
with a chat template."""

import json
import pathlib

import toys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from reasonjax.interop.huggingface import exported
from reasonjax.model.config import ModelConfig

SPECIALS = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + "
    "'<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHAPE = dict(
    vocab_size=272, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_dim=48, norm_eps=1e-6
)
# A Qwen3; its embedding has a few rows more than there are tokens, as theirs do.
QWEN3 = ModelConfig(**SHAPE, qk_norm='head', tied=True, embed_std=0.3, max_positions=512)


def tokenizer() -> PreTrainedTokenizerFast:
    """A token per byte, and ChatML's: PAD is an EOS, as in base models."""
    pieces = {
        piece: number for number, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    backend = Tokenizer(models.BPE(vocab=pieces, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token='<|im_end|>', pad_token='<|endoftext|>'
    )
    made.add_special_tokens({'additional_special_tokens': list(SPECIALS)})
    made.chat_template = TEMPLATE
    return made


def write(
    path: pathlib.Path, config: ModelConfig = QWEN3, dtype: str = 'float32', seed: int = 0
) -> pathlib.Path:
    """Writes the folder and returns it."""
    path.mkdir(parents=True)
    family = exported.family_of(config)
    exported.save_tensors(path, family, config, toys.params(config, seed), dtype=dtype)
    made = tokenizer()
    written = exported.transformers_config(family, config)
    written.dtype = dtype
    written.save_pretrained(path)
    made.save_pretrained(path)
    ends = [made.convert_tokens_to_ids(token) for token in ('<|im_end|>', '<|endoftext|>')]
    (path / 'generation_config.json').write_text(
        json.dumps({'eos_token_id': ends, 'pad_token_id': ends[1]})
    )
    return path
