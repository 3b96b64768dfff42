"""The network: every field of the configuration changes what it computes, packing changes nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from reallm.errors import ConfigError, DataError
from reallm.model.config import ReaLModelConfig, RopeConfig
from reallm.model.transformer import Transformer

BASE = ReaLModelConfig(
    n_layers=3,
    hidden_size=32,
    n_q_heads=4,
    n_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    vocab_size=50,
    max_positions=64,
)
TOKENS = torch.randint(0, 50, (30,), generator=torch.Generator().manual_seed(0))
BOUNDS = torch.tensor([0, 4, 5, 22, 30])


def build(config: ReaLModelConfig, seed: int = 0) -> Transformer:
    model = Transformer(config)
    model.init_weights(seed)
    with torch.no_grad():  # norms and biases away from their neutral start, and attention scores that matter
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
            elif "attn" in name:
                parameter.mul_(10)
    return model.eval()


CHANGES = {
    "norm": {"norm": "layer"},
    "norm_eps": {"norm_eps": 0.1},
    "norm_weight": {"norm_weight": False},
    "norm_bias": {"norm_bias": True},
    "norm_offset": {"norm_offset": 1.0},
    "norm_placement": {"norm_placement": "branch"},
    "sandwich norms": {"norm_placement": "sandwich"},
    "norms after the sum": {"norm_placement": "post"},
    "final_norm": {"final_norm": False},
    "parallel_residual": {"parallel_residual": True},
    "shared_norm": {"parallel_residual": True, "shared_norm": True},
    "attention": {"attention": f"{__name__}:AttentionOfOnes"},
    "mlp": {"mlp": "plain"},
    "block": {"block": f"{__name__}:BlockOfNothing"},
    "extra": {"mlp": f"{__name__}:ScaledMLP", "extra": Extra({"scale": 3.0})},
    "activation": {"activation": "gelu_tanh"},
    "moe": {"moe": MoEConfig(4, 2, 24)},
    **{name: {name: True} for name in BIASES},
    "rope": {"rope": RopeConfig(theta=100.0)},
    "rope of some blocks": {"rope": (RopeConfig(), None)},
    "rotary_dim": {"rope": RopeConfig(rotary_dim=4)},
    "interleaved": {"rope": RopeConfig(interleaved=True)},
    "learned_positions": {"learned_positions": True},
    "position_offset": {"learned_positions": True, "position_offset": 2},
    "sliding_window": {"sliding_window": 4},
    "tied_embeddings": {"tied_embeddings": True},
    "qk_norm": {"qk_norm": "head"},
    "qk_norm per head": {"qk_norm": "per_head"},
    "qk_norm over all heads": {"qk_norm": "whole"},
    "qk_norm_bias": {"qk_norm": "head", "qk_norm_bias": True},
    "qkv_clip": {"qkv_clip": 0.01},
    "attn_scale": {"attn_scale": 0.05},
    "attn_softcap": {"attn_softcap": 0.5},
    "logit_softcap": {"logit_softcap": 0.05},
    "embedding_multiplier": {"embedding_multiplier": 7.0},
    "residual_multiplier": {"residual_multiplier": 0.3},
    "logit_multiplier": {"logit_multiplier": 0.5},
    "is_critic": {"is_critic": True},
    "init_std": {"init_std": 0.5},
    "max_positions": {"max_positions": 8, "rope": RopeConfig("dynamic", factor=4.0)},
    "head_dim": {"head_dim": 16},
    "n_kv_heads": {"n_kv_heads": 4},
}
IN_TRAINING = {"embedding_dropout", "attn_dropout", "residual_dropout"}
SIZES = {"n_layers", "hidden_size", "n_q_heads", "intermediate_size", "vocab_size"}


def test_every_field_of_the_configuration_is_exercised_here():
    changed = {name for changes in CHANGES.values() for name in changes}
    assert changed | IN_TRAINING | SIZES == {field.name for field in dataclasses.fields(ReaLModelConfig)}


@pytest.mark.parametrize("field", CHANGES)
def test_no_field_is_silently_ignored(field):
    base, changed = build(BASE), build(BASE.replace(**CHANGES[field]))
    before, after = base(TOKENS, BOUNDS), changed(TOKENS, BOUNDS)
    assert before.shape != after.shape or not torch.allclose(before, after, atol=1e-5)


@pytest.mark.parametrize("field", CHANGES)
def test_a_packed_batch_gives_what_each_sequence_gives_alone(field):
    model = build(BASE.replace(**CHANGES[field]))
    packed = model(TOKENS, BOUNDS)
    alone = torch.cat([model(part, torch.tensor([0, len(part)])) for part in TOKENS.split(BOUNDS.diff().tolist())])
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-6)


def test_a_window_for_each_block():
    one, each = build(BASE.replace(sliding_window=4)), build(BASE.replace(sliding_window=(4, 4, 4)))
    mixed = build(BASE.replace(sliding_window=(4, None, 4)))
    assert torch.equal(one(TOKENS, BOUNDS), each(TOKENS, BOUNDS))
    assert not torch.allclose(one(TOKENS, BOUNDS), mixed(TOKENS, BOUNDS), atol=1e-5)


def test_shapes_of_actor_and_critic():
    assert build(BASE)(TOKENS, BOUNDS).shape == (30, 50)
    assert build(BASE.replace(is_critic=True))(TOKENS, BOUNDS).shape == (30,)
    assert build(BASE).hidden(TOKENS, BOUNDS).shape == (30, 32)


def test_a_tied_head_is_the_embedding_and_a_critic_never_ties():
    tied = build(BASE.replace(tied_embeddings=True))
    assert tied.head_weight is tied.get_parameter("layers.0.tokens.weight")
    assert "layers.4.out.weight" not in dict(tied.named_parameters())
    assert build(BASE.replace(tied_embeddings=True, is_critic=True)).head_weight.shape == (1, 32)


def test_cross_entropy_is_that_of_the_logits():
    model = build(BASE.replace(logit_softcap=0.2, logit_multiplier=3.0))
    targets = TOKENS.roll(-1)
    expected = torch.nn.functional.cross_entropy(model(TOKENS, BOUNDS), targets, reduction="none")
    torch.testing.assert_close(model.cross_entropy(model.hidden(TOKENS, BOUNDS), targets).nll, expected)


def test_every_parameter_declares_how_it_may_be_split():
    for changes in CHANGES.values():
        model = Transformer(BASE.replace(**changes))
        shards = model.parameter_shards()
        for name, parameter in model.named_parameters():
            shard = shards[name]
            if shard is not None:
                assert parameter.shape[shard.dim] % shard.unit == 0, name


def test_fresh_weights_depend_on_the_seed_and_the_name_alone():
    few, many = Transformer(BASE.replace(n_layers=1)), Transformer(BASE)
    few.init_weights(3)
    many.init_weights(3)
    name = "layers.1.attn.q.weight"
    assert torch.equal(few.get_parameter(name), many.get_parameter(name))
    many.init_weights(4)
    assert not torch.equal(few.get_parameter(name), many.get_parameter(name))


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (torch.tensor([0, 10]), "rise from 0 to the number of tokens, 30"),
        (torch.tensor([0, 20, 10, 30]), "falls between"),
        (torch.tensor([1, 30]), "goes from 1 to 30"),
        (torch.tensor([0.0, 30.0]), "vector of integers"),
        (torch.tensor([[0, 30]]), "vector of integers"),
    ],
)
def test_bounds_that_do_not_fit_the_tokens(bounds, message):
    with pytest.raises(DataError, match=message):
        build(BASE)(TOKENS, bounds)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layers": 0}, "n_layers=0 must be a whole number of at least 1"),
        ({"n_kv_heads": 3}, "n_q_heads=4 must be a multiple of n_kv_heads=3"),
        ({"head_dim": 7}, "head_dim=7 must be even"),
        ({"norm": "rsm"}, "norm='rsm' is not one of rms, layer; did you mean 'rms'"),
        ({"mlp": "moe"}, "mlp='moe' is not one of gated, plain"),
        ({"activation": "swiglu"}, "activation='swiglu' is not one of silu"),
        ({"sliding_window": (1, 2)}, "sliding_window has 2 entries for n_layers=3"),
        ({"sliding_window": 0}, "sliding_window=0 must be at least 1"),
        ({"attn_dropout": 1.0}, "attn_dropout=1.0 must be at least 0 and less than 1"),
        ({"is_critic": True, "logit_softcap": 1.0}, "logit_softcap has no meaning for a critic"),
        ({"hiden_size": 3}, "has no field 'hiden_size'; did you mean 'hidden_size'"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        BASE.replace(**changes)


def test_a_rope_field_that_its_kind_does_not_use_is_refused():
    with pytest.raises(ConfigError, match=r"rope\.factor=2\.0 has no meaning for rope\.kind='default'"):
        RopeConfig(factor=2.0)
    with pytest.raises(ConfigError, match=r"rope\.low_freq_factor is required"):
        RopeConfig("llama3", factor=8.0, original_max_positions=64)
