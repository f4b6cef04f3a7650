"""Settings as the harness hands them over: arguments of the model (`--model_args`), and how a task
wants its answers."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from reasonjax import bounds
from reasonjax.data.tokenizers import Tokenizer
from reasonjax.errors import UserError, check_choice
from reasonjax.sampling.sampler import Sampling

log = logging.getLogger(__name__)

LIMITS = ('max_gen_toks', 'max_new_tokens', 'max_tokens', 'max_completion_tokens')
ARGUMENTS = (
    'workdir',
    'stage',
    'batch_size',
    'max_length',
    'max_gen_toks',
    'seed',
    'add_bos_token',
    'chat_template_args',
    'trust',
)
KNOWN = ('until', *LIMITS, 'do_sample', 'temperature', 'top_k', 'top_p', 'min_p')


class GenerationRequest(NamedTuple):
    """How an answer is wanted: the sampler's settings, and the strings that end the text."""

    sampling: Sampling
    until: tuple[str, ...]


def read_arguments(
    arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Returns the arguments of the model, of `--model_args` and of lm_eval's options of the same
    names; the first win.

    Raises:
      UserError: one that is not known.
    """
    # lm_eval always names a device (JAX has chosen its own), and passes on whether data sets
    # may run code (a model here has none).
    flags = {
        name: value
        for name, value in (additional_config or {}).items()
        if value is not None and name != 'device'
    }
    given = {
        name: value for name, value in {**flags, **arg_dict}.items() if name != 'trust_remote_code'
    }
    for name in given:
        check_choice(f'--model_args: no argument "{name}"', name, ARGUMENTS)
    return given


def request_of(
    given: Mapping[str, Any], tokenizer: Tokenizer, max_gen_toks: int
) -> GenerationRequest:
    """Reads the generation settings of a task: `KNOWN`, of which `LIMITS` are names of one thing.

    Without `do_sample`, a temperature above 0 samples; `do_sample=False` is greedy;
    `do_sample=True` alone has temperature 1.

    Args:
      given: the settings.
      tokenizer: its EOS ids end every answer, and so do ids that are a stop string.
      max_gen_toks: where none is given.

    Raises:
      UserError: an unknown setting or an impossible value.
    """
    for name in given:
        check_choice(f'generation_kwargs: "{name}" is not known', name, KNOWN)
    set_ = {name: value for name, value in given.items() if value is not None}
    limits = {name: whole_number(name, set_[name]) for name in LIMITS if name in set_}
    if len(set(limits.values())) > 1:
        raise UserError(f'generation_kwargs: {limits} are names of one limit; give one of them.')
    until = set_.get('until', ())
    until = tuple(
        text for text in (until if isinstance(until, list | tuple) else [until]) if text != ''
    )
    if not all(isinstance(text, str) for text in until):
        raise UserError(
            f'generation_kwargs: until must be a string or a list of strings, got {until!r}.'
        )
    ends = dict.fromkeys((*tokenizer.eos_ids, *_stop_ids(until, tokenizer)))
    drawing = _drawing(
        {
            name: set_[name]
            for name in ('do_sample', 'temperature', 'top_k', 'top_p', 'min_p')
            if name in set_
        }
    )
    return GenerationRequest(
        Sampling(
            max_tokens=next(iter(limits.values()), max_gen_toks), eos_ids=tuple(ends), **drawing
        ),
        until,
    )


def _drawing(given: dict) -> dict:
    """Reads the sampler's settings. Greedy ones are alike, so that they share a program. A top_k of
    -1 is off, as 0 is."""
    try:
        numbers = {
            name: (int if name == 'top_k' else float)(value)
            for name, value in given.items()
            if name != 'do_sample'
        }
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f'generation_kwargs: temperature, top_k, top_p and min_p must be numbers, got {given}.'
        ) from error
    if given.get('do_sample') not in (None, True, False):  # 'false' would sample
        raise UserError(
            f'generation_kwargs: do_sample must be true or false, got {given["do_sample"]!r}.'
        )
    temperature = numbers.pop('temperature', None)
    if not given.get('do_sample', bool(temperature)):
        if temperature:
            log.warning(
                'do_sample=False with temperature=%g: decoding is greedy; set do_sample=True to '
                'sample.',
                temperature,
            )
        return {'temperature': 0.0}
    if temperature == 0:
        raise UserError(
            'generation_kwargs: do_sample=True with temperature=0 is a contradiction; give a '
            'temperature above 0.'
        )
    top_k = max(numbers.pop('top_k', 0), 0)
    return {'temperature': 1.0 if temperature is None else temperature, 'top_k': top_k, **numbers}


def _stop_ids(until: tuple[str, ...], tokenizer: Tokenizer) -> Iterator[int]:
    for text in until:
        try:
            ids = tokenizer.encode_more(text)
        except UserError:
            continue  # this vocabulary cannot write it, so no answer has it
        if len(ids) == 1 and tokenizer.decode(ids) == text:
            yield ids[0]


def whole_number(name: str, value: Any) -> int:
    """Returns a whole number of at least 1."""
    return bounds.read(value, bounds.AtLeast(1), name)
