"""Tokenizers of Hugging Face folders: opened (`folder`), their chat templates run (`templates`,
within `bounded`), and any tokenizer written as such a folder (`saved`).

A slot of `reasonjax.config_names`: `tokenizer.name='huggingface'` means `huggingface` of here.
"""

from reasonjax.interop.huggingface.tokenizers.folder import HuggingFace, huggingface

__all__ = ['HuggingFace', 'huggingface']
