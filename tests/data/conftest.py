"""Tokenizers with a chat template of the test's own."""

import pytest

from reasonjax.interop.huggingface.tokenizers import huggingface


@pytest.fixture
def of(tmp_path, hugging_face_folder):
    """`of(body)` is a tokenizer whose template writes `body` for every message `m` of the
    assistant, in turns as ChatML has them."""

    def made(body, others='{{ m.content }}', **knobs):
        template = (
            "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == "
            "'assistant' %}" + body
        )
        template += '{% else %}' + others + "{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        template += "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return huggingface(None, None, path=hugging_face_folder(folder, template=template, **knobs))

    return made
