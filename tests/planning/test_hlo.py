"""The reader of compiled programs, on texts as XLA writes them; `test_plan` reads what it compiles
for eight devices."""

import numpy as np
import pytest

from reasonjax.planning import hlo

F32 = 4


def module(entry, *others):
    return hlo.Module(
        'HloModule test\n\n'
        + '\n\n'.join((*others, 'ENTRY %main (p: f32[64]) -> f32[64] {\n' + entry + '\n}'))
    )


def sums(entry, *others, devices=8, **options):
    return {
        kind: (x['times'], x['bytes'])
        for kind, x in hlo.by_kind(module(entry, *others).collectives(devices, **options)).items()
    }


PARAMETER = '  %p = f32[64]{0} parameter(0)\n'


@pytest.mark.parametrize(
    'line, kind, sent',
    [
        (
            'f32[512]{0} all-gather(%p), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}',
            'all-gather',
            7 * 64 * F32,
        ),
        (
            'f32[16]{0} reduce-scatter(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, '
            'to_apply=%add',
            'reduce-scatter',
            48 * F32,
        ),
        (
            'f32[64]{0} all-reduce(%p), replica_groups={}, to_apply=%add',
            'all-reduce',
            2 * 7 / 8 * 64 * F32,
        ),
        (
            '(f32[64]{0}, f32[64]{0}) all-reduce(%p, %p), replica_groups=[4,2]<=[8], to_apply=%add',
            'all-reduce',
            2 * 64 * F32,
        ),
        (
            'f32[64]{0} all-to-all(%p), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}',
            'all-to-all',
            3 / 4 * 64 * F32,
        ),
        (
            'f32[64]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0},{2,2}}',
            'collective-permute',
            2 / 8 * 64 * F32,
        ),
        # A new way to write groups, axes by name.
        (
            "f32[64]{0} all-reduce(%p), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add",
            'all-reduce',
            2 * 3 / 4 * 64 * F32,
        ),
        # Types inside the operand list, as XLA writes them elsewhere.
        (
            'f32[128]{0} all-gather(f32[64]{0} %p), replica_groups={{0,1},{2,3},{4,5},{6,7}}, '
            'dimensions={0}',
            'all-gather',
            64 * F32,
        ),
    ],
)
def test_what_a_device_sends(line, kind, sent):
    assert sums(f'{PARAMETER}  ROOT %r = {line}') == {kind: (1, sent)}


def test_a_group_of_one_sends_nothing():
    assert (
        sums(
            f'{PARAMETER}  ROOT %r = f32[64]{{0}} all-reduce(%p), replica_groups=[8,1]<=[8], '
            'to_apply=%add'
        )
        == {}
    )


def test_asynchronous_forms_count_once():
    wrapped = (
        '%wrapped (q: f32[64]) -> f32[16] {\n  %q = f32[64]{0} parameter(0)\n'
        '  ROOT %rs = f32[16]{0} reduce-scatter(%q), replica_groups=[2,4]<=[8], dimensions={0}, '
        'to_apply=%add\n}'
    )
    entry = (
        PARAMETER
        + '  %s = (f32[64]{0}, f32[512]{0}) all-gather-start(%p), replica_groups=[1,8]<=[8], '
        'dimensions={0}\n'
        '  %d = f32[512]{0} all-gather-done(%s)\n'
        '  %a = ((f32[64]{0}), f32[16]{0}, u32[]) async-start(%p), calls=%wrapped\n'
        '  %u = ((f32[64]{0}), f32[16]{0}, u32[]) async-update(%a), calls=%wrapped\n'
        '  ROOT %e = f32[16]{0} async-done(%u), calls=%wrapped'
    )
    assert sums(entry, wrapped) == {
        'all-gather': (1, 7 * 64 * F32),
        'reduce-scatter': (1, 48 * F32),
    }


def piece(name, number):
    return (
        f'%{name} (q: f32[64]) -> f32[512] {{\n  %q = f32[64]{{0}} parameter(0)\n'
        f'  ROOT %g{number} = f32[512]{{0}} all-gather(%q), channel_id=61, '
        f'replica_groups=[1,8]<=[8], dimensions={{0}}, '
        'backend_config={"async_collective_fusion_config":{"flags":[]}}\n}'
    )


def test_a_gather_spread_over_fusions_counts_once():
    names = ('fused_computation.1', 'async_collective_fusion.2', 'async_collective_fusion.3')
    lines = [
        f'  %f{i} = f32[512]{{0}} fusion(%p), kind=kCustom, calls=%{name}'
        for i, name in enumerate(names)
    ]
    assert sums(PARAMETER + '\n'.join(lines), *map(piece, names, range(3))) == {
        'all-gather': (1, 7 * 64 * F32)
    }


def test_an_all_reduce_fused_with_a_slice_is_a_reduce_scatter():
    fused = (
        '%all-reduce-scatter.9.clone (q: f32[64]) -> f32[8] {\n  %q = f32[64]{0} parameter(0)\n'
        '  %r = f32[64]{0} all-reduce(%q), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add\n'
        '  ROOT %s = f32[8]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={8}\n}'
    )
    # The same channel twice is two operations here.
    lines = '\n'.join(
        f'  %f{i} = f32[8]{{0}} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.9.clone'
        for i in range(2)
    )
    assert sums(PARAMETER + lines, fused) == {'reduce-scatter': (2, 2 * 56 * F32)}


BODY = (
    '%body (s: (s32[], f32[64])) -> (s32[], f32[64]) {\n  %s = (s32[], f32[64]{0}) parameter(0)\n'
    '  %x = f32[64]{0} get-tuple-element(%s), index=1\n'
    '  %r = f32[64]{0} all-reduce(%x), replica_groups=[1,8]<=[8], to_apply=%add\n  ROOT %t = '
    '(s32[], f32[64]{0}) tuple(%i, %r)\n}'
)
ONCE = 2 * 7 / 8 * 64 * F32


def loop(condition, extra='', begin='0'):
    return (
        (
            f'{PARAMETER}  %zero = s32[] constant({begin})\n  %n = s32[] copy(%zero)\n  %init = '
            f'(s32[], f32[64]{{0}}) tuple(%n, %p)\n'
            f'  ROOT %w = (s32[], f32[64]{{0}}) while(%init), condition=%condition, '
            f'body=%body{extra}'
        ),
        f'%condition (c: (s32[], f32[64])) -> pred[] {{\n  %c = (s32[], f32[64]{{0}}) '
        f'parameter(0)\n{condition}\n}}',
    )


COUNTER = '  %i = s32[] get-tuple-element(%c), index=0\n'


@pytest.mark.parametrize(
    'condition, extra, begin, times',
    [
        (
            '  ROOT %b = pred[] constant(true)',
            ', backend_config={"known_trip_count":{"n":"12"}}',
            '0',
            12,
        ),
        (
            f'{COUNTER}  %end = s32[] constant(6)\n  ROOT %b = pred[] compare(%i, %end), '
            'direction=LT',
            '',
            '0',
            6,
        ),
        (
            f'{COUNTER}  %end = s32[] constant(6)\n  ROOT %b = pred[] compare(%end, %i), '
            'direction=GT',
            '',
            '2',
            4,
        ),
        # The counter is one condition of two: the loop runs at most that often.
        (
            f'{COUNTER}  %end = s32[] constant(6)\n  %b = pred[] compare(%i, %end), direction=LT\n '
            ' ROOT %c2 = pred[] and(%b, %other)',
            '',
            '0',
            6,
        ),
        ('  ROOT %b = pred[] custom(%c)', '', '0', 99),
    ],
)
def test_loops_count_as_often_as_they_run(condition, extra, begin, times):
    entry, of_condition = loop(condition, extra, begin)
    assert sums(entry, of_condition, BODY, open_loops=99) == {'all-reduce': (times, times * ONCE)}


def test_a_condition_inside_a_fusion():
    fused = (
        '%fused (a: s32[], b: s32[]) -> pred[] {\n  %a = s32[] parameter(0)\n  %b = s32[] '
        'parameter(1)\n'
        '  ROOT %lt = pred[] compare(%a, %b), direction=LT\n}'
    )
    entry, condition = loop(
        f'{COUNTER}  %end = s32[] constant(7)\n  ROOT %f = pred[] fusion(%i, %end), kind=kLoop, '
        'calls=%fused'
    )
    assert sums(entry, condition, BODY, fused) == {'all-reduce': (7, 7 * ONCE)}


def test_of_two_branches_the_one_that_sends_more():
    quiet = '%quiet (q: f32[64]) -> f32[64] {\n  ROOT %q = f32[64]{0} parameter(0)\n}'
    loud = '%loud (q: f32[64]) -> f32[64] {\n  %q = f32[64]{0} parameter(0)\n  ROOT %r = f32[64]{0} all-reduce(%q), to_apply=%add\n}'
    entry = f'{PARAMETER}  ROOT %r = f32[64]{{0}} conditional(%k, %p, %p), branch_computations={{%quiet, %loud}}'
    assert sums(entry, quiet, loud) == {'all-reduce': (1, ONCE)}


def test_groups_across_slices_are_told_apart():
    inside = f'{PARAMETER}  ROOT %r = f32[64]{{0}} all-reduce(%p), replica_groups=[2,4]<=[8], to_apply=%add'
    across = f'{PARAMETER}  ROOT %r = f32[64]{{0}} all-reduce(%p), replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add'
    assert [one.across for one in module(inside).collectives(8, slices=2)] == [False]
    assert [one.across for one in module(across).collectives(8, slices=2)] == [True]


def test_ways_to_write_groups_agree():
    wanted = [[0, 4], [1, 5], [2, 6], [3, 7]]
    ways = (
        'replica_groups={{0,4},{1,5},{2,6},{3,7}}',
        'replica_groups=[4,2]<=[2,4]T(1,0)',
        "replica_groups=mesh['a'=2,'b'=4] {'a'}",
        "replica_groups=mesh['x'=8] {'x':(1)2}",
    )
    for text in ways:
        np.testing.assert_array_equal(hlo.replica_groups(text, 8), wanted, err_msg=text)
    np.testing.assert_array_equal(
        hlo.replica_groups("replica_groups=mesh['x'=8] {'x':(4)2}", 8),
        [[0, 1], [2, 3], [4, 5], [6, 7]],
    )


def test_bytes_of_types():
    assert hlo.type_bytes('bf16[8,64,1024]{2,1,0:T(8,128)(2,1)S(1)}') == 2 * 8 * 64 * 1024
    assert (
        hlo.type_bytes('(f32[]{:T(128)}, s8[3,5]{1,0}, pred[7], u4[10], f8e4m3fn[6])')
        == 4 + 15 + 7 + 5 + 6
    )


def test_text_without_a_program():
    with pytest.raises(ValueError, match='no ENTRY'):
        hlo.Module('HloModule nothing')
