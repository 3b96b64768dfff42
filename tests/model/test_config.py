"""The configuration of a model: what cannot be is refused by name, and what holds for some blocks for each."""

from __future__ import annotations

import pickle

import pytest

from reallm.errors import ConfigError
from reallm.model.config import Extra, MoEConfig, ReaLModelConfig, RopeConfig

BASE = ReaLModelConfig(
    n_layers=3, hidden_size=32, n_q_heads=4, n_kv_heads=2, head_dim=8, intermediate_size=48, vocab_size=50,
    max_positions=64,
)  # fmt: skip
LONGROPE = {"original_max_positions": 16, "short_factor": (1.0,) * 4, "long_factor": (2.0,) * 4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layers": 0}, "n_layers=0 must be a whole number of at least 1"),
        ({"n_kv_heads": 3}, "n_q_heads=4 must be a multiple of n_kv_heads=3"),
        ({"head_dim": 7}, "head_dim=7 must be even"),
        ({"norm": "rsm"}, "norm='rsm' is not one of rms, layer; did you mean 'rms'.*'package.module:Class'"),
        ({"mlp": "moe"}, "mlp='moe' is not one of gated, plain"),
        ({"attention": "flash"}, "attention='flash' is not one of standard; .* is written 'package.module:Class'"),
        ({"block": "parallel"}, "block='parallel' is not one of standard"),
        ({"activation": "swiglu"}, "activation='swiglu' is not one of silu"),
        ({"norm_placement": "before"}, "norm_placement='before' is not one of pre, branch, sandwich, post"),
        ({"qk_norm": "heads"}, "qk_norm='heads' is not one of head, per_head, whole; did you mean 'head'"),
        ({"sliding_window": (1, 2)}, "sliding_window has 2 entries for n_layers=3; give one for each block"),
        ({"rope": (None,) * 4}, "rope has 4 entries for n_layers=3; give one for each block"),
        ({"attn_scale": (1.0,)}, "attn_scale has 1 entries for n_layers=3; give one for each block"),
        ({"sliding_window": 0}, "sliding_window=0 must be at least 1"),
        ({"attn_scale": (1.0, 0.0, 1.0)}, r"attn_scale=0\.0 must be greater than 0"),
        ({"attn_dropout": 1.0}, r"attn_dropout=1\.0 must be at least 0 and less than 1"),
        ({"qkv_clip": 0.0}, r"qkv_clip=0\.0 must be greater than 0"),
        ({"position_offset": -1, "learned_positions": True}, "position_offset=-1 must be at least 0"),
        ({"hiden_size": 3}, "has no field 'hiden_size'; did you mean 'hidden_size'"),
        # a field that needs another
        ({"shared_norm": True}, "shared_norm=True has no meaning without parallel_residual=True"),
        (
            {"parallel_residual": True, "norm_placement": "post"},
            "parallel_residual=True has no meaning without norm_placement='pre'",
        ),
        ({"position_offset": 2}, "position_offset=2 has no meaning without learned_positions=True"),
        ({"norm_offset": 1.0, "norm_weight": False}, r"norm_offset=1\.0 has no meaning without norm_weight=True"),
        ({"gate_bias": True, "mlp": "plain"}, "gate_bias has no meaning for mlp='plain'"),
        ({"qk_norm_bias": True}, "qk_norm_bias=True has no meaning without qk_norm"),
        ({"qk_norm": "per_head", "norm_weight": False}, "qk_norm='per_head' needs norm_weight=True"),
        (
            {"qk_norm": "per_head", "norm": "my:Norm"},
            "qk_norm='per_head' works with norm rms or layer, not .*'my:Norm'",
        ),
        ({"moe": MoEConfig(4, 2, 24, layers=(1, 3))}, r"moe\.layers=\(1, 3\) names a block beyond n_layers=3"),
        # RoPE and the head
        ({"rope": RopeConfig(rotary_dim=10)}, r"rope\.rotary_dim=10 must be at most head_dim=8"),
        (
            {"rope": RopeConfig("longrope", rotary_dim=4, **LONGROPE)},
            r"rope\.short_factor has 4 entries; it needs 2, one for each rotated pair",
        ),
        (
            {"rope": (None, RopeConfig("longrope", **{**LONGROPE, "long_factor": (1.0,)}), None)},
            r"rope\.long_factor has 1 entries; it needs 4, one for each rotated pair",
        ),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        BASE.replace(**changes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"factor": 2.0}, r"rope\.factor=2\.0 has no meaning for rope\.kind='default'"),
        ({"kind": "llama3", "factor": 8.0, "original_max_positions": 64}, r"rope\.low_freq_factor is required"),
        ({"kind": "longrope"}, r"rope\.original_max_positions is required for rope\.kind='longrope'"),
        (
            {"kind": "longrope", "original_max_positions": 8},
            r"rope\.short_factor is required for rope\.kind='longrope'",
        ),
        ({"kind": "yarn", **LONGROPE}, r"rope\.short_factor=\(1\.0.* has no meaning for rope\.kind='yarn'"),
        ({"kind": "linaer", "factor": 2.0}, r"rope\.kind='linaer' is not one of .*; did you mean 'linear'"),
        ({"kind": "linear", "factor": 0.5}, r"rope\.factor=0\.5 must be at least 1"),
        ({"theta": 0.0}, r"rope\.theta=0\.0 must be greater than 0"),
        ({"rotary_dim": 5}, r"rope\.rotary_dim=5 must be even: RoPE rotates pairs"),
        ({"rotary_dim": 0}, r"rope\.rotary_dim=0 must be a whole number of at least 1"),
    ],
)
def test_a_rope_that_cannot_be_is_refused_by_name(fields, message):
    with pytest.raises(ConfigError, match=message):
        RopeConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 5}, r"moe\.top_k=5 must be at most moe\.n_experts=4"),
        ({"n_experts": 0}, r"moe\.n_experts=0 must be a whole number of at least 1"),
        ({"aux_loss_coef": -0.1}, r"moe\.aux_loss_coef=-0\.1 must be at least 0"),
        ({"jitter": 1.0}, r"moe\.jitter=1\.0 must be at least 0 and less than 1"),
        ({"layers": (2, 1)}, r"moe\.layers=\(2, 1\) must be block numbers from 0, ascending, each once"),
        ({"layers": (-1, 1)}, r"moe\.layers=\(-1, 1\) must be block numbers from 0"),
    ],
)
def test_experts_that_cannot_be_are_refused_by_name(fields, message):
    with pytest.raises(ConfigError, match=message):
        MoEConfig(**{"n_experts": 4, "top_k": 2, "intermediate_size": 24, **fields})


def test_a_critic_may_have_what_only_logits_need():
    config = BASE.replace(is_critic=True, logit_softcap=30.0, head_bias=True, tied_embeddings=True)
    assert not config.head_has_bias
    assert not config.head_is_tied


def test_what_holds_for_all_blocks_is_told_for_each():
    rope = RopeConfig(theta=5.0)
    one = BASE.replace(rope=rope, sliding_window=7, moe=MoEConfig(4, 2, 24))
    assert one.ropes == (rope,) * 3
    assert one.distinct_ropes == (rope,)
    assert one.windows == (7, 7, 7)
    assert one.attn_scales == (8**-0.5,) * 3
    assert one.expert_blocks == (0, 1, 2)
    other = RopeConfig(theta=6.0)
    each = BASE.replace(rope=(other, None, rope), attn_scale=(1.0, 2.0, 3.0), moe=MoEConfig(4, 2, 24, layers=(2,)))
    assert each.distinct_ropes == (other, rope)
    assert each.attn_scales == (1.0, 2.0, 3.0)
    assert each.expert_blocks == (2,)
    assert BASE.expert_blocks == ()


def test_some_of_the_blocks_keep_what_is_theirs():
    ropes, moe = (RopeConfig(theta=5.0), None, RopeConfig(theta=6.0)), MoEConfig(4, 2, 24, layers=(0, 2))
    config = BASE.replace(rope=ropes, sliding_window=(1, None, 3), attn_scale=(1.0, 2.0, 3.0), moe=moe)
    part = config.with_blocks(2, 1, 2)
    assert part.rope == (ropes[2], None, ropes[2])
    assert part.sliding_window == (3, None, 3)
    assert part.attn_scale == (3.0, 2.0, 3.0)
    assert part.expert_blocks == (0, 2)
    assert config.with_blocks(1).expert_blocks == ()
    assert BASE.with_blocks(1) == BASE.replace(n_layers=1)
    own = config.replace(extra=Extra(kinds=["a", "b", "c"], pair=[1, 2], inner={"sizes": [1, 2, 3]}))
    assert own.with_blocks(2, 0).extra == Extra(kinds=["c", "a"], pair=[1, 2], inner={"sizes": [3, 1]})


def test_hyperparameters_of_ones_own_make_a_configuration_that_can_be_hashed_and_pickled():
    extra = Extra({"scale": 2.0, "steps": [1, [2, 3]], "inner": {"a": [1]}})
    assert extra["steps"] == (1, (2, 3))
    assert extra["inner"]["a"] == (1,)
    config = BASE.replace(extra=extra)
    assert config == pickle.loads(pickle.dumps(config))
    assert hash(config) == hash(BASE.replace(extra=Extra(extra)))
    assert config != BASE
    assert BASE.extra == {}
    assert repr(Extra({"scale": 2.0})) == "Extra({'scale': 2.0})"


def test_the_longest_sequence_is_known_where_positions_are_learned():
    assert BASE.longest_sequence is None
    assert BASE.replace(learned_positions=True, position_offset=2).longest_sequence == 64
