"""Rotary frequencies against transformers' own functions, and scalings that scale nothing."""

import numpy as np
import pytest
import toys

from reasonjax import config_names
from reasonjax.errors import UserError
from reasonjax.model import rope, rotary

transformers = pytest.importorskip('transformers')
pytest.importorskip('torch')

YARN = dict(factor=8.0, original_max_position_embeddings=64)
LONG = dict(
    short_factor=(1.0, 1.1, 1.4, 2.0),
    long_factor=(2.0, 3.5, 6.0, 9.0),
    original_max_position_embeddings=32,
)
# Name of the function, base, width of a head, its knobs, transformers' max_position_embeddings.
CASES = {
    'none': ('none', 1e4, 8, {}, 64),
    'linear': ('linear', 5e5, 16, dict(factor=3.0), 64),
    'dynamic_within': (
        'dynamic',
        1e4,
        16,
        dict(factor=4.0, original_max_position_embeddings=64, length=64),
        64,
    ),
    'dynamic_beyond': (
        'dynamic',
        1e4,
        16,
        dict(factor=4.0, original_max_position_embeddings=64, length=65),
        64,
    ),
    'dynamic_far': (
        'dynamic',
        5e5,
        10,
        dict(factor=1.7, original_max_position_embeddings=64, length=4000),
        64,
    ),
    'llama3': (
        'llama3',
        5e5,
        64,
        dict(
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
        131072,
    ),
    'llama3_knobs': (
        'llama3',
        1e4,
        32,
        dict(
            factor=32.0,
            low_freq_factor=0.5,
            high_freq_factor=6.0,
            original_max_position_embeddings=128,
        ),
        4096,
    ),
    'yarn': ('yarn', 1e6, 64, dict(factor=4.0, original_max_position_embeddings=32768), 131072),
    'yarn_ends': ('yarn', 1e4, 32, dict(YARN, beta_fast=4.0, beta_slow=0.5), 512),
    'yarn_attention': ('yarn', 1e4, 32, dict(YARN, attention_factor=0.8), 512),
    'yarn_mscale': ('yarn', 1e4, 32, dict(YARN, mscale=0.7, mscale_all_dim=1.3), 512),
    'yarn_one_mscale': ('yarn', 1e4, 32, dict(YARN, mscale=0.7), 512),
    'yarn_whole_ramp': ('yarn', 1e4, 32, dict(YARN, truncate=False), 512),
    'yarn_step': ('yarn', 1e4, 32, dict(YARN, beta_fast=2.0, beta_slow=2.0, truncate=False), 512),
    'longrope_short': ('longrope', 1e4, 8, dict(LONG, factor=4.0, length=32), 128),
    'longrope_long': ('longrope', 1e4, 8, dict(LONG, factor=4.0, length=33), 128),
    'longrope_attention': (
        'longrope',
        1e4,
        8,
        dict(LONG, factor=4.0, attention_factor=1.25, length=128),
        128,
    ),
    'longrope_no_factor': ('longrope', 1e4, 8, dict(LONG, factor=0.5), 16),
}


def theirs(name, theta, width, knobs, positions):
    """Frequencies and factor as transformers computes them from a config."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if name == 'none':
        rotary_class = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding
        function = rotary_class.compute_default_rope_parameters
    else:
        function = ROPE_INIT_FUNCTIONS[name]
    length = knobs.get('length')
    parameters = {
        k: list(v) if isinstance(v, tuple) else v for k, v in knobs.items() if k != 'length'
    }
    config = transformers.LlamaConfig(
        hidden_size=4 * width,
        num_attention_heads=4,
        head_dim=width,
        max_position_embeddings=positions,
        rope_parameters={'rope_type': 'default' if name == 'none' else name, 'rope_theta': theta}
        | parameters,
    )
    frequencies, factor = function(config, device='cpu', seq_len=length)
    return frequencies.double().numpy(), factor


@pytest.mark.parametrize('case', CASES)
def test_equals_transformers(case):
    name, theta, width, knobs, _ = CASES[case]
    frequencies, factor = getattr(rope, name)(theta, width, **knobs)
    wanted, wanted_factor = theirs(*CASES[case])
    assert frequencies.dtype == np.float64 and frequencies.shape == (width // 2,)
    # Theirs are float32 powers.
    np.testing.assert_allclose(frequencies, wanted, rtol=3e-6, atol=1e-7)
    np.testing.assert_allclose(factor, wanted_factor, rtol=1e-6)
    assert (factor != 1) == (
        case.startswith('yarn') or case in ('longrope_short', 'longrope_long', 'longrope_attention')
    )


def test_the_cases_tell_scalings_apart():
    """Each of them scales something, but for those that should not."""
    for case, (name, theta, width, knobs, _) in CASES.items():
        plain = np.array_equal(
            getattr(rope, name)(theta, width, **knobs)[0], rope.none(theta, width)[0]
        )
        assert plain == (case in ('none', 'dynamic_within')), case
    assert {name for name, *_ in CASES.values()} == set(config_names.functions(rope))


NEUTRAL = {
    'linear': dict(factor=1.0),
    'dynamic': dict(factor=3.3, original_max_position_embeddings=48, length=48),
    'dynamic_short': dict(factor=1.1, original_max_position_embeddings=100, length=7),
    'dynamic_factor': dict(factor=1.0, original_max_position_embeddings=48, length=48),
    'llama3': dict(factor=1.0, original_max_position_embeddings=128),
    'yarn': dict(factor=1.0, original_max_position_embeddings=128),
    'longrope': dict(
        short_factor=(1.0,) * 12,
        long_factor=(1.0,) * 12,
        original_max_position_embeddings=16,
        length=64,
    ),
}


@pytest.mark.parametrize('case', NEUTRAL)
@pytest.mark.parametrize('theta', [1e4, 5e5])
def test_neutral_values_scale_nothing(case, theta):
    frequencies, factor = getattr(rope, case.partition('_')[0])(theta, 24, **NEUTRAL[case])
    assert factor == 1
    np.testing.assert_allclose(frequencies, rope.none(theta, 24)[0], rtol=1e-15)


def test_dynamic_changes_nothing_up_to_the_original_length():
    wanted = rope.none(1e4, 16)[0]
    for factor in np.random.default_rng(0).uniform(1, 40, 200):
        got = rope.dynamic(
            1e4, 16, factor=float(factor), original_max_position_embeddings=77, length=50
        )[0]
        np.testing.assert_array_equal(got, wanted)


def test_longrope_counts_its_divisors():
    with pytest.raises(
        UserError,
        match='config.model.rope_scaling: longrope has 4 divisors; heads with 12 rotated need 6',
    ):
        rope.longrope(1e4, 12, **LONG)
    with pytest.raises(UserError, match='longrope has 3 divisors'):
        rope.longrope(1e4, 8, **LONG | {'long_factor': (1.0,) * 3, 'length': 64})


def test_tables_of_a_model():
    """What each kind of layer turns by: its own base, the scaled one, or not at all."""
    config = toys.changed(
        layers=5,
        head_dim=8,
        window=4,
        rope_theta=1e6,
        rope_local_theta=100.0,
        rope_fraction=0.5,
        attention_pattern=('local', 'global', 'local_nope', 'global_nope', 'local'),
        rope_scaling=(('name', 'linear'), ('factor', 4.0)),
    )
    assert config.rope_of_layer == (
        'local',
        'global',
        'nope',
        'nope',
        'local',
    ) and config.rope_tables == ('local', 'global', 'nope')
    assert config.local == (True, False, True, False, True)
    positions = np.array([[0, 3, 7]])
    rotation = rotary.rotations(config, positions)
    assert rotation.cos.shape == rotation.sin.shape == (3, 1, 3, 1, 2)
    exact = np.array([[1, 0.1], [1 / 4, 1e-3 / 4], [0, 0]])
    angle = positions[0][None, :, None] * exact[:, None]
    np.testing.assert_allclose(rotation.cos[:, 0, :, 0], np.cos(angle), atol=1e-6)
    np.testing.assert_allclose(rotation.sin[:, 0, :, 0], np.sin(angle), atol=1e-6)
    # Layers that share the global table where there is no base of their own.
    assert toys.changed(window=4, attention_pattern=('local', 'global')).rope_tables == ('global',)


def test_rotation_turns_the_front_of_a_head_and_leaves_the_rest():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 4, 10)).astype(np.float32)
    angle = rng.uniform(0, 6, (2, 3, 1, 3))
    got = rotary.rotate(
        x, rotary.Rotation(np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32))
    )
    as_complex = (x[..., :3] + 1j * x[..., 3:6]) * np.exp(1j * angle)
    np.testing.assert_allclose(got[..., :3], as_complex.real, atol=1e-6)
    np.testing.assert_allclose(got[..., 3:6], as_complex.imag, atol=1e-6)
    np.testing.assert_array_equal(got[..., 6:], x[..., 6:])
    still = rotary.rotate(
        x, rotary.Rotation(np.ones((2, 3, 1, 5), np.float32), np.zeros((2, 3, 1, 5), np.float32))
    )
    np.testing.assert_array_equal(still, x)
