"""The quickstart's decoder: 335,904 parameters with its vocabulary of 18 characters."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        dict(
            vocab_size=0,  # 0: the tokenizer's
            dim=96,
            layers=3,
            heads=4,
            kv_heads=4,
            head_dim=24,
            mlp_dim=384,
            # silu | gelu | gelu_tanh; the exact gelu takes twice as long on CPU
            activation='gelu_tanh',
            gated=False,  # True: SwiGLU with silu
            qk_norm='none',  # 'head': Qwen3
            qkv_bias=False,  # True: Qwen2
            tied=False,  # head is the embedding
            norm_eps=1e-6,
            rope_theta=1e4,
            embed_std=0.5,  # fresh embedding rows
            param_dtype='float32',
            compute_dtype='float32',
            scan=False,  # lax.scan over layers
            # what the backward pass recomputes: none | dots | full | save:NAME,... |
            # offload:NAME,...
            remat='none',
            attention_kernel='xla',  # xla: anywhere | cudnn, flash: GPUs | splash: TPUs
            attention_chunk=0,  # queries per chunk of the attention; 0: all at once
            logprob_chunk=0,  # positions per chunk of the vocabulary projection; 0: all at once
        )
    )
