"""The one workload that every system is measured on; what is here needs nothing but Python, because
each system has its own environment.

**Model.** A decoder of Qwen3's shape: 8 blocks of width 256, SwiGLU of 1024, 8 query heads and 4
key and value heads of 32 with a norm each, rotary base 1e6, a vocabulary of 4096 whose table is
also the head: 8,917,760 parameters, random, float32 throughout.

**Text.** The training questions of GSM8K; a SentencePiece vocabulary of 4096 (PAD 0, EOS 1, BOS 2,
unknown 3, the mask 4, bytes, single digits) learnt from that split. All systems read the same
tokens (`peer_data` prepares them, and checks that they are).

**SFT.** AdamW on batches of 8 rows of exactly 256 tokens, BOS and EOS included.

**Sampling.** 4 prompts of at most 128 tokens, padded to 128 where a system pads, 8 completions of
128 tokens each at temperature 1. End-of-sequence is never drawn, so that all systems do the same
number of tokens.

**GRPO.** A step samples as above, rewards every completion by a trivial function of its text, and
makes one AdamW update on all 32: epsilon 0.2, and beta 0.04, so that a reference is kept and asked
for its log-probs.

**Long tail.** The same with completions of very unequal length: 26 of the 32 end after 32 tokens, 6
after 256 (81 % and 19 %: of 32, the nearest to 80 and 20). Which ones is fixed, and the long ones
are spread over the prompts. Their last token is an end-of-sequence that every system is made to
draw at that place and nowhere else, so that it may stop there as it would for a real one.
"""

import os
import pathlib
import resource
import statistics
from collections.abc import Sequence
from typing import Any

MODEL = dict(
    layers=8,
    vocab=4096,
    dim=256,
    mlp=1024,
    heads=8,
    kv_heads=4,
    head_dim=32,
    rope_theta=1e6,
    eps=1e-6,
    parameters=8_917_760,
)
# To see whether everything runs: the same model, hardly any work.
QUICK = 'REASONJAX_BENCHMARK_QUICK'
SFT = dict(batch=8, length=256, steps=12, warm=3, learning_rate=1e-4)
GRPO = dict(
    prompts=4,
    generations=8,
    prompt_length=128,
    completion_length=128,
    steps=4,
    warm=1,
    beta=0.04,
    epsilon=0.2,
    temperature=1.0,
    learning_rate=1e-5,
)
SAMPLE = dict(calls=3)
LONG_TAIL = dict(short=32, long=256, share=0.2)
if os.environ.get(QUICK):
    SFT |= dict(batch=2, steps=2, warm=1)
    GRPO |= dict(prompts=2, generations=4, completion_length=8, steps=2)
    SAMPLE |= dict(calls=1)
    LONG_TAIL |= dict(short=4, long=16)
# What is prepared: enough for all steps.
PROMPTS, ROWS = 64, 96
# What a process can measure, and the systems: name -> what it measures.
PARTS = {
    'ours': ('sft', 'sample', 'grpo', 'long_tail'),
    'tunix': ('sft', 'sample', 'grpo', 'long_tail'),
    'trl': ('sft', 'sft_plain', 'sample', 'grpo', 'long_tail'),
}


def completion_length(what: str) -> int:
    """Tokens of the longest completion."""
    return LONG_TAIL['long'] if what == 'long_tail' else GRPO['completion_length']


def lengths(rows: int = 0) -> list[int]:
    """Tokens of each completion of the long tail, end-of-sequence included, in the order of prompts
    x generations; 0: of a step's."""
    rows = rows or GRPO['prompts'] * GRPO['generations']
    long = round(LONG_TAIL['share'] * rows)
    # Multiples of `long` modulo `rows`: evenly spread.
    return [LONG_TAIL['long' if i * long % rows < long else 'short'] for i in range(rows)]


def reward(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """The reward of each completion: of its text, unequal within a group, and no work. In the
    signature that all three systems share."""
    return [float(len(text) % 7) for text in completions]


def median(seconds: Sequence[float], warm: int) -> float:
    """Of steps, the first ones, which compile, left out."""
    return statistics.median(seconds[warm:])


def since_start() -> float:
    """Seconds since this process was started, imports and all (Linux)."""
    behind_name = pathlib.Path('/proc/self/stat').read_text().rpartition(')')[2].split()
    started = int(behind_name[19]) / os.sysconf('SC_CLK_TCK')
    return float(pathlib.Path('/proc/uptime').read_text().split()[0]) - started


def peak_gb() -> float:
    """Most memory that this process has held, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def cores() -> int:
    """Processor cores that this process may use: threads of every system."""
    return len(os.sched_getaffinity(0))


def check_model(parameters: int) -> None:
    """Raises ValueError where a system built another model."""
    if parameters != MODEL['parameters']:
        raise ValueError(
            f'the model has {parameters:,} parameters, not the {MODEL["parameters"]:,} of the '
            'workload'
        )
