"""Reward functions that do what they can to end a run: each costs the samples it fails on, and
nothing else."""

import sys
import threading

import numpy as np
import pytest

from reasonjax.errors import UserError
from reasonjax.sampling import reward_worker
from reasonjax.sampling.reward_pool import RewardPool, RewardSpec

LIMIT = 3.0  # seconds; far above what the honest part of the functions needs
MEMORY = 0.5  # GiB

MODULE = '''
import asyncio, collections, ctypes, decimal, fractions, itertools, os, pickle, signal, sys, threading, time
import numpy as np

class StrRaises(Exception):
    def __str__(self):
        raise RuntimeError('in str')
    __repr__ = __str__

class StrExits(Exception):
    def __str__(self):
        sys.exit('in str')

class StrIsNoText(Exception):
    def __str__(self):
        return 7

class LongText(Exception):
    def __str__(self):
        return 'x' * 10_000_000

class Base(BaseException):
    pass

class Value:
    """A value whose methods do what it is told."""
    def __init__(self, **methods):
        self.methods = methods
    def __repr__(self):
        return self.methods.get('repr', lambda: 'Value')()
    def __float__(self):
        return self.methods['float']()

class Half(float):
    def __float__(self):
        return Half(0.5)

class Lies(list):
    def __len__(self):
        return self.length

def lies(values, length):
    made = Lies(values)
    made.length = length
    return made

class Endless:
    def __len__(self):
        return 1
    def __getitem__(self, i):
        return 1.0
    def __iter__(self):
        return itertools.repeat(1.0)

def fails(error):
    raise error

def fill():
    held = []
    while True:
        held.append(np.empty(2**24, np.uint8))  # nothing is written to it, which would take time

def fill_and_catch():
    try:
        fill()
    except MemoryError:
        return 4.0

kept = []

def leak():
    """Fails where a worker has to bear it for the second time."""
    kept.append(np.empty(int(0.3 * 2**30), np.uint8))
    return 4.0

def shout():
    print('\\x1b[2J\\x07\\u202e\\r')
    print('\\x1b]0;x\\x07\\u2066', file=sys.stderr)
    return 4.0

def flood():
    for _ in range(1000):
        print('x' * 10_000)
        print('y' * 10_000, file=sys.stderr)
    return 4.0

def thread():
    threading.Thread(target=lambda: [time.sleep(0.01) for _ in itertools.count()]).start()
    return 4.0

def raising_thread():
    thread = threading.Thread(target=lambda: fails(RuntimeError('in a thread')))
    thread.start()
    thread.join()
    return 4.0

def close_files():
    os.closerange(3, 1000)
    return 4.0

def fork():
    os.fork()
    return 4.0

def recurse(n=0):
    return recurse(n + 1)

def nested():
    value = []
    for _ in range(100_000):
        value = [value]
    return value

def meddle():
    sys.setrecursionlimit(10_000)
    sys.stdout = sys.stderr = None
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.chdir('/')
    return 4.0

ACTS = {
    'str raises': lambda: fails(StrRaises()), 'str exits': lambda: fails(StrExits()), 'str is no text': lambda: fails(StrIsNoText()),
    'long text': lambda: fails(LongText()), 'surrogates': lambda: fails(RuntimeError('\\ud800\\x1b[2J')),
    'base': lambda: fails(Base('base')), 'interrupt': lambda: fails(KeyboardInterrupt()),
    'generator exit': lambda: fails(GeneratorExit()), 'exit': lambda: sys.exit(0),
    'group': lambda: fails(ExceptionGroup('several', [ValueError('a'), Base and TypeError('b')])),
    'cause': lambda: fails(RuntimeError('outer')) if not kept else None, 'stop': lambda: next(iter([])),
    'float raises': lambda: Value(float=lambda: fails(StrRaises())), 'float exits': lambda: Value(float=lambda: sys.exit(1)),
    'float is text': lambda: Value(float=lambda: '0.5'), 'float interrupts': lambda: Value(float=lambda: fails(KeyboardInterrupt())),
    'repr raises': lambda: type('NoRepr', (), {'__repr__': lambda self: fails(StrRaises())})(),
    'repr exits': lambda: type('NoRepr', (), {'__repr__': lambda self: sys.exit(1)})(), 'nested': nested, 'huge': lambda: 10**5000,
    'complex': lambda: 1 + 1j, 'numpy complex': lambda: np.complex128(1 + 1j), 'date': lambda: np.datetime64('2020'),
    'duration': lambda: np.timedelta64(5), 'row': lambda: [1.0], 'one in an array': lambda: np.array([1.0]), 'object': object,
    'text': lambda: '1.0', 'bytes': lambda: b'1.0', 'type': lambda: float, 'nan': lambda: decimal.Decimal('nan'),
    'infinite': lambda: float('-inf'), 'giant': lambda: 1e308, 'large': lambda: -10**20,
    'recursion': recurse, 'die quietly': lambda: os._exit(0),
    'kill': lambda: os.kill(os.getpid(), signal.SIGKILL), 'abort': os.abort, 'crash': lambda: ctypes.string_at(0), 'memory': fill,
    'numpy memory': lambda: np.ones(2**33),
    'half': lambda: Half(4), 'decimal': lambda: decimal.Decimal(4), 'fraction': lambda: fractions.Fraction(4), 'true': lambda: True,
    'array': lambda: np.array(4.0), 'float16': lambda: np.float16(4), 'none': lambda: None, 'caught': fill_and_catch, 'flood': flood,
    'shout': shout, 'thread': thread, 'raising thread': raising_thread, 'meddle': meddle, 'leak': leak, 'fork': fork,
    'close files': close_files,
}

def acts(completions, **kwargs):
    """Does what the completions say; else their lengths."""
    return [ACTS[c]() if c in ACTS else float(len(c)) for c in completions]

RETURNS = {
    'generator': lambda v: (x for x in v), 'iterator': iter, 'set': set, 'frozenset': frozenset,
    'dict': lambda v: dict.fromkeys(range(len(v)), 1.0), 'dict values': lambda v: dict(enumerate(v)).values(),
    'column': lambda v: np.array(v)[:, None], 'matrix': lambda v: np.outer(v, v), 'number': lambda v: 1.0, 'none': lambda v: None,
    'text': lambda v: 'x' * len(v), 'bytes': lambda v: bytes(len(v)), 'bytearray': lambda v: bytearray(len(v)),
    'too many': lambda v: [*v, 1.0], 'too few': lambda v: v[:-1], 'says fewer': lambda v: lies(v + [1.0], len(v)),
    'says more': lambda v: lies(v[:-1], len(v)), 'endless': lambda v: Endless(), 'coroutine': lambda v: asyncio.sleep(0, v),
    'len raises': lambda v: type('L', (list,), {'__len__': lambda self: fails(StrRaises())})(v),
    'iter raises': lambda v: type('L', (list,), {'__iter__': lambda self: fails(StrRaises())})(v),
    'len is negative': lambda v: type('L', (list,), {'__len__': lambda self: -1})(v), 'class': lambda v: list,
    'nested': lambda v: [v] * len(v), 'tuple': tuple, 'array': np.array, 'deque': collections.deque,
    'integers': lambda v: np.array(v, int), 'objects': lambda v: np.array(v, object), 'range': lambda v: range(len(v)),
    'list subclass': lambda v: type('L', (list,), {})(v), 'says one': lambda v: lies(v, 1),
}

def returns(completions, how, **kwargs):
    return RETURNS[how[0]]([float(len(c)) for c in completions])
'''


@pytest.fixture(scope='module', autouse=True)
def module(tmp_path_factory):
    folder = tmp_path_factory.mktemp('hostile')
    (folder / 'hostile_rewards.py').write_text(MODULE)
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))


def pool_of(name, **settings):
    settings = {'workers': 2, 'time_limit': LIMIT, 'memory_limit': MEMORY} | settings
    return RewardPool({'key': RewardSpec(f'hostile_rewards:{name}')}, **settings)


@pytest.fixture(scope='module')
def dropping(module):
    with pool_of('acts', on_error='drop') as pool:
        yield pool


@pytest.fixture(scope='module')
def raising(module):
    with pool_of('acts') as pool:
        yield pool


FAILS = {
    'str raises': r'raised StrRaises: \(its text cannot be shown: RuntimeError\)',
    'str exits': r'its text cannot be shown: SystemExit',
    'str is no text': r'its text cannot be shown: TypeError',
    'long text': r'xxx\.\.\. \(10000000 characters\)',
    'surrogates': 'raised RuntimeError',
    'base': 'raised Base: base',
    'interrupt': 'raised KeyboardInterrupt',
    'generator exit': 'raised GeneratorExit',
    'exit': 'raised SystemExit: 0',
    'group': 'raised ExceptionGroup: several',
    'cause': 'raised RuntimeError: outer',
    'stop': 'raised StopIteration',
    'float raises': r'returned Value \(Value\), which cannot be made a float \(StrRaises',
    'float exits': 'raised SystemExit: 1',
    'float is text': r'cannot be made a float \(TypeError',
    'float interrupts': 'raised KeyboardInterrupt',
    'repr raises': r'<NoRepr that cannot be shown: StrRaises> \(NoRepr\), not a number',
    'repr exits': 'that cannot be shown: SystemExit',
    'nested': 'list that cannot be shown: RecursionError|not a number',
    'huge': r'cannot be made a float \(OverflowError',
    'complex': 'not a number',
    'numpy complex': 'not a number',
    'date': 'not a number',
    'duration': 'not a number',
    'row': r'\[1.0\] \(list\), not a number',
    'one in an array': 'not a number',
    'object': 'not a number',
    'text': 'not a number',
    'bytes': 'not a number',
    'type': 'not a number',
    'recursion': 'raised RecursionError',
    'die quietly': 'ended or broke its worker',
    'close files': 'ended or broke its worker',
    'kill': 'ended or broke its worker',
    'abort': 'ended or broke its worker',
    'crash': 'ended or broke its worker',
    'memory': r'needs more than 0.5 GiB of memory \(reward_memory_limit\)',
    'numpy memory': 'needs more than 0.5 GiB',
    'nan': 'returned nan',
    'infinite': 'returned -inf',
    'giant': r'returned 1e\+308; rewards are at most 1e\+18 in size',
    'large': 'rewards are at most',
}
PASSES = {
    'half': 0.5,
    'decimal': 4,
    'fraction': 4,
    'true': 1,
    'array': 4,
    'float16': 4,
    'none': np.nan,
    'caught': 4,
    'flood': 4,
    'thread': 4,
    'raising thread': 4,
    'shout': 4,
    'meddle': 4,
    'fork': 4,
}
KINDS = dict.fromkeys(('nan', 'infinite', 'giant', 'large'), 'nan')
ENDS = ('kill', 'abort', 'crash', 'close files')  # in the same way as `die quietly`


def score(pool, completions, group=2, **columns):
    return pool.score(
        [f'prompt {i // group}' for i in range(len(completions))], completions, columns, group
    )


@pytest.mark.parametrize('act', FAILS)
def test_only_the_sample_that_fails_is_lost(dropping, act):
    found = score(dropping, ['a', 'bb', 'ccc', act, 'dddd', 'e'])
    np.testing.assert_array_equal(found.values[:, 0], [1, 2, 3, np.nan, 4, 1])
    counts = {
        kind: found.counts[f'rewards/key/{kind}']
        for kind in ('errors', 'timeouts', 'nan', 'dropped')
    }
    assert counts == {'errors': 0, 'timeouts': 0, 'nan': 0, 'dropped': 0} | {
        KINDS.get(act, 'errors'): 1
    }
    np.testing.assert_array_equal(score(dropping, ['a', 'bb']).values[:, 0], [1, 2])


@pytest.mark.parametrize('act', [act for act in FAILS if act not in ENDS])
def test_where_failures_stop_the_run_the_message_says_which_and_why(raising, act):
    with pytest.raises(
        UserError, match=f'(?s)rewards.key: hostile_rewards.acts .*{FAILS[act]}'
    ) as caught:
        score(raising, ['a', 'bb', 'ccc', act])
    message = str(caught.value)
    assert 'sample 3 (prompt 1, generation 1)' in message and len(message) < 12_000


@pytest.mark.parametrize('act', PASSES)
def test_what_is_odd_and_still_an_answer_counts(dropping, act):
    found = score(dropping, ['a', act, 'ccc', 'bb'])
    np.testing.assert_array_equal(found.values[:, 0], [1, PASSES[act], 3, 2])
    for _ in range(2):
        np.testing.assert_array_equal(
            score(dropping, ['a', 'bb', 'ccc', 'a'] * 4).values[:, 0], [1, 2, 3, 1] * 4
        )


def test_what_a_worker_keeps_is_no_other_samples_fault(dropping):
    """The second sample in a worker finds its memory full; each alone, in a fresh worker,
    passes."""
    found = score(dropping, ['leak', 'a', 'leak', 'bb', 'leak', 'leak'], group=1)
    np.testing.assert_array_equal(found.values[:, 0], [4, 1, 4, 2, 4, 4])


def test_memory_is_limited_in_every_worker_and_said_in_the_settings():
    for memory in (0, -1, float('inf'), float('nan')):
        with pytest.raises(UserError, match='memory_limit must be a positive number of GiB'):
            pool_of('acts', memory_limit=memory)
    with pool_of('acts', memory_limit=1.0, workers=1, on_error='drop') as pool:
        assert score(pool, ['memory'] * 2 + ['a'] * 2).counts['rewards/key/errors'] == 2


NO_LISTS = [
    'generator',
    'iterator',
    'set',
    'frozenset',
    'dict',
    'dict values',
    'column',
    'matrix',
    'number',
    'none',
    'text',
    'bytes',
    'bytearray',
    'too many',
    'too few',
    'says fewer',
    'says more',
    'endless',
    'coroutine',
    'iter raises',
    'class',
    'nested',
]


@pytest.mark.parametrize('how', NO_LISTS)
def test_returns_that_are_no_list_of_numbers(how):
    completions = ['a', 'bb', 'ccc', 'a']
    with pytest.raises(
        UserError,
        match='returned .*not a number|returned .* rewards for|not a list of|raised StrRaises',
    ):
        score(pool_of('returns', workers=0), completions, how=[how] * 4)
    found = score(pool_of('returns', workers=0, on_error='drop'), completions, how=[how] * 4)
    assert np.isnan(found.total).all() and found.counts['rewards/key/errors'] == 4


LISTS = [
    'tuple',
    'array',
    'deque',
    'integers',
    'objects',
    'list subclass',
    'says one',
    'len is negative',
    'len raises',
]


@pytest.mark.parametrize('how', LISTS)
def test_returns_that_are_as_good_as_a_list(how):
    found = score(pool_of('returns', workers=0), ['a', 'bb', 'ccc', 'a'], how=[how] * 4)
    np.testing.assert_array_equal(found.values[:, 0], [1, 2, 3, 1])


def test_output_is_shown_up_to_a_limit(module, capfd):
    with pool_of('acts', workers=1) as pool:
        score(pool, ['flood', 'a', 'flood', 'bb'])
    shown = capfd.readouterr()
    assert (
        shown.out == ''
        and shown.err.startswith('xxx')
        and len(shown.err) < 3 * reward_worker.PRINTED
    )
    assert 'more characters that rewards.key has printed are not shown' in shown.err


def test_output_is_written_out(module, capfd):
    """Reward functions print completions, and what is in these does not reach the terminal as it
    is."""
    with pool_of('acts', workers=1) as pool:
        score(pool, ['shout', 'a'])
    assert capfd.readouterr().err == '\\x1b[2J\\x07\\u202e\\r\n\\x1b]0;x\\x07\\u2066\n'


def test_an_interruption_by_the_user_passes_where_there_are_no_workers(module):
    with pytest.raises(KeyboardInterrupt):
        score(pool_of('acts', workers=0), ['a', 'interrupt'])
    found = score(pool_of('acts', workers=0, on_error='drop'), ['base', 'exit', 'str raises', 'a'])
    np.testing.assert_array_equal(found.values[:, 0], [np.nan, np.nan, np.nan, 1])


def test_threads_that_are_left_behind_do_not_keep_a_pool_from_ending(module):
    with pool_of('acts', workers=1) as pool:
        assert score(pool, ['thread', 'a']).total.tolist() == [4, 1]
        closing = threading.Thread(target=pool.close)
        closing.start()
        closing.join(60)
        assert not closing.is_alive()
