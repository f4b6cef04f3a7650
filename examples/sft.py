"""Supervised fine-tuning on a file of demonstrations.

python examples/sft.py                     # makes a small file first; under a minute on two cores
python examples/sft.py --file mine.jsonl   # your own rows: {"prompt": ..., "completion": ...}
"""

import argparse
import json
import pathlib

import reasonjax


def write_demonstrations(path: pathlib.Path) -> None:
    """Writes rows whose completion is the prompt's letters in reverse."""
    words = ('reason', 'reward', 'sample', 'policy', 'token', 'model', 'prompt', 'answer')
    rows = [
        {'prompt': f'{a} {b}=', 'completion': f'{b[::-1]} {a[::-1]}'} for a in words for b in words
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--file', type=pathlib.Path)
    parser.add_argument('--workdir', type=pathlib.Path, default='runs/example_sft')
    parser.add_argument(
        '--smoke', action='store_true', help='two steps of a tiny model: does it run?'
    )
    options = parser.parse_args()
    file = options.file or options.workdir.with_suffix('.jsonl')
    if options.file is None:
        write_demonstrations(file)
    overrides = {
        'train.data.source.name': 'jsonl',
        'train.data.source.path': file,
        'tokenizer.name': 'sentencepiece',  # learnt from the file
        'tokenizer.vocab_size': 300,
        'train.data.max_length': 64,
        'train.steps': 2 if options.smoke else 60,
        'train.eval_every': 0,
        'evaluation.enabled': False,  # its task has nothing to do with this file
    }
    reasonjax.run(reasonjax.load_config('sft', overrides, smoke=options.smoke), options.workdir)
    model = reasonjax.load_model(options.workdir)
    first = json.loads(file.read_text().splitlines()[0])
    [(prompt, [answer])] = model.sample([first['prompt']], max_tokens=32)
    print(f'{prompt}{answer["text"]}    (the file says {first["completion"]!r})')


if __name__ == '__main__':
    main()
