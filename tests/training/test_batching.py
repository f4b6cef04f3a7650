"""Batches of rollouts: their forms by hand, on the host and in a program; packing; what cannot be
laid out."""

import functools
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from reasonjax.errors import UserError
from reasonjax.sampling.sampler import Rollout
from reasonjax.training import batching
from reasonjax.training.batching import BatchLayout, Packer, assemble

PROMPTS = {
    'tokens': np.array([[0, 5, 6], [7, 8, 9]]),
    'segments': np.array([[0, 1, 1], [1, 1, 1]]),
    'positions': np.array([[0, 0, 1], [0, 1, 2]]),
}


def rollout(length, C=4, terminated=True, forced=None):
    length = np.asarray(length)
    tokens = np.arange(1, length.size * C + 1).reshape(*length.shape, C)
    alive = np.arange(C) < length[..., None]
    return Rollout(
        tokens * alive,
        -0.1 * tokens * alive,
        1.0 * alive,
        length,
        np.broadcast_to(terminated, length.shape),
        forced,
    )


def random_lengths(P, G, C, seed=0):
    return np.random.default_rng(seed).choice([1, 2, 3, C // 2, C], (P, G))


def test_shared_prompts_by_hand():
    batch = assemble(PROMPTS, rollout([[2, 4], [1, 3]]), np.array([[0.5, -0.5], [1.0, -1.0]]))
    assert batch['tokens'].tolist() == [[1, 2, 0, 0], [5, 6, 7, 8], [9, 0, 0, 0], [13, 14, 15, 0]]
    assert (
        batch['segments'].tolist()
        == batch['weights'].tolist()
        == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]]
    )
    # The prompts' own are 0, 1 and 0, 1, 2.
    assert batch['positions'].tolist() == [[2, 3, 0, 0], [2, 3, 4, 5], [3, 0, 0, 0], [3, 4, 5, 0]]
    assert batch['advantage'].tolist() == [0.5, -0.5, 1.0, -1.0]
    for name, x in PROMPTS.items():
        np.testing.assert_array_equal(batch[f'prompt_{name}'], x)


def test_rows_with_their_prompts_by_hand():
    drawn = rollout([[2, 4], [1, 3]])
    batch = assemble(
        PROMPTS, drawn, np.array([[0.5, -0.5], [1.0, -1.0]]), BatchLayout(share_prompts=False)
    )
    assert batch['tokens'][0].tolist() == [0, 5, 6, 1, 2, 0, 0]
    assert batch['segments'][0].tolist() == [0, 1, 1, 1, 1, 0, 0]
    assert batch['weights'][0].tolist() == [0, 0, 0, 1, 1, 0, 0]
    assert batch['positions'][1].tolist() == [0, 0, 1, 2, 3, 4, 5]
    assert batch['positions'][3].tolist() == [0, 1, 2, 3, 4, 5, 0]
    assert batch['weights'].sum(1).tolist() == [2, 4, 1, 3]
    assert batch['advantage'].tolist() == [0.5, -0.5, 1.0, -1.0]
    np.testing.assert_allclose(batch['logprob_sampled'][1, 3:], drawn.logprob[0, 1])


def test_truncated_rows_can_be_masked():
    drawn = rollout([[2, 4], [1, 4]], terminated=[[True, False], [True, True]])
    for layout in (BatchLayout(), BatchLayout(share_prompts=False)):
        batch = assemble(PROMPTS, drawn, np.zeros((2, 2)), layout, mask_truncated=True)
        assert batch['weights'].sum(1).tolist() == [2, 0, 1, 4]
        assert batch['segments'][1, -4:].tolist() == [1, 1, 1, 1]


def test_minibatches_keep_groups_whole_and_lose_nothing():
    batch = {'tokens': np.arange(8)[:, None], 'advantage': np.arange(8)}
    settings = SimpleNamespace(minibatches=2, num_iterations=3, max_completion_length=7)
    parts = batching.minibatches(batch, settings)
    assert [p['advantage'].tolist() for p in parts] == [[0, 1, 2, 3], [4, 5, 6, 7]] * 3
    assert float(parts[0]['max_completion_length']) == 7


def test_copies_of_prompts_stand_together():
    batch = assemble(PROMPTS, rollout([[2, 4], [1, 3]]), np.zeros((2, 2)), BatchLayout(copies=2))
    assert batch['prompt_tokens'].tolist() == [[0, 5, 6], [0, 5, 6], [7, 8, 9], [7, 8, 9]]
    assert batch['tokens'].shape == (4, 4)


def test_tokens_that_were_put_rather_than_drawn_have_no_weight():
    forced = np.zeros((2, 2, 4), bool)
    forced[0, 1, 2] = True
    batch = assemble(PROMPTS, rollout([[2, 4], [1, 3]], forced=forced), np.zeros((2, 2)))
    assert (
        batch['weights'][1].tolist() == [1, 1, 0, 1]
        and batch['weights'].sum() == 9
        and batch['segments'][1].tolist() == [1] * 4
    )


@pytest.mark.parametrize(
    'layout', [BatchLayout(), BatchLayout(copies=2), BatchLayout(share_prompts=False)]
)
def test_a_program_lays_out_what_the_host_does(layout):
    drawn, advantage = (
        rollout([[2, 4], [1, 3]], terminated=[[True, False], [False, True]]),
        np.array([[0.5, -0.5], [1.0, -1.0]]),
    )
    for mask in (False, True):
        wanted = assemble(PROMPTS, drawn, advantage, layout, mask_truncated=mask)
        found = jax.jit(functools.partial(assemble, layout=layout, mask_truncated=mask))(
            PROMPTS, drawn, advantage
        )
        assert found.keys() == wanted.keys() and wanted['weights'].sum() == (5 if mask else 10)
        for name, x in wanted.items():
            assert isinstance(x, np.ndarray) and found[name].dtype == x.dtype
            np.testing.assert_array_equal(found[name], x, err_msg=name)


def stage(**changes):
    settings = dict(
        num_prompts=8,
        num_generations=6,
        minibatches=1,
        accumulation=1,
        share_prompts=True,
        packing=False,
    )
    return SimpleNamespace(**(settings | changes))


def mesh(**sizes):
    return SimpleNamespace(
        shape=dict.fromkeys(('data', 'fsdp', 'expert', 'sequence', 'tensor'), 1) | sizes
    )


@pytest.mark.parametrize(
    'changes, sizes, copies, shards',
    [
        ({}, {}, 1, 1),
        ({}, dict(data=2, fsdp=2, tensor=4), 1, 4),
        (dict(accumulation=2), dict(data=8), 2, 16),
        (dict(accumulation=4, minibatches=2), dict(fsdp=2), 2, 16),
        (dict(num_prompts=1), dict(expert=3), 3, 3),
        (dict(num_prompts=3), dict(data=2, fsdp=9), 6, 18),
    ],
)
def test_prompts_are_copied_no_oftener_than_devices_and_micro_batches_need(
    changes, sizes, copies, shards
):
    assert batching.layout_of(stage(**changes), mesh(**sizes), 'grpo') == BatchLayout(
        True, copies, False, shards
    )


@pytest.mark.parametrize(
    'changes, sizes, said',
    [
        (
            {},
            dict(sequence=2),
            'config.grpo.share_prompts=True: mesh.sequence=2 splits .*Set grpo.share_prompts=False',
        ),
        (
            dict(share_prompts=False, packing=True),
            {},
            'config.grpo.packing=True: .*set share_prompts=True',
        ),
        ({}, dict(data=5), 'config.grpo: 8 prompts x 6 completions .*do not divide over 5'),
    ],
)
def test_forms_that_cannot_be(changes, sizes, said):
    with pytest.raises(UserError, match=said):
        batching.layout_of(stage(**changes), mesh(**sizes), 'grpo')


def test_rows_of_their_own_go_on_any_mesh():
    assert batching.layout_of(stage(share_prompts=False), mesh(sequence=4), 'grpo') == BatchLayout(
        share_prompts=False
    )


SIZES = [(4, 3, 20, 1, 1), (4, 3, 20, 2, 1), (4, 4, 40, 8, 2), (1, 1, 1, 1, 1), (2, 8, 33, 2, 1)]


@pytest.mark.parametrize('P, G, C, shards, copies', SIZES)
def test_every_token_has_one_place(P, G, C, shards, copies):
    length = random_lengths(P, G, C).reshape(-1) % (C + 1)
    source, places = batching.packed(length, C, shards, P * copies)
    S, n, L = source.shape
    R, group = P * G // shards, G // copies
    assert S == shards and n <= R and L <= C
    for s in range(S):
        for i, l in np.argwhere(source[s] >= 0):
            row, token = divmod(source[s, i, l], C)
            assert places[s * R + row, token] == i * L + l and token < length[s * R + row]
    assert np.array_equal(places >= 0, np.arange(C) < length[:, None])
    assert (source >= 0).sum() == length.sum()
    for one in source.reshape(-1, L):
        rows = one[one >= 0] // C
        # Of one prompt, each completion whole and in order, nothing in between.
        assert len(set(rows // group)) <= 1 and np.all(
            np.diff(one[: len(rows)])[np.diff(rows) == 0] == 1
        )


def test_bins_are_filled_best_first():
    assert batching.best_fit(np.array([2, 9, 3, 7, 1, 0]), 10) == [[1, 4], [3, 2], [0]]
    assert batching.best_fit(np.array([0, 0]), 10) == []
    rng = np.random.default_rng(0)
    for _ in range(20):
        lengths = rng.integers(1, 50, rng.integers(1, 30))
        found = batching.best_fit(lengths, 50)
        assert (
            sorted(sum(found, [])) == list(range(len(lengths)))
            and max(lengths[one].sum() for one in found) <= 50
        )
        # No two bins would fit into one.
        loads = sorted(lengths[one].sum() for one in found)
        assert len(loads) < 2 or loads[0] + loads[1] > 50


def test_shapes_are_few():
    assert [batching.rounded_up(n) for n in (1, 4, 8, 9, 11, 13, 16, 100)] == [
        1,
        4,
        8,
        10,
        12,
        15,
        18,
        121,
    ]
    assert all(n <= batching.rounded_up(n) <= max(n, 1.25 * n) for n in range(1, 3000))
    assert len({batching.rounded_up(n) for n in range(1, 3000)}) < 40
    assert [batching.bin_length(longest, 256) for longest in (256, 129, 128, 40, 3)] == [
        256,
        256,
        128,
        64,
        16,
    ]
    assert batching.bin_length(30, 100) == 50 and batching.bin_length(1, 4) == 4


def test_a_long_tail_is_packed_and_measured():
    C = 256
    length = np.full((4, 8), 32)
    length[[0, 0, 1, 2, 3, 3], [1, 5, 2, 0, 3, 4]] = 256
    pack = Packer(BatchLayout(packing=True))
    prompts = {name: np.repeat(x, 2, axis=0) for name, x in PROMPTS.items()}
    batch, metrics = pack(
        assemble(prompts, rollout(length, C), np.zeros((4, 8)), BatchLayout(packing=True))
    )
    # 26 short ones go into a bin a prompt, 6 long ones into one each.
    assert batch['packed_from'].shape == (1, 10, 256) and batch['packed_at'].shape == (32, 256)
    assert metrics == {
        'packing/fill': (26 * 32 + 6 * 256) / 2560,
        'packing/bins': 10.0,
        'packing/length': 256.0,
        'packing/shapes': 1.0,
    }
    _, metrics = pack(
        assemble(
            prompts, rollout(np.full((4, 8), 32), C), np.zeros((4, 8)), BatchLayout(packing=True)
        )
    )
    assert (
        metrics['packing/shapes'] == 2
        and metrics['packing/length'] == 32
        and metrics['packing/fill'] == 1
    )
    plain = assemble(PROMPTS, rollout([[2, 4], [1, 3]]), np.zeros((2, 2)))
    assert Packer(BatchLayout())(plain) == (plain, {})


def test_minibatches_are_packed_apart():
    layout, lengths = BatchLayout(packing=True, shards=4), random_lengths(4, 6, 20)
    prompts = {name: np.repeat(x, 2, axis=0) for name, x in PROMPTS.items()}
    batch, _ = Packer(layout)(assemble(prompts, rollout(lengths, 20), np.zeros((4, 6)), layout))
    settings = SimpleNamespace(minibatches=2, num_iterations=3, max_completion_length=20)
    parts = batching.minibatches(batch, settings)
    assert len(parts) == 6 and parts[0] is not parts[1] and parts[2]['tokens'] is parts[0]['tokens']
    for i, part in enumerate(parts[:2]):
        rows = slice(12 * i, 12 * (i + 1))
        source, places = batching.packed(lengths.reshape(-1)[rows], 20, 2, 2)
        np.testing.assert_array_equal(part['tokens'], batch['tokens'][rows])
        np.testing.assert_array_equal(
            part['prompt_tokens'], batch['prompt_tokens'][2 * i : 2 * i + 2]
        )
        np.testing.assert_array_equal(part['packed_at'], places)
        # The number of bins is that of the fullest shard of the whole step.
        np.testing.assert_array_equal(part['packed_from'][:, : source.shape[1]], source)
        assert np.all(part['packed_from'][:, source.shape[1] :] == -1)
