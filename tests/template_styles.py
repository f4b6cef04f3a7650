"""Chat templates in the manner of model families, each with a small tokenizer of its family's kind.

Only the conventions are the families'; the templates are written for these tests.
"""

import json
import pathlib

TEXTS = [
    'Tom has 12 apples and buys 345 more.\nHow many does he have?\n\n#### 357',
    'She ran  two   miles: 1/2 + 3/4 = 5/4.\n  Indented line\n',
    'user assistant system tool You are helpful. {"name": "add", "arguments": {"a": 1}}',
    'The answer is $1,024.50 (or 1e3).',
] * 40

# Headers round the role, two line breaks, BOS written by the template, one token that ends every
# turn.
LLAMA3 = """{{- bos_token }}
{%- set ns = namespace(system='', rest=messages) %}
{%- if messages[0].role == 'system' %}{% set ns.system = messages[0].content | trim %}{% set ns.rest = messages[1:] %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools %}{{ 'You can call:\\n' }}{% for t in tools %}{{ t | tojson }}{{ '\\n' }}{% endfor %}{% endif %}
{{- ns.system + '<|eot_id|>' }}
{%- for m in ns.rest %}
{{- '<|start_header_id|>' + ('ipython' if m.role == 'tool' else m.role) + '<|end_header_id|>\\n\\n' }}
{%- if m.tool_calls %}{% set f = m.tool_calls[0].function %}{{ {'name': f.name, 'parameters': f.arguments} | tojson }}
{%- elif m.role == 'tool' %}{{ m.content | tojson }}
{%- else %}{{ m.content | trim }}{% endif %}
{{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

_QWEN_SYSTEM = """{%- set told = messages[0].content if messages[0].role == 'system' else DEFAULT %}
{%- if told or tools %}{{ '<|im_start|>system\\n' + told }}
{%- if tools %}{{ '\\n\\n# Tools\\n<tools>' }}{% for t in tools %}{{ '\\n' }}{{ t | tojson }}{% endfor %}{{ '\\n</tools>' }}{% endif %}
{{- '<|im_end|>\\n' }}{% endif %}"""

_QWEN_CALLS = """{%- for c in m.tool_calls or [] %}
{{- ('\\n' if m.content or not loop.first else '') + '<tool_call>\\n' }}
{{- {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}
{{- '\\n</tool_call>' }}{% endfor %}"""

_QWEN_TOOL = """{%- elif m.role == 'tool' %}
{{- '<|im_start|>user' if loop.previtem is not defined or loop.previtem.role != 'tool' else '' }}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
{{- '<|im_end|>\\n' if loop.last or loop.nextitem.role != 'tool' else '' }}
{%- endif %}{% endfor %}"""

# A system prompt of its own where none is given; tools in the system turn, tool results in a user
# turn.
QWEN25 = (
    _QWEN_SYSTEM.replace('DEFAULT', "'You are helpful.'")
    + """{%- for m in messages %}
{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- elif m.role == 'assistant' %}{{ '<|im_start|>assistant\\n' + (m.content or '') }}"""
    + _QWEN_CALLS
    + "{{ '<|im_end|>\\n' }}"
    + _QWEN_TOOL
    + "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Thoughts are written only behind the last question, and an empty thought where the last answer has
# none.
QWEN3 = (
    """{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"""
    + _QWEN_SYSTEM.replace('DEFAULT', "''")
    + """{%- for m in messages %}
{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- elif m.role == 'assistant' %}
{%- set content = m.content if m.content is string else '' %}
{%- set thought = m.reasoning_content if m.reasoning_content is string else '' %}
{%- if '</think>' in content %}{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}{% endif %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last and (loop.last or thought) %}{{ '<think>\\n' + thought + '\\n</think>\\n\\n' }}{% endif %}
{{- content }}"""
    + _QWEN_CALLS
    + "{{ '<|im_end|>\\n' }}"
    + _QWEN_TOOL
    + """{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"""
)

# The assistant is called model; the system prompt goes into the first question; turns must
# alternate; content may be parts.
GEMMA3 = """{{- bos_token }}
{%- set ns = namespace(first='', rest=messages) %}
{%- if messages[0].role == 'system' %}
{%- set ns.first = (messages[0].content if messages[0].content is string else messages[0].content[0].text) + '\\n\\n' %}
{%- set ns.rest = messages[1:] %}{% endif %}
{%- for m in ns.rest %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate user/assistant/user/...') }}{% endif %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (ns.first if loop.first else '') }}
{%- if m.content is string %}{{ m.content | trim }}
{%- else %}{% for part in m.content %}{{ part.text | trim }}{% endfor %}{% endif %}
{{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

# No roles spelt out: brackets round questions, EOS behind answers; the system prompt stands in the
# last message if that is a question.
MISTRAL = """{{- bos_token }}
{%- set ns = namespace(system='', rest=messages) %}
{%- if messages[0].role == 'system' %}{% set ns.system = messages[0].content + '\\n\\n' %}{% set ns.rest = messages[1:] %}{% endif %}
{%- for m in ns.rest %}
{%- if m.role == 'user' %}{{ '[INST] ' + (ns.system if loop.last else '') + m.content + '[/INST]' }}
{%- elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}
{%- else %}{{ raise_exception('Only user and assistant roles are supported') }}{% endif %}
{%- endfor %}"""

# A token for each role, one that ends turns, and the tokenizer's EOS at the end of a conversation
# nobody has to answer.
PHI = """{%- for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""

# Nothing ends a turn but the token that opens the next one; arguments are gone through one by one.
GLM = """[gMASK]<sop>
{%- if tools %}{{ '<|system|>\n' }}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}{{ '<|assistant|>' }}
{{- '\n<think>' + (m.reasoning_content or '' if loop.index0 > ns.last else '') + '</think>' }}
{%- if m.content %}{{ '\n' + m.content | trim }}{% endif %}
{%- for c in m.tool_calls or [] %}{{ '\n<tool_call>' + c.function.name }}
{%- for k, v in c.function.arguments.items() %}{{ '\n<arg>' + k + '=' + (v if v is string else v | tojson) + '</arg>' }}{% endfor %}
{{- '\n</tool_call>' }}{% endfor %}
{%- elif m.role == 'tool' %}
{{- '<|observation|>' if loop.previtem.role != 'tool' else '' }}{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
{%- elif m.role in ('user', 'system') %}{{ '<|' + m.role + '|>\n' + m.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""

# No token ends a turn: words and line breaks tell turns apart.
WORDS = """{%- for m in messages %}
{%- if m.role == 'system' %}{{ m.content + '\n\n' }}
{%- elif m.role == 'user' %}{{ 'User: ' + m.content + '\n\n' }}
{%- elif m.role == 'assistant' %}{{ 'Assistant: ' + m.content | trim + '\n\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""

# Arguments are JSON text; an inner answer, a last one and a call end each in a way of its own;
# calls stand without words.
HARMONY = """{%- for m in messages %}
{%- if m.role == 'assistant' and m.tool_calls %}
{%- if m.thinking %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}
{{- '<|start|>assistant to=' + m.tool_calls[0].function.name + '<|message|>' + m.tool_calls[0].function.arguments + '<|call|>' }}
{%- elif m.role == 'assistant' %}
{%- if m.thinking and loop.last %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}
{%- set end = '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' %}
{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + end }}
{%- elif m.role == 'tool' %}{{ '<|start|>tool<|message|>' + m.content | tojson + '<|end|>' }}
{%- else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""

# Content is parts and nothing else.
PARTS = """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{%- for part in m.content %}{{ part.text if part.type == 'text' else '' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

# template, special tokens, (bos, eos), vocabulary
STYLES = {
    'llama3': (
        LLAMA3,
        ('<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'),
        ('<|begin_of_text|>', '<|end_of_text|>'),
        'bytes',
    ),
    'qwen25': (QWEN25, ('<|im_start|>',), (None, '<|im_end|>'), 'bytes'),
    'qwen3': (QWEN3, ('<|im_start|>', '<think>', '</think>'), (None, '<|im_end|>'), 'bytes'),
    'gemma3': (GEMMA3, ('<start_of_turn>', '<end_of_turn>'), ('<bos>', '<eos>'), 'spaces'),
    'mistral': (MISTRAL, ('[INST]', '[/INST]'), ('<s>', '</s>'), 'first'),
    'phi': (
        PHI,
        ('<|system|>', '<|user|>', '<|assistant|>', '<|end|>'),
        ('<s>', '<|endoftext|>'),
        'always',
    ),
}

# Their ends need `generation_config.json`: what stops a model that was trained on the template.
_GLM = (
    '[gMASK]',
    '<sop>',
    '<|system|>',
    '<|user|>',
    '<|assistant|>',
    '<|observation|>',
    '<think>',
    '</think>',
)
_HARMONY = ('<|start|>', '<|channel|>', '<|message|>', '<|end|>', '<|call|>')
ODD_STYLES = {
    'glm': (GLM, _GLM, (None, '<|endoftext|>'), 'bytes'),
    'words': (WORDS, (), (None, '<|endoftext|>'), 'bytes'),
    'harmony': (HARMONY, _HARMONY, (None, '<|return|>'), 'bytes'),
    'parts': (PARTS, ('<|im_start|>',), (None, '<|im_end|>'), 'bytes'),
}
STOPS = {
    'glm': ('<|endoftext|>', '<|user|>', '<|observation|>'),
    'harmony': ('<|return|>', '<|call|>'),
}


def write_style(folder: pathlib.Path, style: str, **config) -> str:
    """Writes a folder as a model of the family has it, `tokenizer_config.json` changed by `config`;
    returns its path."""
    from tokenizers import (
        AddedToken,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    template, tokens, (bos, eos), kind = (STYLES | ODD_STYLES)[style]
    specials = [*(token for token in (bos, eos) if token), *tokens]
    tokenizer = Tokenizer(models.BPE(byte_fallback=kind != 'bytes', unk_token=None))
    alphabet = (
        pre_tokenizers.ByteLevel.alphabet()
        if kind == 'bytes'
        else list('abcdefghijklmnopqrstuvwxyzTSHAI0123456789.,:+=/()$#\n')
    )
    if kind == 'bytes':
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    elif kind == 'spaces':
        tokenizer.normalizer = normalizers.Replace(' ', '▁')
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()]
        )
    else:
        # Llama 2's way: a space before a text, or before each piece between special tokens.
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
        tokenizer.decoder = decoders.Sequence(
            [
                decoders.Replace('▁', ' '),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(' ', 1, 0),
            ]
        )
    # Phi's swallow the white space that follows them.
    names = [
        AddedToken(token, special=True, normalized=False, rstrip=style == 'phi' and token in tokens)
        for token in specials
    ]
    single_bytes = [f'<0x{byte:02X}>' for byte in range(256)] if kind != 'bytes' else []
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*names, *single_bytes],
        initial_alphabet=alphabet,
        max_token_length=8,
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        [text.replace('{', ' ').replace('}', ' ') for text in TEXTS], trainer
    )
    if single_bytes:
        # Trained as special to keep them whole; but no text spells them.
        content = json.loads(tokenizer.to_str())
        content['added_tokens'] = [
            token for token in content['added_tokens'] if token['content'] in specials
        ]
        tokenizer = Tokenizer.from_str(json.dumps(content))
    if bos and style != 'phi':
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f'{bos} $A', special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)
    fast.chat_template = template
    fast.save_pretrained(folder)
    if style in STOPS:
        ids = [fast.convert_tokens_to_ids(token) for token in STOPS[style]]
        (pathlib.Path(folder) / 'generation_config.json').write_text(
            json.dumps({'eos_token_id': ids})
        )
    if config:
        path = pathlib.Path(folder) / 'tokenizer_config.json'
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return str(folder)
