"""How much host memory does an import take? Writes a random bfloat16 folder and reads it in a fresh
process.

    python -m benchmarks.import_memory --gigabytes 2

The bound: at its peak the process holds, beside what it held before, at most the parameters and the
largest tensor of the folder. On an accelerator the parameters are not in host memory, and the bound
is far from being reached. Linux only: it reads /proc.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence

import ml_dtypes
import numpy as np

from reasonjax.bounds import Positive, flag

DTYPES = ('bfloat16', 'float32')
SHAPE = dict(
    model_type='llama',
    architectures=['LlamaForCausalLM'],
    vocab_size=64_000,
    hidden_size=2048,
    num_attention_heads=16,
    num_key_value_heads=4,
    head_dim=128,
    intermediate_size=6144,
    tie_word_embeddings=False,
    max_position_embeddings=4096,
    rms_norm_eps=1e-5,
    rope_theta=5e5,
)
SHARD = 2**29


def write_folder(path: pathlib.Path, nbytes: float) -> None:
    """Writes a Llama of about `nbytes`, in shards; holds one of them at a time."""
    from safetensors.numpy import save_file

    from reasonjax.interop.huggingface import pretrained
    from reasonjax.model import config as model_config

    def tensors(layers: int) -> dict:
        (path / 'config.json').write_text(json.dumps(SHAPE | {'num_hidden_layers': layers}))
        folder = pretrained.read_folder(path)
        config = model_config.from_config(folder.fields, vocab_size=0, pad_id=-1)
        return {
            name: tensor.shape
            for name, (tensor, _) in pretrained.wanted_tensors(folder.family, config).items()
        }

    def size(shapes: dict) -> int:
        return sum(2 * math.prod(shape) for shape in shapes.values())

    one, two = size(tensors(1)), size(tensors(2))
    shapes = tensors(max(1, 1 + round((nbytes - one) / (two - one))))
    noise = np.random.default_rng(0).standard_normal(2**22, np.float32).astype(ml_dtypes.bfloat16)
    shard, held, files = {}, 0, {}

    def flush() -> None:
        nonlocal shard, held
        file = f'model-{len(set(files.values())) + 1:05d}.safetensors'
        save_file(shard, path / file)
        files.update(dict.fromkeys(shard, file))
        shard, held = {}, 0

    for name, shape in shapes.items():
        shard[name] = np.resize(noise, shape)
        held += shard[name].nbytes
        if held > SHARD:
            flush()
    flush()
    (path / 'model.safetensors.index.json').write_text(
        json.dumps({'metadata': {'total_size': size(shapes)}, 'weight_map': files})
    )


class Watch:
    """Looks at the memory of this process every few milliseconds; bytes."""

    FIELDS = ('VmRSS', 'RssAnon')

    def __init__(self) -> None:
        self.before, self.peak, self._stop = self.now(), self.now(), False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @classmethod
    def now(cls) -> dict[str, int]:
        lines = dict(
            line.split(':', 1)
            for line in pathlib.Path('/proc/self/status').read_text().splitlines()
        )
        return {field: int(lines[field].split()[0]) * 1024 for field in cls.FIELDS}

    def _run(self) -> None:
        while not self._stop:
            self.peak = {field: max(self.peak[field], value) for field, value in self.now().items()}
            time.sleep(0.002)

    def stop(self) -> dict[str, int]:
        """What the peak had more than the start."""
        self._stop = True
        self._thread.join()
        return {field: self.peak[field] - self.before[field] for field in self.FIELDS}


def read_folder(path: pathlib.Path, dtype: str) -> dict:
    """Imports a folder, in this process, and says what it took."""
    import jax

    from reasonjax import programs
    from reasonjax.interop.huggingface import pretrained
    from reasonjax.model import config as model_config
    from reasonjax.parallel import mesh as meshes

    programs.start(skip_selfcheck=True)
    folder = pretrained.read_folder(path)
    # Grown, as for a tokenizer that has a few tokens more.
    grown = {'param_dtype': dtype, 'vocab_size': folder.fields['vocab_size'] + 2}
    config = model_config.from_config(folder.fields | grown, vocab_size=0, pad_id=-1)
    mesh = meshes.make_mesh({'data': -1})
    # Backend and compiler take memory of their own, once.
    jax.block_until_ready(jax.jit(lambda x: x + 1)(np.zeros(3, np.float32)))
    stored = pretrained.stored_tensors(path)
    watch, begin = Watch(), time.monotonic()
    params = jax.block_until_ready(pretrained.load(folder, config, mesh))
    seconds, more = time.monotonic() - begin, watch.stop()
    return {
        'dtype': dtype,
        'before': watch.before['VmRSS'],
        'peak': more['VmRSS'],
        'own': more['RssAnon'],
        'parameters': sum(x.nbytes for x in jax.tree.leaves(params)),
        'largest': max(x.nbytes for x in stored.values()),
        'read': sum(x.nbytes for x in stored.values()),
        'seconds': seconds,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.import_memory', description=__doc__.splitlines()[0]
    )
    parser.add_argument('--gigabytes', type=flag(Positive), default=2.0, help='of the folder')
    parser.add_argument(
        '--read',
        nargs=2,
        metavar=('FOLDER', 'DTYPE'),
        help='import a folder in this process and print JSON',
    )
    given = parser.parse_args(arguments)
    if given.read:
        print(json.dumps(read_folder(pathlib.Path(given.read[0]), given.read[1])))
        return 0

    import rich.console
    import rich.table

    columns = (
        'dtype',
        'parameters',
        'largest tensor',
        'before',
        'peak - before',
        'of which its own',
        'ratio',
        'bound',
        'seconds',
        'GB/s',
    )
    table, kept = rich.table.Table(*columns), True
    with tempfile.TemporaryDirectory() as name:
        write_folder(pathlib.Path(name), given.gigabytes * 1e9)
        for dtype in DTYPES:
            command = [sys.executable, '-m', 'benchmarks.import_memory', '--read', name, dtype]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
            within = row['peak'] <= row['parameters'] + row['largest']
            kept &= within
            table.add_row(
                dtype,
                *(
                    f'{row[key] / 1e9:.3f} GB'
                    for key in ('parameters', 'largest', 'before', 'peak', 'own')
                ),
                f'{row["peak"] / row["parameters"]:.3f}',
                'kept' if within else 'BROKEN',
                f'{row["seconds"]:.1f}',
                f'{row["read"] / 1e9 / row["seconds"]:.2f}',
            )
    rich.console.Console(width=140).print(table)
    return int(not kept)


if __name__ == '__main__':
    raise SystemExit(main())
