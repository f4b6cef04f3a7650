"""python -m reasonjax.convert: a run to a Hugging Face folder, and back."""

import argparse
import shlex
import sys

EPILOG = """\
examples:
  python -m reasonjax.convert runs/hf exported                            what transformers and vLLM load
  python -m reasonjax.convert runs/hf exported --stage sft --dtype float32
  python -m reasonjax.convert runs/hf_lora merged --merge                 a run with a LoRA adapter: merged into its base,
  python -m reasonjax.convert runs/hf_lora adapter --adapter              or the adapter alone, as PEFT keeps it
  python -m reasonjax.convert Qwen3-0.6B runs/base                        a Hugging Face folder: to sample from, evaluate, or start from
  python -m reasonjax.convert adapter merged --merge --base Qwen3-0.6B    anyone's PEFT LoRA adapter, merged

FROM is the workdir of a run, a Hugging Face model folder or a PEFT adapter folder; TO is new. A run keeps the family, the tokenizer files
and the further settings of the folder it started from (config.init=hf:FOLDER, also through config.init=checkpoint:WORKDIR); give --base
where that folder has moved. A run from scratch is written as the first architecture that can hold its model."""


def main(arguments: list[str] | None = None) -> int:
    from reasonjax.errors import UserError, check_choice
    from reasonjax.model.dtypes import DTYPES
    from reasonjax.programs import (
        Parser,
        add_process_options,
        add_trust_option,
        check_process_options,
        parse,
        run_program,
        start,
    )

    parser = Parser(
        'python -m reasonjax.convert',
        epilog=EPILOG,
        description='Convert between runs, Hugging Face folders and PEFT adapters.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        'source',
        metavar='FROM',
        help='workdir of a run, Hugging Face model folder, or PEFT adapter folder',
    )
    parser.add_argument(
        'target', metavar='TO', help='folder to write; a run where FROM is a Hugging Face model'
    )
    parser.add_argument(
        '--stage',
        default='',
        help='stage whose parameters are taken (default: the last that has a checkpoint)',
    )
    parser.add_argument(
        '--dtype',
        default='',
        help="of the weights written: bfloat16, float16 or float32 (default: the base's; adapters: "
        'float32)',
    )
    parser.add_argument(
        '--base',
        default='',
        metavar='FOLDER',
        help='Hugging Face folder that the run started from, or the adapter is for',
    )
    parser.add_argument(
        '--merge', action='store_true', help='merge a LoRA adapter into the weights'
    )
    parser.add_argument(
        '--adapter', action='store_true', help='write the LoRA adapter alone, as PEFT keeps it'
    )
    parser.add_argument(
        '--config',
        default='',
        metavar='FILE[:ARG]',
        help='evaluation and other settings of a run made of a Hugging Face model (default: '
        'configs/hf.py)',
    )
    parser.add_argument(
        '--skip_selfcheck',
        action='store_true',
        help='do not test the backend for wrong results first',
    )
    add_trust_option(parser)
    add_process_options(parser)
    arguments = sys.argv[1:] if arguments is None else arguments
    options, overrides = parse(parser, arguments)
    options.command = shlex.join(arguments)

    def program() -> None:
        check_process_options(options)
        if options.adapter and options.merge:
            raise UserError(
                '--adapter writes the adapter alone, --merge the whole model with the adapter in '
                'it: give one of them.'
            )
        if options.dtype:
            check_choice(f'--dtype={options.dtype}: unknown', options.dtype, DTYPES)
        from reasonjax.interop.huggingface import convert

        kind = convert.check(options, overrides)
        start(options.skip_selfcheck, options)
        convert.run(options, overrides, kind)

    return run_program(program)


if __name__ == '__main__':
    sys.exit(main())
