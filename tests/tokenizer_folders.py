"""Hugging Face tokenizer folders, made on the spot."""

import json

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + "
    "'\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = [
    'Tom has 12 apples and buys 345 more.\nHow many does he have?\n\n#### 357',
    'She ran  two   miles: 1/2 + 3/4 = 5/4.\n  Indented line\n',
    'The answer is $1,024.50 (or 1e3).',
] * 40


def write_folder(
    folder,
    *,
    eos='<|im_end|>',
    pad='<|endoftext|>',
    bos=None,
    mask=None,
    template=TEMPLATE,
    generation=None,
):
    """Writes a byte-level BPE tokenizer as a model folder has it."""
    from tokenizers import (
        AddedToken,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    specials = [
        '<|endoftext|>',
        '<|im_start|>',
        '<|im_end|>',
        *(token for token in (bos, mask) if token),
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f'{bos} $A', special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, pad_token=pad, bos_token=bos, mask_token=mask
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    if generation is not None:
        (folder / 'generation_config.json').write_text(json.dumps(generation))
    return str(folder)
