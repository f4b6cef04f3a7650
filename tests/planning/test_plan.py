"""Plans for eight simulated devices, made in a process of their own, against arithmetic by hand."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
F32 = 4
# configs/models/tiny.py, a layer less, with the vocabulary of addition; rows of 10 + 30 tokens, 32
# prompts x 8 completions.
D, L, H, F, V = 96, 2, 96, 384, 18
ROWS, TOKENS = 256, 40
PROMPTS, PROMPT, OWN = 32, 10, 30
MATRICES = {'q': D * H, 'k': D * H, 'v': D * H, 'o': H * D, 'up': D * F, 'down': F * D}
COUNT = L * (sum(MATRICES.values()) + 2 * D) + 2 * V * D + D


@pytest.fixture(scope='module')
def eight(tmp_path_factory):
    out = tmp_path_factory.mktemp('plan') / 'plan.json'
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)}
    command = [sys.executable, str(HERE / 'planned_devices.py'), str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def test_collectives_in_a_compiled_loop(eight):
    shard = 100 * F32
    assert eight['looped'] == {
        'all-gather': {'times': 5, 'bytes': 5 * 7 * shard},
        # In the loop and once after it.
        'all-reduce': {'times': 6, 'bytes': 6 * 2 * 7 / 8 * shard},
        'collective-permute': {'times': 5, 'bytes': 5 * shard},
    }


def test_parameters_move_between_meshes_at_the_least_cost(eight):
    # q, k, v, o, three of the MLP, and the embedding; each device gathers the 3 of 4 parts of its
    # half that it has not. On CPU bfloat16 travels as float32.
    matrices = F32 * (2 * (4 * 32 * 32 + 3 * 32 * 64) + 64 * 32)
    assert eight['moved']['all-gather']['bytes'] == pytest.approx(3 / 8 * matrices, rel=0.02)
    assert set(eight['moved']) <= {'all-gather', 'all-to-all', 'collective-permute'}
    assert sum(x['bytes'] for x in eight['moved'].values()) < 0.5 * matrices


def test_every_program_of_a_stage_is_planned(eight):
    for case, names in {
        'grpo': ('train', 'score', 'prefill', 'decode', 'iteration'),
        'sft': ('train', 'score'),
    }.items():
        found = eight['planned'][case]
        assert tuple(found['programs']) == names
        assert found['fits'] and found['mesh'] == {
            'data': 2,
            'fsdp': 2,
            'expert': 1,
            'sequence': 1,
            'tensor': 2,
        }
        for one in found['programs'].values():
            assert (
                one['seconds'] > 0
                and one['peak'] > 0
                and one['sent'] > 0
                and one['sent_across'] == 0
            )
            assert sum(x['bytes'] for x in one['collectives'].values()) == pytest.approx(
                one['sent']
            )
            assert one['largest'][0]['bytes'] == max(x['bytes'] for x in one['largest'])
            # Simulated devices have no peaks to bound anything by.
            assert one['time'] is None and one['mfu'] is None and one['limit'] is None


def shares(split):
    """Bytes of the parameters on a device: matrices over fsdp and tensor, the vocabulary over
    tensor where it divides; vectors whole."""
    matrices = L * sum(MATRICES.values()) / split
    return F32 * (matrices + 2 * V * D / split + L * 2 * D + D)


def test_memory_by_kind(eight):
    memory = eight['planned']['grpo']['programs']['train']['memory']
    assert eight['planned']['grpo']['model'] == {'parameters': COUNT, 'trainable': COUNT}
    assert memory['incoming'] == 0
    assert (
        memory['parameters']
        == shares(4)
        == sum(size for _, size, _ in eight['planned']['grpo']['shards'])
    )
    # Two moments, and the counters of Adam and of the schedule.
    assert 0 < memory['optimiser'] - 2 * shares(4) <= 16
    # tokens, segments, positions, weights, logprob_sampled; advantage; the prompts' three; a
    # scalar. Rows over data x fsdp.
    assert memory['batch'] == (5 * ROWS * OWN + ROWS + 3 * PROMPTS * PROMPT) * F32 / 4 + F32
    assert memory['cache'] == 0 and memory['temporaries'] > 0
    decode = eight['planned']['grpo']['programs']['decode']['memory']
    per_token = 2 * L * H * F32 / 2  # keys and values, heads over tensor
    assert decode['cache'] == 32 / 4 * 10 * per_token
    assert decode['of_which_cache'] == ROWS / 4 * 30 * per_token <= decode['temporaries']
    for one in eight['planned']['grpo']['programs'].values():
        kinds = {
            name: size
            for name, size in one['memory'].items()
            if name not in ('of_which_cache', 'code')
        }
        assert one['peak'] == pytest.approx(sum(kinds.values()), rel=0.01)
        assert (
            one['memory']['optimiser'] == memory['optimiser']
            and one['memory']['incoming'] == memory['incoming']
        )


def test_arithmetic_by_program(eight):
    programs = {name: one['flops'] for name, one in eight['planned']['grpo']['programs'].items()}
    multiplied = L * sum(MATRICES.values()) + V * D
    # Each prompt is read once, completions see it and themselves, and only they meet the head.
    layers, read = 2 * L * sum(MATRICES.values()), PROMPTS * PROMPT + ROWS * OWN
    attention = 4 * L * H * (PROMPT * PROMPTS * PROMPT + TOKENS * ROWS * OWN)
    assert programs['score'] == layers * read + attention + 2 * V * D * ROWS * OWN
    # The block is computed again, but for its last product, and the scores once more.
    again = (layers - 2 * L * MATRICES['down']) * read + attention * 3 / 2
    assert programs['train'] == 3 * programs['score'] + again
    assert programs['prefill'] == (2 * (multiplied - V * D) + 4 * L * H * 10) * 32 * 10
    assert programs['decode'] == (2 * multiplied + 4 * L * H * (10 + 30)) * ROWS * 30
    assert programs['iteration'] == programs['train'] + programs['prefill'] + programs['decode']
    sft = eight['planned']['sft']
    assert sft['stage'] == {'name': 'train', 'rows': 96, 'tokens_per_row': 40, 'accumulation': 2}
    of_row = 2 * multiplied + 4 * L * H * TOKENS
    again = 2 * L * (sum(MATRICES.values()) - MATRICES['down']) + 6 * L * H * TOKENS
    assert sft['programs']['train']['flops'] == (3 * of_row + again) * 96 * TOKENS


def test_a_reference_is_counted_once(eight):
    plain, kl, lora = (eight['planned'][name]['programs'] for name in ('grpo', 'kl', 'lora'))
    # Two updates on half the rows each, and the reference is scored in between.
    assert kl['train']['flops'] == plain['train']['flops'] / 2
    assert kl['iteration']['flops'] == pytest.approx(
        plain['iteration']['flops'] + plain['score']['flops']
    )
    assert (
        kl['train']['memory']['batch']
        == (7 * ROWS * OWN + ROWS + 3 * PROMPTS * PROMPT) / 2 * F32 / 4 + F32
    )
    assert plain['iteration']['memory']['incoming'] == 0
    assert kl['iteration']['memory']['incoming'] == kl['train']['memory']['incoming'] == shares(4)
    # Under an adapter the reference is the frozen base.
    pairs = eight['planned']['lora']['model']['trainable']
    assert pairs == L * sum(8 * (a + b) for a, b in [(D, H)] * 3 + [(H, D), (D, F), (F, D)])
    assert lora['train']['memory']['incoming'] == 0
    assert lora['train']['memory']['optimiser'] < 0.3 * plain['train']['memory']['optimiser']


def test_another_mesh_for_sampling(eight):
    plain, kl = (eight['planned'][name]['programs']['decode'] for name in ('grpo', 'kl'))
    # Rows over eight devices instead of four, heads whole instead of over two: as much cache; but
    # twice the weights are read.
    assert kl['memory']['of_which_cache'] == plain['memory']['of_which_cache']
    assert kl['memory_traffic'] > plain['memory_traffic']
    assert kl['flops'] == plain['flops']


def test_a_quarter_of_the_prompts_at_once(eight):
    plain, parts = (eight['planned'][name]['programs'] for name in ('grpo', 'parts'))
    for name in ('prefill', 'decode'):
        assert (
            parts[name]['flops'] == plain[name]['flops'] / 4
            and parts[name]['tokens'] == plain[name]['tokens'] / 4
        )
    assert (
        parts['decode']['memory']['of_which_cache']
        == plain['decode']['memory']['of_which_cache'] / 4
    )
