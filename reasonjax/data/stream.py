"""The stream of examples: source rows, transformed and rendered, in an order of its own each epoch.

Row `i` of the endless stream is fixed by (seed, i): an own order for each epoch, and an own random
generator for each row's transforms. What an iterator has to remember is how far it has come, so its
state is a few integers.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import grain
import numpy as np

from reasonjax.data.sources import Source
from reasonjax.errors import UserError
from reasonjax.files import half_character

Example = dict[str, Any]
Transform = Callable[[Example, np.random.Generator], Iterable[Example]]

# Where the draws of the epochs' orders start; those of transform k of a row start at [0, 0, 0, k].
_ORDER_DRAWS = (0, 0, 1, 0)
COUNTERS = ('rows', 'examples', 'rows_without_examples', 'dropped_overlong', 'dropped_keys')


class Batches(grain.DatasetIterator):
    """Batches without end, made one or two ahead on a thread; `get_state` and `set_state` restore
    the stream bit for bit.

    Attributes:
        counters: what became of the source up to the last batch, restored with the state: `rows`
            read, `examples` made of them (each text of a conversation that needs several is one),
            `rows_without_examples` (transforms returned none), `dropped_overlong`, `dropped_keys`
            (of messages, that the chat template does not read: a date, say). Packing reads ahead,
            and they with it.
    """

    def __init__(
        self,
        items: grain.IterDataset,
        size: int,
        collate: Callable,
        counters: dict[str, int],
        fingerprint: str,
    ):
        batches = items.batch(size, batch_fn=collate).map(lambda batch: (batch, dict(counters)))
        super().__init__(
            iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=2))
        )
        self._fingerprint = fingerprint
        self.counters = dict(counters)

    def __next__(self) -> dict[str, Any]:
        batch, self.counters = next(self._parent)
        return batch

    def get_state(self) -> dict[str, Any]:
        return {
            'parent': self._parent.get_state(),
            'counters': dict(self.counters),
            'fingerprint': self._fingerprint,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        if state['fingerprint'] != self._fingerprint:
            raise UserError(
                'data: the checkpoint was written with other rows, another tokenizer or other data '
                'settings, so its '
                'position in the stream means nothing here; use a new workdir, or put the old data '
                'back'
            )
        self._parent.set_state(state['parent'])
        self.counters = dict(state['counters'])


class Item(NamedTuple):
    """An example in the stream: its index, its columns and what it was rendered to."""

    index: int
    example: Example
    rendered: Any


class Outcome(NamedTuple):
    """What became of one source row."""

    kept: list[tuple[Example, Any]]
    dropped_overlong: int
    dropped_keys: int

    def count(self, counters: dict[str, int]) -> None:
        counters['rows'] += 1
        counters['dropped_overlong'] += self.dropped_overlong
        counters['dropped_keys'] += self.dropped_keys
        counters['rows_without_examples'] += not self.kept and not self.dropped_overlong


@dataclass(frozen=True)
class Measure:
    """Renders examples and holds what comes out to a limit.

    Attributes:
        limit: tokens.
        overlong: 'error' or 'drop'.
        key: what errors call the limit.
        render: to one or several things.
        length: of one of them, in tokens.
        unread: how many keys of an example's messages the rendering leaves out.
    """

    limit: int
    overlong: str
    key: str
    render: Callable[[Example], Sequence[Any]]
    length: Callable[[Any], int]
    unread: Callable[[Example], int] = lambda example: 0

    def __post_init__(self):
        if self.overlong not in ('error', 'drop'):
            raise UserError(f'data.overlong: expected "error" or "drop", got {self.overlong!r}')

    def fits(self, rendered: Any) -> bool:
        """Returns whether a rendered example fits the limit; raises UserError where it has to."""
        length = self.length(rendered)
        if length > self.limit and self.overlong == 'error':
            raise UserError(
                f'{length} tokens, but {self.key}={self.limit}; raise {self.key} to at least '
                f'{length}, '
                'or set overlong="drop" to drop such rows and count them'
            )
        return length <= self.limit


def transformed(
    source: Source,
    transforms: Sequence[Transform],
    measure: Measure,
    seed: int,
    index: int,
    row: int,
) -> Outcome:
    """Transforms and renders source row `row` as number `index` of the stream."""
    try:
        examples = [source[row]]
        _check_texts(examples[0])
        for number, transform in enumerate(transforms):
            rng = np.random.Generator(
                np.random.Philox(key=[seed, index], counter=[0, 0, 0, number])
            )
            examples = [new for example in examples for new in transform(example, rng)]
        rendered = [(example, new) for example in examples for new in measure.render(example)]
        kept = [(example, new) for example, new in rendered if measure.fits(new)]
        dropped_keys = sum(map(measure.unread, examples))
    except UserError as error:
        raise UserError(f'{source.where(row)}: {error}') from error
    return Outcome(kept, len(rendered) - len(kept), dropped_keys)


def _check_texts(row: Mapping[str, Any]) -> None:
    """Raises UserError where a text of a row holds half a character: no tokenizer reads it, and no
    file takes it."""
    for column, value in row.items():
        half = half_character(value)
        if half:
            raise UserError(
                f'column "{column}" holds half a character ({half}, a lone surrogate), which no '
                'text can hold; mend or drop it'
            )


class Examples(grain.IterDataset):
    """The stream of `Item` that rows are flattened to, in order; `counters` follow the one iterator
    made of it."""

    def __init__(
        self, outcomes: grain.IterDataset, barren: Callable[[Mapping[str, int], int], None]
    ):
        super().__init__(outcomes)
        self._barren = barren
        self.counters = dict.fromkeys(COUNTERS, 0)

    def __iter__(self) -> grain.DatasetIterator:
        return _ExamplesIterator(iter(self._parent), self._barren, self.counters)


class _ExamplesIterator(grain.DatasetIterator):
    def __init__(self, parent: grain.DatasetIterator, barren: Callable, counters: dict[str, int]):
        super().__init__(parent)
        self._barren = barren
        self._counters = counters
        self._kept = []
        self._offset = 0
        self._row_state = parent.get_state()

    def __next__(self) -> Item:
        fruitless = 0
        while self._offset >= len(self._kept):
            self._row_state = self._parent.get_state()
            outcome = next(self._parent)
            outcome.count(self._counters)
            self._kept, self._offset = outcome.kept, 0
            fruitless += 1
            self._barren(self._counters, fruitless)
        item = Item(self._counters['examples'], *self._kept[self._offset])
        self._offset += 1
        self._counters['examples'] += 1
        return item

    def get_state(self) -> dict[str, Any]:
        # The offset is 0 only before the first row: a row that is held has given an example.
        return {'parent': self._row_state, 'offset': self._offset, 'counters': dict(self._counters)}

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state['parent'])
        self._row_state = state['parent']
        self._offset = state['offset']
        self._kept = next(self._parent).kept if self._offset else []
        self._counters.update(state['counters'])


def examples(
    source: Source, transforms: Sequence[Transform], measure: Measure, seed: int, shuffle: bool
) -> Examples:
    """Builds the endless stream of rendered examples.

    Raises:
        UserError: a seed out of range at once; a bad row, or none that leaves anything, when it is
          reached.
    """
    if not 0 <= seed < 2**63:
        raise UserError(f'seed: expected an integer from 0 to 2**63 - 1, got {seed}')
    size = len(source)

    # Not grain's shuffle: its cost per row grows as sources get smaller (1.7 ms at 23 rows, 7 us at
    # 6000).
    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return np.random.Generator(
            np.random.Philox(key=[seed, epoch], counter=_ORDER_DRAWS)
        ).permutation(size)

    def outcome(index: int, _: int) -> Outcome:
        epoch, place = divmod(index, size)
        return transformed(
            source, transforms, measure, seed, index, int(order(epoch)[place]) if shuffle else place
        )

    def barren(counters: Mapping[str, int], fruitless: int) -> None:
        # Among this many rows in a row is one whole epoch, wherever it starts.
        if fruitless >= 2 * size:
            raise UserError(nothing_left(source, counters, measure))

    outcomes = grain.MapDataset.range(size).repeat().map_with_index(outcome)
    # Rows are not read ahead one by one (a future for each costs more than its tokens): whole
    # batches are.
    return Examples(
        outcomes.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)), barren
    )


def nothing_left(source: Source, counters: Mapping[str, int], measure: Measure) -> str:
    """Returns the error message for a source of which every row was dropped or gave no example."""
    return (
        f'{source!r}: no example is left: of {counters["rows"]} rows read, '
        f'{counters["dropped_overlong"]} examples '
        f'were dropped as longer than {measure.key}={measure.limit}, and transforms returned '
        'nothing for '
        f'{counters["rows_without_examples"]} rows'
    )


def fingerprint(source: Source, settings: Sequence[Any]) -> str:
    """Returns a text that differs between streams that must not share a saved position."""
    return ' '.join(map(str, [source.fingerprint(), *settings]))


def check_positive(**settings: int) -> None:
    for key, value in settings.items():
        if value < 1:
            raise UserError(f'{key}: expected a positive integer, got {value}')
