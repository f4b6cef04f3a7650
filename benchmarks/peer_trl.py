"""TRL on the workload, one part a process. Runs in an environment of its own, without reasonjax:
see `peer_env`.

    FOLDER/trl/bin/python -m benchmarks.peer_trl --what grpo --data FOLDER/data

Its own `SFTTrainer` and `GRPOTrainer`, and `generate` of transformers, which is what the latter
samples with; `sft_plain` is the same SFT without a trainer. For completions of full length,
`min_new_tokens` is set; for `long_tail`, a logits processor given to `generate` has each row draw
end-of-sequence where the workload says.
"""

import argparse
import functools
import json
import os
import pathlib
import tempfile
import time
import warnings
from typing import Any

os.environ['HF_HUB_OFFLINE'] = '1'
os.environ['TOKENIZERS_PARALLELISM'] = 'false'

import datasets
import torch
import transformers

from benchmarks import workload

M, SFT, GRPO = workload.MODEL, workload.SFT, workload.GRPO
# Of every trainer: on the processor in float32, nothing recomputed, nothing reported or saved.
PLAIN = dict(
    report_to=[],
    save_strategy='no',
    use_cpu=True,
    bf16=False,
    gradient_checkpointing=False,
    disable_tqdm=True,
    logging_steps=1000,
    lr_scheduler_type='constant',
)


def make_model() -> Any:
    config = transformers.Qwen3Config(
        vocab_size=M['vocab'],
        hidden_size=M['dim'],
        intermediate_size=M['mlp'],
        num_hidden_layers=M['layers'],
        num_attention_heads=M['heads'],
        num_key_value_heads=M['kv_heads'],
        head_dim=M['head_dim'],
        rope_theta=M['rope_theta'],
        rms_norm_eps=M['eps'],
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    model = transformers.Qwen3ForCausalLM(config)
    workload.check_model(sum(p.numel() for p in model.parameters()))
    return model


class Clock(transformers.TrainerCallback):
    """Notes when steps end."""

    def __init__(self):
        self.begin, self.ends = 0.0, []

    def on_train_begin(self, *rest: Any, **named: Any) -> None:
        self.begin = time.perf_counter()

    def on_step_end(self, *rest: Any, **named: Any) -> None:
        self.ends.append((time.perf_counter(), workload.since_start()))

    def seconds(self) -> list[float]:
        times = [self.begin, *(at for at, _ in self.ends)]
        return [b - a for a, b in zip(times, times[1:])]


class EndsAt(transformers.LogitsProcessor):
    """Row `i` draws end-of-sequence as its token `lengths[i]`, and not before."""

    def __init__(self, lengths: list[int], prompt_length: int, eos: int):
        self._last, self._prompt, self._eos = torch.tensor(lengths) - 1, prompt_length, eos

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        ends = input_ids.shape[1] - self._prompt == self._last
        scores = scores.clone()
        scores[:, self._eos] = torch.where(ends, 1e9, -1e9)
        return scores


def lines(file: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def sft_result(clock: Clock) -> dict:
    tokens, seconds = SFT['batch'] * SFT['length'], clock.seconds()
    return {
        'first_step_s': clock.ends[0][1],
        'seconds': seconds,
        'sft_tok_s': tokens / workload.median(seconds, SFT['warm']),
    }


def sft(data: pathlib.Path, tokenizer: Any, folder: str) -> dict:
    import trl

    clock = Clock()
    rows = [{'input_ids': row['ids']} for row in lines(data / 'sft.jsonl')]
    config = trl.SFTConfig(
        output_dir=folder,
        per_device_train_batch_size=SFT['batch'],
        max_steps=SFT['steps'],
        learning_rate=SFT['learning_rate'],
        max_length=SFT['length'],
        packing=False,
        **PLAIN,
    )
    trainer = trl.SFTTrainer(
        make_model(),
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    return sft_result(clock)


def sft_plain(data: pathlib.Path, tokenizer: Any, folder: str) -> dict:
    clock, model = Clock(), make_model()
    optimizer = torch.optim.AdamW(model.parameters(), SFT['learning_rate'])
    rows = torch.tensor([row['ids'] for row in lines(data / 'sft.jsonl')]).reshape(
        -1, SFT['batch'], SFT['length']
    )
    clock.on_train_begin()
    for tokens in rows[: SFT['steps']]:
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        clock.on_step_end()
    return sft_result(clock)


def sample(data: pathlib.Path, tokenizer: Any, folder: str) -> dict:
    model, rows, seconds, length = (
        make_model().eval(),
        lines(data / 'prompts.jsonl'),
        [],
        GRPO['completion_length'],
    )
    for call in range(1 + workload.SAMPLE['calls']):
        some = [
            row['prompt']
            for row in rows[call * GRPO['prompts'] : (call + 1) * GRPO['prompts']]
            for _ in range(GRPO['generations'])
        ]
        start = time.perf_counter()
        encoded = tokenizer(
            some,
            return_tensors='pt',
            padding=True,
            padding_side='left',
            return_token_type_ids=False,
        )
        with torch.no_grad():
            found = model.generate(
                **encoded,
                do_sample=True,
                top_k=0,
                temperature=GRPO['temperature'],
                min_new_tokens=length,
                max_new_tokens=length,
            )
        seconds.append(time.perf_counter() - start)
    tokens = len(found) * (found.shape[1] - encoded['input_ids'].shape[1])
    if tokens != GRPO['prompts'] * GRPO['generations'] * length:
        raise ValueError(f'{tokens} tokens were sampled: not all completions have the full length')
    return {
        'seconds': seconds,
        'tokens': tokens,
        'sample_tok_s': tokens / workload.median(seconds, 1),
    }


def grpo(data: pathlib.Path, tokenizer: Any, folder: str, *, long_tail: bool = False) -> dict:
    import trl

    # The trainer opens the model a second time, as the reference.
    make_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    clock, length, counted = (
        Clock(),
        workload.completion_length('long_tail' if long_tail else 'grpo'),
        [],
    )
    config = trl.GRPOConfig(
        output_dir=f'{folder}/out',
        per_device_train_batch_size=GRPO['prompts'] * GRPO['generations'],
        num_generations=GRPO['generations'],
        max_completion_length=length,
        max_steps=GRPO['steps'],
        beta=GRPO['beta'],
        epsilon=GRPO['epsilon'],
        loss_type='grpo',
        temperature=GRPO['temperature'],
        learning_rate=GRPO['learning_rate'],
        model_init_kwargs=dict(dtype='float32'),
        generation_kwargs=None if long_tail else dict(min_new_tokens=length),
        **PLAIN,
    )

    def reward(
        prompts: list, completions: list, completion_ids: list, **columns: Any
    ) -> list[float]:
        counted.append(sum(map(len, completion_ids)))
        return workload.reward(prompts, completions)

    trainer = trl.GRPOTrainer(
        model=folder,
        reward_funcs=reward,
        args=config,
        processing_class=tokenizer,
        callbacks=[clock],
        train_dataset=datasets.Dataset.from_list(
            [{'prompt': row['prompt']} for row in lines(data / 'prompts.jsonl')]
        ),
    )
    if long_tail:
        plain = trainer.model.generate

        @functools.wraps(plain)
        def generate(input_ids: Any, **named: Any) -> Any:
            return plain(
                input_ids=input_ids,
                logits_processor=[EndsAt(workload.lengths(), input_ids.shape[1], 1)],
                **named,
            )

        trainer.model.generate = generate
    trainer.train()
    wanted = (
        sum(workload.lengths()) if long_tail else GRPO['prompts'] * GRPO['generations'] * length
    )
    if set(counted) != {wanted}:
        raise ValueError(f'{counted} tokens a step, not the {wanted} of the workload')
    seconds, name = clock.seconds(), 'grpo_long_tail_step_s' if long_tail else 'grpo_step_s'
    return {
        'first_step_s': clock.ends[0][1],
        'seconds': seconds,
        'tokens': wanted,
        name: workload.median(seconds, GRPO['warm']),
    }


RUN = {
    'sft': sft,
    'sft_plain': sft_plain,
    'sample': sample,
    'grpo': grpo,
    'long_tail': functools.partial(grpo, long_tail=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        'python -m benchmarks.peer_trl', description=__doc__.splitlines()[0]
    )
    parser.add_argument('--what', required=True, choices=workload.PARTS['trl'])
    parser.add_argument(
        '--data', required=True, type=pathlib.Path, help='folder that benchmarks.peers has prepared'
    )
    given = parser.parse_args()
    warnings.filterwarnings('ignore')
    torch.manual_seed(0)
    torch.set_num_threads(workload.cores())
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(given.data / 'hf_tokenizer')
    with tempfile.TemporaryDirectory(prefix='trl-benchmark-') as folder:
        found = RUN[given.what](given.data, tokenizer, folder)
    parameters = workload.MODEL['parameters']  # checked when it was built
    print(
        json.dumps(
            {'what': given.what, 'parameters': parameters, **found, 'peak_gb': workload.peak_gb()}
        )
    )


if __name__ == '__main__':
    main()
