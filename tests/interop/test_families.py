"""Every Hugging Face family against transformers' torch models: logits, gradients, greedy tokens,
export, bits, sampler."""

import dataclasses
import pathlib

import pytest

pytest.importorskip('torch')
pytest.importorskip('transformers')

from benchmarks.families import COLUMNS, main, page  # noqa: E402
from benchmarks.family_cases import CASES  # noqa: E402
from benchmarks.parity import BOUNDS, failures, measure  # noqa: E402
from reasonjax.interop.huggingface.families import FAMILIES  # noqa: E402

PAGE = pathlib.Path(__file__).parent.parent.parent / 'docs' / 'FAMILIES.md'
# About five times what was seen; the bounds of the page are wider.
TIGHT = {'padded': 4e-5, 'packed': 4e-5, 'gradient': 2e-5, 'export': 1e-7, 'sampler': 2e-5}
# Layers that differ, where a scan has to look up which is which.
SCANNED = ('qwen-2.5-window', 'gemma-3', 'smollm-3-window', 'mixtral')
# Each form of a block once in bfloat16 too; the page has all.
ROUNDED = (*SCANNED, 'llama-3.2', 'qwen-3', 'olmo-2', 'phi-3', 'gemma-2')
# What these have beside another case of their family is the same in every layer, and read in one;
# the page has two.
SHALLOW = (
    'llama-bias',
    'llama-linear',
    'llama-dynamic',
    'qwen-2.5-yarn',
    'qwen-3-tied',
    'qwen-3-moe-raw',
    'phi-3-short',
    'phi-3-long',
    'phi-4-mini',
)


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
def test_equals_torch(case):
    rounded = case.name in ROUNDED
    if case.name in SHALLOW:
        case = dataclasses.replace(case, fields={**case.fields, 'num_hidden_layers': 1})
    row = measure(case, scans=(case.name in SCANNED,), quick=True, rounded=rounded)
    assert ('sampler_bf16' in row) == ('bits' in row) == rounded
    row = {'sampler_bf16': 0.0, 'sampler_bf16_mean': 0.0, 'bits': True} | row
    assert not failures(case, row)
    assert not {name: row[name] for name, bound in TIGHT.items() if not row[name] <= bound}
    # A model whose logits say something, and no greedy token that rounding could have chosen.
    assert (
        1 < row['largest'] < 10
        and row['gap'] > 10 * TIGHT['padded'] / 5
        and row['tokens'] == 6 * 32
    )


def test_every_family_has_a_case():
    assert {f'{case.family}Config' for case in CASES} == {
        family.config_class for family in FAMILIES
    }
    assert len({case.name for case in CASES}) == len(CASES)
    names = {case.name: case.family for case in CASES}
    assert {*SCANNED, *ROUNDED, *SHALLOW} <= names.keys() and not {*SCANNED, *ROUNDED} & {*SHALLOW}
    # Every family is read with several layers.
    assert {names[name] for name in SHALLOW} <= {names[name] for name in names.keys() - {*SHALLOW}}


def test_failures_are_named():
    good = {name: 0.0 for name in BOUNDS} | {'greedy': 5, 'tokens': 5, 'config': True, 'bits': True}
    dense, mixture = (
        next(case for case in CASES if case.mixture == is_mixture) for is_mixture in (False, True)
    )
    assert not failures(dense, good) and not failures(mixture, good)
    wrong = [(name, bad) for name, bound in BOUNDS.items() for bad in (2 * bound, float('nan'))]
    for name, value in [*wrong, ('config', False), ('bits', False)]:
        assert name in ' '.join(failures(dense, good | {name: value}))
        assert bool(failures(mixture, good | {name: value})) == (name != 'sampler_bf16')
    assert failures(dense, good | {'greedy': 4}) == ['4 of 5 greedy tokens agree']


def test_the_page_lists_every_case():
    lines = PAGE.read_text(encoding='utf-8').splitlines()
    for case in CASES:
        found = [line for line in lines if line.startswith(f'| {case.name} |')]
        assert len(found) == 1 and case.about in found[0] and 'DIFFERS' not in found[0], case.name
        assert found[0].count('192/192') == 1
    assert any(all(column in line for column in COLUMNS) for line in lines)
    assert 'python -m benchmarks.families --write docs/FAMILIES.md' in lines


def test_the_page_says_what_differs():
    row = {name: 0.5 for name in BOUNDS} | {
        'largest': 3.0,
        'gap': 0.1,
        'greedy': 7,
        'tokens': 192,
        'config': False,
        'bits': False,
    }
    assert '7/192 | 0.5 | DIFFERS | DIFFERS' in page([(CASES[0], row)])


def test_unknown_names_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(['--only', 'quen-3'])
    assert 'Did you mean "qwen-3"?' in capsys.readouterr().err
