"""A checkpoint as a model of lm-evaluation-harness:
`lm_eval.simple_evaluate(model=Harness.from_workdir('runs/x'))`.

Contexts are split from continuations, and long texts into windows, as by the harness's own model
classes, so that numbers compare.
"""

import dataclasses
import importlib.util
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from reasonjax import bounds, randomness
from reasonjax.data import packing as rows_of
from reasonjax.data.tokenizers import Tokenizer
from reasonjax.errors import UserError
from reasonjax.interop.lm_eval import BATCH, MISSING
from reasonjax.interop.lm_eval.settings import (
    GenerationRequest,
    read_arguments,
    request_of,
    whole_number,
)
from reasonjax.model.rotary import longest
from reasonjax.model.score import score
from reasonjax.parallel import mesh as meshes
from reasonjax.sampling.sampler import Sampling
from reasonjax.sampling.text import completions
from reasonjax.training.context import Run
from reasonjax.training.samplers import sampler
from reasonjax.training.saved_run import open_saved

if importlib.util.find_spec('lm_eval') is None:
    raise UserError(MISSING)

from lm_eval import utils  # noqa: E402
from lm_eval.api.model import TemplateLM  # noqa: E402
from tqdm import tqdm  # noqa: E402

log = logging.getLogger(__name__)

ROUND, CHUNK = 16, 128
DEFAULT_LENGTH = 2048  # the harness's own, of models that state none


class Harness(TemplateLM):
    """A checkpoint as lm-evaluation-harness sees it; one process, any number of devices.

    Args:
      run: what `saved_run.saved` returns, as are `params`, `stage` (its name) and `step`.
      params: of the model.
      stage, step: where the parameters are from; only reported.
      batch_size: requests at once; rounded up to the devices that share the rows.
      max_length: longest input in tokens; None takes what the model's positions are good for, or
        else 2048. Longer contexts lose tokens on their left, counted and logged.
      max_gen_toks: longest answer in tokens where a task states none.
      seed: of sampled answers. A draw depends on the seed, the request's place in the list and the
        token's place in the answer.
      add_bos_token: False never puts BOS in front of a text; True does where the tokenizer itself
        does so and the text has none.
      chat_template_args: more variables of the chat template, such as `enable_thinking`.

    Raises:
      UserError: a value out of range.
    """

    trust: tuple[str, ...] = ()  # those of the command line, which lm_eval hands to nobody

    def __init__(
        self,
        run: Run,
        params: Any,
        *,
        stage: str = '',
        step: int | None = None,
        batch_size: int = BATCH,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        seed: int = 0,
        add_bos_token: bool = True,
        chat_template_args: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self._run, self._params, self._origin = run, params, (stage, step)
        self._seed = bounds.read(seed, bounds.Seed, 'seed')
        self._add_bos, self._device = add_bos_token, jax.default_backend()
        self._chat_arguments, self._chat_checked = chat_template_args, False
        self.tokenizer: Tokenizer = run.tokenizer
        self.batch_size = whole_number('batch_size', batch_size)
        self.max_gen_toks = whole_number('max_gen_toks', max_gen_toks)
        limit = longest(run.model)
        self.max_length = whole_number(
            'max_length', (limit or DEFAULT_LENGTH) if max_length is None else max_length
        )
        if limit and self.max_length > limit:
            raise UserError(
                f'max_length={self.max_length}: the positions of this model are good for {limit}.'
            )
        self.truncated = {'loglikelihood': 0, 'generate_until': 0}
        self.without_tokens = 0
        # All logits of a long batch at once are larger than the model.
        self._config = dataclasses.replace(
            run.model, logprob_chunk=run.model.logprob_chunk or CHUNK
        )
        self._programs: dict[Sampling, Callable] = {}

        def scores(params: Any, batch: dict) -> tuple[jax.Array, jax.Array]:
            scored = score(params, self._config, batch)
            return scored.logprob, scored.correct

        self._score = jax.jit(meshes.on(run.mesh, scores))

    @classmethod
    def from_workdir(
        cls,
        workdir: str | pathlib.Path,
        *,
        stage: str = '',
        trust: str | Sequence[str] = (),
        **options: Any,
    ) -> 'Harness':
        """Opens a run's workdir: the last stage that has a checkpoint, or the one named.

        Args:
          workdir: of the run.
          stage: see `saved_run.open_saved`.
          trust: a module, or several, whose functions the run's config may name beside those of
            reasonjax.
          **options: those of the class.
        """
        opened = open_saved(
            workdir, stage, trust=(*cls.trust, *([trust] if isinstance(trust, str) else trust))
        )
        # Before the parameters are there, so that a wrong option is an error at once.
        harness = cls(opened.run, None, stage=opened.stage.name, **options)
        loaded = opened.load()
        harness._params, harness._origin = loaded.params, (loaded.stage.name, loaded.step)
        return harness

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict, additional_config: dict | None = None
    ) -> 'Harness':
        """Builds a harness from `--model_args`, as lm_eval calls it. `additional_config` has
        lm_eval's options of the same names; `--model_args` wins."""
        given = read_arguments(arg_dict, additional_config)
        if 'workdir' not in given:
            raise UserError('--model_args: needs workdir=FOLDER, the workdir of a run.')
        return cls.from_workdir(
            str(given.pop('workdir')), stage=str(given.pop('stage', '')), **given
        )

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict | None = None
    ) -> 'Harness':
        """Builds a harness from a text such as 'workdir=runs/x,stage=sft'."""
        return cls.create_from_arg_obj(
            utils.simple_parse_args_string(arg_string), additional_config
        )

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What the first token of a text is conditioned on: BOS where the tokenizer puts one, else
        EOS."""
        return self.eot_token_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id

    @property
    def tokenizer_name(self) -> str:
        return f'{self._run.config.tokenizer.name}-{self.tokenizer.fingerprint()[:16]}'

    def get_model_info(self) -> dict:
        """Describes the model for the results, under `config`. `truncated` counts requests that
        were cut, `without_tokens` empty ones."""
        origin = {
            'workdir': str(self._run.workdir),
            'stage': self._origin[0],
            'step': self._origin[1],
        }
        size = sum(x.size for x in jax.tree.leaves(self._params))
        shape = {
            'model_num_parameters': size,
            'model_dtype': self._run.model.param_dtype,
            'tokenizer': self.tokenizer_name,
        }
        shape |= {'truncated': dict(self.truncated), 'without_tokens': self.without_tokens}
        return origin | shape | {'max_length': self.max_length, 'generation_seed': self._seed}

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns the template's source, for the results. Where there is no source to show, returns
        how it renders a message."""
        if not chat_template:
            return None
        if isinstance(chat_template, str):
            raise UserError(
                f'apply_chat_template="{chat_template}": a tokenizer has one template here; give '
                'no name.'
            )
        rendered = self.apply_chat_template([{'role': 'user', 'content': '{{ content }}'}])
        return getattr(getattr(self.tokenizer, 'tokenizer', None), 'chat_template', rendered)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Renders messages; without a generation prompt the last message is left open, for the
        model to continue it."""
        open_ended = dict(
            template_kwargs=self._chat_arguments, continue_final_message=not add_generation_prompt
        )
        text = self.tokenizer.chat_text(chat_history, add_generation_prompt, **open_ended)
        if not self._chat_checked and self.tok_encode(text) != self.tokenizer.encode(text):
            log.warning(
                'BOS goes before these messages, which their template does not write: '
                'add_bos_token=False leaves it out.'
            )
        self._chat_checked = True
        return text

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Returns the ids of a text. BOS is in front unless `add_special_tokens` is False, the
        tokenizer puts none or the text has one already."""
        ids, bos = self.tokenizer.encode(string), self.tokenizer.bos_id
        if add_special_tokens is False or not self._add_bos or bos is None or ids[:1] == [bos]:
            return ids
        return [bos, *ids]

    def _loglikelihood_tokens(
        self, requests: list[tuple], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Scores (texts or None, context ids, continuation ids): the sum of log-probs in nats, and
        whether all are most likely."""
        # One that merges into its context has no token of its own: the sum over none is 0, as in
        # classes of the harness that go on.
        if empty := sum(not more for _, _, more in requests):
            self.without_tokens += empty
            log.warning(
                'loglikelihood: %d of %d continuations add no token to their context and score 0.',
                empty,
                len(requests),
            )
        rows = [self._document(*request) for request in requests]
        cut = [
            len(context or [0]) + len(more) - len(row.tokens)
            for row, (_, context, more) in zip(rows, requests)
        ]
        self._count_cut('loglikelihood', cut)
        scores: list = [None] * len(rows)
        with tqdm(total=len(rows), desc='Scoring', disable=disable_tqdm) as bar:
            for chunk, filled in self._chunks(
                [len(row.tokens) for row in rows], range(len(rows)), self._run.mesh
            ):
                length = min(bucket(len(rows[chunk[0]].tokens)), self.max_length + 1)
                batch = rows_of.stacked(
                    [
                        rows_of.padded(rows[i], pad_id=self.tokenizer.pad_id, length=length)
                        for i in filled
                    ]
                )
                logprob_BxT, hit_BxT = jax.device_get(
                    self._score(self._params, meshes.place_batch(batch, self._run.mesh))
                )
                for b, i in enumerate(chunk):
                    asked = batch['weights'][b] > 0
                    scores[i] = (
                        float(logprob_BxT[b][asked].sum(dtype=np.float64)),
                        bool(hit_BxT[b][asked].all()),
                    )
                    if requests[i][0] is not None:
                        self.cache_hook.add_partial('loglikelihood', requests[i][0], scores[i])
                bar.update(len(chunk))
        return scores

    def _document(
        self, texts: tuple[str, str] | None, context: list[int], continuation: list[int]
    ) -> rows_of.Document:
        where = '' if texts is None else f' of {texts[1][:60]!r} after {texts[0][-60:]!r}'
        if len(continuation) > self.max_length:
            raise UserError(
                f'a continuation{where} has {len(continuation)} tokens, but '
                f'max_length={self.max_length}.'
            )
        # A context of blanks alone has gone into the continuation.
        tokens = ((context or [self.prefix_token_id]) + continuation)[-(self.max_length + 1) :]
        weights = np.zeros(len(tokens), np.float32)
        weights[len(tokens) - len(continuation) :] = 1
        return rows_of.Document(np.array(tokens, np.int32), weights)

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """Returns the log-probs in nats of whole texts, each token scored once. Windows have
        `max_length` tokens; the first is given BOS (or EOS), never twice."""
        windows, owners = [], []
        for i, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            ids = ids[1:] if ids[:1] == [self.prefix_token_id] else ids
            for pair in utils.get_rolling_token_windows(
                ids, self.prefix_token_id, self.max_length, 1
            ):
                windows.append((None, *utils.make_disjoint_window(pair)))
                owners.append(i)
        totals = [0.0] * len(requests)
        for i, (logprob, _) in zip(
            owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True
        ):
            totals[i] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial('loglikelihood_rolling', request.args, total)
        return totals

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """Answers requests (context, generation settings); see `request_of`. Each answer is cut
        before the first of its `until` strings.

        A stop string that is one id ends the answer there. One of several ids does not: the answer
        is cut when it is done.
        """
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(i)
        ways = [
            request_of(requests[members[0]].args[1], self.tokenizer, self.max_gen_toks)
            for members in groups.values()
        ]
        answers = [''] * len(requests)
        with tqdm(total=len(requests), desc='Generating', disable=disable_tqdm) as bar:
            for way, members in zip(ways, groups.values()):
                for i, text in self._answers(way, members, requests):
                    answers[i] = text
                    self.cache_hook.add_partial('generate_until', requests[i].args, text)
                    bar.update(1)
        return answers

    def _answers(
        self, way: GenerationRequest, members: list[int], requests: list
    ) -> Iterator[tuple[int, str]]:
        room = self.max_length - way.sampling.max_tokens
        if room < 1:
            raise UserError(
                f'max_gen_toks={way.sampling.max_tokens} leaves no room for a prompt in '
                f'max_length={self.max_length}.'
            )
        prompts = {
            i: self.tok_encode(requests[i].args[0]) or [self.prefix_token_id] for i in members
        }
        self._count_cut('generate_until', [max(0, len(ids) - room) for ids in prompts.values()])
        prompts = {i: np.array(ids[-room:], np.int32) for i, ids in prompts.items()}
        draw = self._programs.setdefault(way.sampling, sampler(self._run, way.sampling))
        key = randomness.key(self._seed, 0, 0, 'rollout')
        for chunk, filled in self._chunks(
            [len(prompts[i]) for i in members], members, self._run.rollout_mesh
        ):
            length = min(bucket(len(prompts[chunk[0]])), room)
            batch = rows_of.left_padded(
                [prompts[i] for i in filled], pad_id=self.tokenizer.pad_id, length=length
            )
            batch['index'] = np.array(filled, np.uint32)
            rollout = jax.device_get(draw(self._params, batch, key))
            for i, (completion,) in zip(chunk, completions(rollout, self.tokenizer)):
                # All ids, because one that stands for a stop string has ended the answer and has to
                # cut it too.
                yield i, cut_at(self.tokenizer.decode(completion.ids), way.until)

    def _chunks(
        self, lengths: list[int], members: Sequence[int], mesh: jax.sharding.Mesh
    ) -> Iterator[tuple[list[int], list[int]]]:
        """Yields batches, each filled with repeats to the size of all. The longest members come
        first: what is too large fails at once."""
        order = [i for _, i in sorted(zip(lengths, members), key=lambda pair: -pair[0])]
        size = meshes.filled(max(1, min(self.batch_size, len(members))), mesh)
        for first in range(0, len(order), size):
            chunk = order[first : first + size]
            yield chunk, chunk + [chunk[-1]] * (size - len(chunk))

    def _count_cut(self, kind: str, cut: list[int]) -> None:
        if number := sum(tokens > 0 for tokens in cut):
            self.truncated[kind] += number
            text = '%s: %d of %d contexts do not fit max_length=%d and lose up to %d tokens on their left.'
            log.warning(text, kind, number, len(cut), self.max_length, max(cut))


def cut_at(text: str, until: Sequence[str]) -> str:
    """Cuts a text before the first place where any of the stop strings begins."""
    return text[: min((text.index(stop) for stop in until if stop in text), default=len(text))]


def bucket(length: int) -> int:
    """Rounds a length up, by a quarter of it or 15 at most, so that few differ: each is a compiled
    program."""
    step = max(ROUND, 1 << max(length.bit_length() - 3, 0))
    return -(-length // step) * step
