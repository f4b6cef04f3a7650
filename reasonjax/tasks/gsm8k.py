"""GSM8K: grade-school word problems (Cobbe et al. 2021, arXiv 2110.14168) from a folder of JSONL
files."""

import dataclasses
import os
import pathlib
import re
from typing import Any

from reasonjax.bounds import AtLeast
from reasonjax.errors import UserError, listing, nearest
from reasonjax.protocols import Task
from reasonjax.tasks.answers import extract, read_solution

CALCULATOR = re.compile(r'<<[^<>]*>>')
FINAL = re.compile(r'####\s*(-?[0-9][0-9.,]*)\s*$')
TEMPLATE = 'Question: {question}\nAnswer:'  # lm-evaluation-harness's
STOPS = re.compile(r'Question:|</s>|<\|im_end\|>')  # likewise


def rows_to_prompt(
    question: str, answer: str, *, template: str = TEMPLATE, keep_calculator: bool = False
) -> dict:
    """Turns a GSM8K row into a prompt, a worked answer and the number that is asked for.

    Args:
      question: the problem.
      answer: the worked answer, ending in '#### number'.
      template: the prompt, with `{question}` in it.
      keep_calculator: keep the `<<48/2=24>>` annotations of the data set.

    Returns:
      `prompt`, `completion` (a space and the worked answer) and `solution` (the number, without
      thousands separators).

    Raises:
      UserError: the answer does not end with '#### number'.
    """
    final = FINAL.search(answer)
    if final is None:
        raise UserError(f'expected an answer that ends in "#### number", got {answer[-80:]!r}.')
    text = answer if keep_calculator else CALCULATOR.sub('', answer)
    prompt = template.replace('{question}', question)
    return {
        'prompt': prompt,
        'completion': f' {text.rstrip()}',
        'solution': final[1].replace(',', '').rstrip('.'),
    }


@dataclasses.dataclass(frozen=True)
class Rows:
    """GSM8K rows through the template; the row's own `question` and `answer` stay beside it."""

    lines: Any
    keep_calculator: bool

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, i: int) -> dict:
        row = self.lines[i]
        for column in ('question', 'answer'):
            if not isinstance(row.get(column), str):
                hint = f'{nearest(column, row)} The row has: {listing(row)}.'
                raise UserError(f'{self.where(i)}: GSM8K needs a text column "{column}".{hint}')
        try:
            return {
                **row,
                **rows_to_prompt(
                    row['question'], row['answer'], keep_calculator=self.keep_calculator
                ),
            }
        except UserError as error:
            raise UserError(f'{self.where(i)}: {error}') from error

    def where(self, i: int) -> str:
        return self.lines.where(i)

    def fingerprint(self) -> str:
        return f'{self.lines.fingerprint()}:{self.keep_calculator}'


def verify(completion: str, row: dict, terminated: bool) -> dict:
    """Marks a completion in two ways, exactly as lm-evaluation-harness's task gsm8k does. The
    result `correct` is `strict`.

    `strict`: the first '#### number', the form of the data set's own answers, is the solution.
    `flexible`: the last number of the text is. Numbers are compared as they are written, apart from
    commas, dollar signs and one final dot: 72.0 is not 72. Text from a stop string of that task on
    is ignored (a model that goes on to invent the next problem is marked on this one). Whether the
    completion ended by itself does not matter.
    """
    del terminated
    text = STOPS.split(completion, maxsplit=1)[0]
    strict, flexible = extract(text, 'strict'), extract(text, 'flexible')
    solution = read_solution(row['solution'], 'strict', 'number')
    strict_right, flexible_right = (
        None not in (x, solution) and _written(x) == _written(solution) for x in (strict, flexible)
    )
    answer = flexible if strict is None else strict
    return {
        'correct': strict_right,
        'answer': answer,
        'strict': strict_right,
        'flexible': flexible_right,
    }


verify.reads = ('solution',)


def _written(number: str) -> str:
    return number.replace(',', '').replace('$', '').removesuffix('.')


def gsm8k(
    *,
    path: str = '',
    split: str = 'test',
    limit: AtLeast(1) | None = None,
    keep_calculator: bool = False,
) -> Task:
    """Builds the task GSM8K from `{path}/{split}.jsonl` (columns `question` and `answer`).

    Args:
      path: folder; '' means the folder `gsm8k` in the folder that the environment variable
        REASONJAX_DATA names.
      split: file name without '.jsonl'.
      limit: only the first `limit` rows; None means all.
      keep_calculator: keep the `<<48/2=24>>` annotations in the demonstrations.

    Raises:
      UserError: no such folder or file, an empty or malformed one, or a row without the needed
        columns.
    """
    # not above: reward workers import this package, and need no data pipeline
    from reasonjax.data import sources

    if limit is not None and limit < 1:
        raise UserError(f'gsm8k: limit must be at least 1 or None, got {limit}.')
    lines = sources.jsonl(path=str(_file(path, split)), limit=limit)
    return Task(f'gsm8k/{split}', Rows(lines, keep_calculator), verify)


def _file(path: str, split: str) -> pathlib.Path:
    hint = 'Set data.path to a folder of JSONL files, or the variable REASONJAX_DATA to a folder that holds gsm8k/.'
    if not path and not os.environ.get('REASONJAX_DATA'):
        raise UserError(f'gsm8k: no folder given. {hint}')
    folder = pathlib.Path(path) if path else pathlib.Path(os.environ['REASONJAX_DATA']) / 'gsm8k'
    if not folder.is_dir():
        raise UserError(f'gsm8k: no folder {folder}. {hint}')
    file = folder / f'{split}.jsonl'
    if not file.is_file():
        there = [p.stem for p in folder.glob('*.jsonl')]
        known = f'{nearest(split, there)} Splits there: {listing(there) or "none"}.'
        raise UserError(f'gsm8k: no file {file}.{known} {hint}')
    return file
