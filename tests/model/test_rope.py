"""Frequencies of RoPE: those of transformers, and which of them follow the length of a sequence."""

from __future__ import annotations

import math

import pytest
import torch

from reallm.model.config import RopeConfig
from reallm.model.packed import PackedSequences
from reallm.model.rope import attention_factor, inverse_frequencies, keys_are_stale, rotations
from tests.helpers.tiny_config import TINY

SHORT, LONG = (1.0, 1.1, 1.2, 1.3), (1.0, 3.0, 6.0, 9.0)
LONGROPE = RopeConfig("longrope", original_max_positions=9, short_factor=SHORT, long_factor=LONG)
DYNAMIC = RopeConfig("dynamic", factor=2.0)
KINDS = {
    "default": RopeConfig(theta=500.0),
    "linear": RopeConfig("linear", factor=3.0),
    "dynamic": DYNAMIC,
    "llama3": RopeConfig("llama3", factor=8.0, original_max_positions=8, low_freq_factor=1.0, high_freq_factor=4.0),
    "yarn": RopeConfig("yarn", factor=4.0, original_max_positions=8),
    "yarn with its own factor": RopeConfig("yarn", factor=4.0, original_max_positions=8, attention_factor=1.7),
    "longrope": LONGROPE,
    "longrope with a factor": RopeConfig(
        "longrope", factor=5.0, original_max_positions=9, short_factor=SHORT, long_factor=LONG
    ),
    "some dims": RopeConfig("linear", factor=3.0, rotary_dim=4),
    "some dims, longrope": RopeConfig(
        "longrope", original_max_positions=9, short_factor=SHORT[:2], long_factor=LONG[:2], rotary_dim=4
    ),
}


def config_with(*ropes):
    return TINY.replace(n_layers=len(ropes), max_positions=16, rope=ropes)


def of_transformers(rope, length):
    """Frequencies and factor as transformers computes them for sequences of `length` tokens."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    names = {"original_max_positions": "original_max_position_embeddings", "theta": "rope_theta", "kind": "rope_type"}
    parameters = {names.get(name, name): value for name, value in vars(rope).items() if value is not None}
    parameters["partial_rotary_factor"] = parameters.pop("rotary_dim", 8) / 8
    config = LlamaConfig(
        hidden_size=32, num_attention_heads=4, head_dim=8, max_position_embeddings=16, rope_parameters=parameters
    )
    if rope.kind == "default":
        return 1.0 / rope.theta ** (torch.arange(0, 8, 2).float() / 8), 1.0
    return ROPE_INIT_FUNCTIONS[rope.kind](config, "cpu", seq_len=length)


@pytest.mark.parametrize("length", [5, 9, 10, 16, 17, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_frequencies_are_those_of_transformers_at_any_length(kind, length):
    rope = KINDS[kind]
    config = config_with(rope)
    expected, factor = of_transformers(rope, length)
    (rotation,) = rotations(config, PackedSequences.from_lengths([length]), torch.float32)
    angles = torch.arange(length)[:, None].float() * expected
    torch.testing.assert_close(rotation.cos[:, 0, : angles.shape[1]], angles.cos() * factor, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(rotation.sin[:, 0, : angles.shape[1]], angles.sin() * factor, rtol=1e-5, atol=1e-6)


def test_each_sequence_of_a_pack_has_the_frequencies_of_its_own_length():
    config, lengths = config_with(LONGROPE, DYNAMIC), [9, 10, 17, 3]
    packed = rotations(config, PackedSequences.from_lengths(lengths), torch.float32)
    assert len(packed) == 2
    for place, together in enumerate(packed):
        alone = [rotations(config, PackedSequences.from_lengths([length]), torch.float32)[place] for length in lengths]
        assert torch.equal(together.cos, torch.cat([rotation.cos for rotation in alone]))
        assert torch.equal(together.sin, torch.cat([rotation.sin for rotation in alone]))


def test_longrope_switches_once_and_dynamic_goes_on():
    longrope, dynamic = config_with(LONGROPE), config_with(DYNAMIC)
    assert torch.equal(
        inverse_frequencies(longrope, LONGROPE), 1 / (torch.tensor(SHORT) * 10000 ** (torch.arange(4) / 4))
    )
    assert not torch.equal(inverse_frequencies(dynamic, DYNAMIC, length=17), inverse_frequencies(dynamic, DYNAMIC))
    assert not torch.equal(
        inverse_frequencies(dynamic, DYNAMIC, length=17), inverse_frequencies(dynamic, DYNAMIC, length=18)
    )


@pytest.mark.parametrize(
    ("ropes", "past", "totals", "stale"),
    [
        # 9 is the last length of longrope's short factors, 16 the last that dynamic leaves alone
        ([LONGROPE], [8], [9], False),
        ([LONGROPE], [9], [10], True),
        ([LONGROPE], [10], [11], False),
        ([LONGROPE], [3, 9], [4, 10], True),
        ([LONGROPE], [0], [12], False),
        ([DYNAMIC], [15], [16], False),
        ([DYNAMIC], [16], [17], True),
        ([DYNAMIC], [17], [18], True),
        ([DYNAMIC], [17], [17], False),
        ([RopeConfig(), None, DYNAMIC], [17], [18], True),
        ([RopeConfig(), None], [17], [40], False),
        ([None], [17], [40], False),
    ],
)
def test_keys_are_stale_where_a_sequence_grows_past_what_its_frequencies_are_for(ropes, past, totals, stale):
    assert keys_are_stale(config_with(*ropes), past, totals) is stale


def test_the_factor_of_longrope_follows_from_the_lengths_or_is_given():
    assert attention_factor(config_with(LONGROPE), LONGROPE) == math.sqrt(1 + math.log(16 / 9) / math.log(9))
    given = RopeConfig("longrope", original_max_positions=9, short_factor=SHORT, long_factor=LONG, attention_factor=1.5)
    assert attention_factor(config_with(given), given) == 1.5


def test_neighbouring_dims_have_the_same_angle_where_they_form_a_pair():
    config = config_with(RopeConfig(interleaved=True), RopeConfig())
    pairs, halves = rotations(config, PackedSequences.from_lengths([7]), torch.float32)
    assert pairs.interleaved
    assert torch.equal(pairs.cos[..., 0::2], pairs.cos[..., 1::2])
    assert torch.equal(pairs.cos[..., 0::2], halves.cos[..., :4])
