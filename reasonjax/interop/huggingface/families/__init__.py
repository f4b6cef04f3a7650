"""Hugging Face families as tables: how a folder's config and tensor names map to one forward
pass."""

from reasonjax.interop.huggingface.families.base import Family, Tensor, tensors
from reasonjax.interop.huggingface.families.gemma import GEMMA2, GEMMA3
from reasonjax.interop.huggingface.families.llama import LLAMA, MISTRAL, SMOLLM3
from reasonjax.interop.huggingface.families.mixtral import MIXTRAL
from reasonjax.interop.huggingface.families.olmo import OLMO2
from reasonjax.interop.huggingface.families.phi import PHI3
from reasonjax.interop.huggingface.families.qwen import QWEN2, QWEN3, QWEN3_MOE

# In the order in which a model that was not imported looks for one that can hold it.
FAMILIES = (LLAMA, QWEN2, QWEN3, QWEN3_MOE, MISTRAL, MIXTRAL, SMOLLM3, OLMO2, GEMMA2, GEMMA3, PHI3)

__all__ = ['FAMILIES', 'Family', 'Tensor', 'tensors']
