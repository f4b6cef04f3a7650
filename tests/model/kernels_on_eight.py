"""What `test_kernels` runs in a process that has eight devices: kernels on meshes against the
formulas; fails where they differ."""

import functools

import attentions
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from toys import changed

from reasonjax.model import kernels
from reasonjax.parallel import mesh as meshes

splash_attention_kernel.make_splash_mha = functools.partial(
    splash_attention_kernel.make_splash_mha, interpret=True
)
kernels.CUDNN = 'xla'

# The first has fewer key heads than devices among which query heads are split; each is then kept by
# several.
for name, sizes, packed in (
    ('cudnn', dict(fsdp=2, tensor=4), True),
    ('splash', dict(fsdp=2, tensor=2, sequence=2), False),
):
    config = changed(attentions.CONFIG, attention_kernel=name)
    mesh = meshes.make_mesh(sizes)
    for given, local in (
        (attentions.rows(config, T=140), False),
        (attentions.bins(config, packed=packed), True),
    ):
        got = attentions.computed(config, given, local, mesh)
        attentions.agree(got, given, attentions.answer(config, given, local))
