"""python -m reasonjax.sample: generate from a checkpoint."""

import argparse
import sys

EPILOG = """\
examples:
  python -m reasonjax.sample --workdir runs/quickstart "1234+5678=" "9999+0001="
  python -m reasonjax.sample --workdir runs/quickstart --stage sft --samples 4 --temperature 1 --logprobs "1234+5678="
  python -m reasonjax.sample --workdir runs/gsm8k --file prompts.txt --jsonl > answers.jsonl
  python -m reasonjax.sample --workdir runs/hf --chat "How many minutes are two hours?"
  echo "1234+5678=" | python -m reasonjax.sample --workdir runs/quickstart"""

RULES = {
    'samples': (lambda x: x >= 1, 'at least 1'), 'batch_size': (lambda x: x >= 1, 'at least 1'),
    'max_tokens': (lambda x: x >= 0, "0 (the run's own) or more"), 'temperature': (lambda x: 0 <= x < float('inf'), '0 (greedy) or more'),
    'top_k': (lambda x: x >= 0, '0 (off) or more'), 'top_p': (lambda x: 0 < x <= 1, 'in (0, 1]; 1 is off'),
    'min_p': (lambda x: 0 <= x < 1, 'in [0, 1); 0 is off'),
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser('python -m reasonjax.sample', description='Generate completions from a run.', epilog=EPILOG,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument('prompts', nargs='*', help='prompts; none: a line each of --file, or of standard input')
    parser.add_argument('--workdir', required=True, help='of the run whose checkpoint is used')
    parser.add_argument('--stage', default='', help='training stage to take (default: the last that has a checkpoint)')
    parser.add_argument('--file', help='prompts: one a line, or JSONL rows with a "prompt" (.jsonl)')
    parser.add_argument('--chat', action='store_true', help='put each prompt through the chat template, as a user message')
    parser.add_argument('--samples', type=int, default=1, help='completions per prompt (default 1)')
    parser.add_argument('--max_tokens', type=int, default=0, help="longest completion (default: the run's evaluation setting)")
    parser.add_argument('--temperature', type=float, default=0.0, help='0 is greedy (default)')
    parser.add_argument('--top_k', type=int, default=0, help='keep the k most likely tokens; 0 keeps all')
    parser.add_argument('--top_p', type=float, default=1.0, help='keep the most likely tokens up to this mass; 1 keeps all')
    parser.add_argument('--min_p', type=float, default=0.0, help='drop tokens below this share of the most likely one; 0 keeps all')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--batch_size', type=int, default=64, help='prompts at once (default 64)')
    parser.add_argument('--logprobs', action='store_true', help="show each token's log-probability, and their sum")
    parser.add_argument('--jsonl', action='store_true', help='print one JSON object a completion')
    parser.add_argument('--skip_selfcheck', action='store_true', help='do not test the backend for wrong results first')
    from reasonjax.errors import UserError
    from reasonjax.programs import add_process_options, add_trust_option, check_process_options, check_values, run_program, start

    add_trust_option(parser)
    add_process_options(parser)
    options = parser.parse_args(arguments)

    def program() -> None:
        check_process_options(options)
        check_values(options, RULES)
        if options.prompts and options.file:
            raise UserError('prompts as arguments and in --file: give one of them.')
        from reasonjax.stages import sample

        sample.check(options)
        start(options.skip_selfcheck, options)
        sample.run(options)

    return run_program(program)


if __name__ == '__main__':
    sys.exit(main())
