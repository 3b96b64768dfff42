"""The network: every field of the configuration changes what it computes, packing changes nothing."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from reallm.errors import ConfigError, DataError, PluginError
from reallm.machine_errors import shortage
from reallm.model.attention.functional import attend_rotated
from reallm.model.config import Extra, MoEConfig, ReaLModelConfig, RopeConfig
from reallm.model.ends import Embedding, Head
from reallm.model.forward_context import ForwardContext
from reallm.model.layers import GatedMLP, Linear, TokenEmbedding
from reallm.model.packed import PackedSequences
from reallm.model.rope import rotations
from reallm.model.transformer import Transformer
from tests.helpers.tiny_config import TINY

BASE = TINY.replace(n_layers=3)
TOKENS = torch.randint(0, 50, (30,), generator=torch.Generator().manual_seed(0))
BOUNDS = torch.tensor([0, 4, 5, 22, 30])


def build(config: ReaLModelConfig, seed: int = 0) -> Transformer:
    model = Transformer(config)
    model.init_weights(seed)
    with torch.no_grad():  # norms and biases away from their neutral start, and attention scores that matter
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(0.7 + torch.randn(parameter.shape, generator=generator) * 0.3)
            elif "attn" in name:
                parameter.mul_(10)
    return model.eval()


def randn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def context_of(config):
    seqs = PackedSequences.from_lengths(BOUNDS.diff().tolist())
    return ForwardContext(seqs, rotations(config, seqs, torch.float32), attend_rotated)


class AttentionOfOnes(nn.Module):
    """A family's own attention: each token sees the mean of the values so far."""

    def __init__(self, config, block):
        super().__init__()
        self.v = Linear(config.hidden_size, config.hidden_size, split="column")
        self.o = Linear(config.hidden_size, config.hidden_size, split="row")

    def forward(self, x, context, cache=None):
        assert cache is None, "this example keeps nothing"
        sums = torch.cat([values.cumsum(0) for values in self.v(x).split(list(context.seqs.lengths))])
        return self.o(sums / (context.seqs.positions[:, None] + 1))


class BlockOfNothing(nn.Module):
    """A family's own block."""

    def __init__(self, config, block):
        super().__init__()

    def forward(self, x, context, cache=None):
        return x


class ScaledMLP(nn.Module):
    """A family's own MLP, with a hyperparameter of its own."""

    def __init__(self, config, block):
        super().__init__()
        self.out = Linear(config.hidden_size, config.hidden_size, bias=True, split="column")
        self.scale = config.extra["scale"]

    def forward(self, x, context):
        return torch.tanh(self.out(x)) * self.scale


class SquareNorm(nn.Module):
    """A family's own norm: over the hidden dim, or that of a head."""

    def __init__(self, config, size):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.shards = {"weight": None}

    def forward(self, x):
        squares = x.square()
        return squares / (1 + squares) * self.weight  # bounded, so that no depth overflows


class MLPWithoutMemory(nn.Module):
    """What torch raises if an allocation fails."""

    def __init__(self, config, block):
        super().__init__()
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes.")


class SizedMLP(GatedMLP):
    """Has a matrix of a size that the configuration gives."""

    def __init__(self, config, block):
        super().__init__(config, block)
        self.more = nn.Linear(config.hidden_size // config.extra.scale, config.extra.scale * config.hidden_size)


class ForgetfulMLP(ScaledMLP):
    """Does not say how one of its parameters may be split."""

    def __init__(self, config, block):
        super().__init__(config, block)
        self.gain = nn.Parameter(torch.empty(config.hidden_size))


class BoastfulMLP(ScaledMLP):
    """Says how a parameter may be split that it does not have."""

    def __init__(self, config, block):
        super().__init__(config, block)
        self.shards = {"gain": None}


class SquaredEmbedding(Embedding):
    """A family's own embedding."""

    def forward(self, tokens, seqs):
        return super().forward(tokens, seqs).square()


class ProjectedHead(Head):
    """A family's own head, with a linear layer before the final norm."""

    def __init__(self, config):
        super().__init__(config)
        self.dense = Linear(config.hidden_size, config.hidden_size, split=None)

    def forward(self, x):
        return super().forward(torch.tanh(self.dense(x)))


class NoTable(nn.Module):
    """An embedding that looks up no token."""

    def __init__(self, config):
        super().__init__()


class OwnOutput(Head):
    """A head that always has an output projection, and no bias."""

    def __init__(self, config):
        super().__init__(config)
        self.out = Linear(config.hidden_size, config.vocab_size, split="column")


class NarrowEmbedding(Embedding):
    """An embedding whose table has fewer columns than the hidden states."""

    def __init__(self, config):
        super().__init__(config)
        self.tokens = TokenEmbedding(config, 8)
        self.dense = Linear(8, config.hidden_size, split=None)

    def forward(self, tokens, seqs):
        return self.dense(self.tokens(tokens))


class NarrowHead(Head):
    """The head that may be tied to it."""

    def __init__(self, config):
        super().__init__(config)
        self.dense = Linear(config.hidden_size, 8, split=None)

    def forward(self, x):
        return self.dense(self.norm(x))


def own(cls):
    return f"{__name__}:{cls.__name__}"


BIASES = ("q_bias", "k_bias", "v_bias", "o_bias", "gate_bias", "up_bias", "down_bias", "head_bias")
CHANGES = {
    "norm": {"norm": "layer"},
    "norm of one's own": {"norm": own(SquareNorm)},
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
    "attention": {"attention": own(AttentionOfOnes)},
    "mlp": {"mlp": "plain"},
    "block": {"block": own(BlockOfNothing)},
    "embedding": {"embedding": own(SquaredEmbedding)},
    "head": {"head": own(ProjectedHead)},
    "embedding_norm": {"embedding_norm": True},
    "extra": {"mlp": own(ScaledMLP), "extra": Extra({"scale": 3.0})},
    "activation": {"activation": "gelu_tanh"},
    "moe": {"moe": MoEConfig(4, 2, 24)},
    "gate of shared experts": {"moe": MoEConfig(4, 2, 24, n_shared_experts=1, shared_gate=True)},
    **{name: {name: True} for name in BIASES},
    "rope": {"rope": RopeConfig(theta=100.0)},
    "rope of some blocks": {"rope": (RopeConfig(), None, RopeConfig(theta=100.0))},
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
    "attn_output_gate": {"attn_output_gate": True},
    "qkv_clip": {"qkv_clip": 0.01},
    "attn_scale": {"attn_scale": 0.05},
    "attn_softcap": {"attn_softcap": 0.5},
    "attn_sinks": {"attn_sinks": True},
    "alibi_scale": {"rope": None, "alibi_scale": 0.5},
    "logit_softcap": {"logit_softcap": 0.05},
    "embedding_multiplier": {"embedding_multiplier": 7.0},
    "residual_multiplier": {"residual_multiplier": 0.3},
    "logit_multiplier": {"logit_multiplier": 0.5},
    "is_critic": {"is_critic": True},
    "init_std": {"init_std": 0.5},
    "max_positions": {"max_positions": 8, "rope": RopeConfig("dynamic", factor=4.0)},
    "head_dim": {"head_dim": 16},
    "v_head_dim": {"v_head_dim": 4},
    "n_kv_heads": {"n_kv_heads": 4},
}
IN_TRAINING = {"embedding_dropout", "attn_dropout", "residual_dropout", "lora"}  # an adapter begins with zero
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


def test_a_rope_and_a_scale_for_each_block():
    one, each = build(BASE), build(BASE.replace(rope=(RopeConfig(),) * 3, attn_scale=(8**-0.5,) * 3))
    assert torch.equal(one(TOKENS, BOUNDS), each(TOKENS, BOUNDS))
    for place in range(3):
        theta = [10000.0] * 3
        theta[place] = 50.0
        mixed = build(BASE.replace(rope=tuple(RopeConfig(theta=base) for base in theta)))
        assert not torch.allclose(one(TOKENS, BOUNDS), mixed(TOKENS, BOUNDS), atol=1e-5)
        scales = [8**-0.5] * 3
        scales[place] = 0.9
        scaled = build(BASE.replace(attn_scale=tuple(scales)))
        assert not torch.allclose(one(TOKENS, BOUNDS), scaled(TOKENS, BOUNDS), atol=1e-5)


def test_some_blocks_of_a_model_are_a_model():
    changes = {
        "rope": (RopeConfig(), None, RopeConfig(theta=50.0)),
        "sliding_window": (None, 3, 4),
        "attn_scale": (0.3, 0.4, 0.5),
        "moe": MoEConfig(4, 2, 24, layers=(1, 2)),
    }
    whole = build(BASE.replace(**changes))
    part = Transformer(whole.config.with_blocks(2, 0)).eval()
    places = {"layers.0.": "layers.0.", "layers.1.": "layers.3.", "layers.2.": "layers.1.", "layers.3.": "layers.4."}
    part.load_state_dict(
        {name: whole.get_parameter(places[name[:9]] + name[9:]) for name, _ in part.named_parameters()}
    )
    assert part.config.moe == MoEConfig(4, 2, 24, layers=(0,))
    whole.layers = nn.ModuleDict({str(n): whole.layers[str(old)] for n, old in enumerate((0, 3, 1, 4))})
    whole.config = part.config  # which says how many there are and how positions are rotated; blocks keep their own
    blocks = whole.layers["1"].attn, whole.layers["2"].attn
    for ours, theirs in zip(blocks, (part.layers["1"].attn, part.layers["2"].attn), strict=True):
        assert dataclasses.replace(ours.spec, rotation=None) == dataclasses.replace(theirs.spec, rotation=None)
        ours.inference_spec = theirs.inference_spec
    assert torch.equal(whole(TOKENS, BOUNDS), part(TOKENS, BOUNDS))


PLACEMENTS = {
    "pre": lambda x, f, before, after: x + f(before(x)),
    "branch": lambda x, f, before, after: x + after(f(x)),
    "sandwich": lambda x, f, before, after: x + after(f(before(x))),
    "post": lambda x, f, before, after: after(x + f(x)),
}


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_block_is_its_equation(placement):
    block = build(BASE.replace(norm_placement=placement)).layers["1"]
    x, context = randn(30, 32), context_of(BASE)
    half = PLACEMENTS[placement]
    middle = half(x, lambda x: block.attn(x, context), block.attn_norm, block.attn_post_norm)
    expected = half(middle, lambda x: block.mlp(x, context), block.mlp_norm, block.mlp_post_norm)
    assert torch.equal(block(x, context), expected)


@pytest.mark.parametrize("shared", [False, True])
def test_a_parallel_block_is_its_equation(shared):
    block = build(BASE.replace(parallel_residual=True, shared_norm=shared, residual_multiplier=0.5)).layers["1"]
    x, context = randn(30, 32), context_of(BASE)
    mlp_norm = block.attn_norm if shared else block.mlp_norm
    expected = x + 0.5 * block.attn(block.attn_norm(x), context) + 0.5 * block.mlp(mlp_norm(x), context)
    torch.testing.assert_close(block(x, context), expected)


def test_positions_that_are_learned_begin_behind_the_offset():
    model = build(BASE.replace(rope=None, learned_positions=True, position_offset=2, max_positions=17))
    table = model.get_parameter("layers.0.positions.weight")
    assert table.shape == (19, 32)
    embedded = model.layers["0"](TOKENS, PackedSequences.from_lengths(BOUNDS.diff().tolist()))
    expected = model.get_parameter("layers.0.tokens.weight")[TOKENS] + torch.cat(
        [table[2 : 2 + n] for n in (4, 1, 17, 8)]
    )
    torch.testing.assert_close(embedded, expected)


def test_a_sequence_longer_than_the_learned_positions_is_refused():
    model = build(BASE.replace(learned_positions=True, max_positions=16))
    with pytest.raises(DataError, match="a sequence has 17 tokens, but the model has learned 16 positions; shorten it"):
        model(TOKENS, BOUNDS)


def test_shapes_of_actor_and_critic():
    assert build(BASE)(TOKENS, BOUNDS).shape == (30, 50)
    assert build(BASE.replace(is_critic=True))(TOKENS, BOUNDS).shape == (30,)
    assert build(BASE).hidden(TOKENS, BOUNDS).shape == (30, 32)


def test_a_tied_head_is_the_embedding_and_a_critic_never_ties():
    tied = build(BASE.replace(tied_embeddings=True))
    assert tied.head_weight is tied.get_parameter("layers.0.tokens.weight")
    assert "layers.4.out.weight" not in dict(tied.named_parameters())
    assert build(BASE.replace(tied_embeddings=True, is_critic=True)).head_weight.shape == (1, 32)


@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_head_may_have_a_bias_and_a_critic_never_has(tied):
    config = BASE.replace(tied_embeddings=tied, head_bias=True)
    model = build(config)
    expected = model.hidden(TOKENS, BOUNDS) @ model.head_weight.t() + model.get_parameter("layers.4.out.bias")
    torch.testing.assert_close(model(TOKENS, BOUNDS), expected)
    assert "layers.4.out.bias" not in dict(Transformer(config.replace(is_critic=True)).named_parameters())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_cross_entropy_is_that_of_the_logits(bias, tied):
    model = build(BASE.replace(logit_softcap=0.2, logit_multiplier=3.0, head_bias=bias, tied_embeddings=tied))
    targets = TOKENS.roll(-1)
    expected = torch.nn.functional.cross_entropy(model(TOKENS, BOUNDS), targets, reduction="none")
    torch.testing.assert_close(model.cross_entropy(model.hidden(TOKENS, BOUNDS), targets).nll, expected)


@settings(max_examples=40, deadline=None)
@given(st.sets(st.sampled_from(sorted(CHANGES)), min_size=2, max_size=6))
def test_fields_go_together_or_are_refused_by_name(names):
    changes = {}
    for name in names:
        changes |= CHANGES[name]
    if "learned_positions" in changes:
        changes.pop("max_positions", None)  # of which the sequences here have more
    try:
        config = BASE.replace(**changes)
    except ConfigError as error:
        refusal = str(error)
        assert any(name in refusal for name in changes)
        return
    model = build(config)
    assert model.parameter_shards().keys() == dict(model.named_parameters()).keys()
    packed = model(TOKENS, BOUNDS)
    alone = torch.cat([model(part, torch.tensor([0, len(part)])) for part in TOKENS.split(BOUNDS.diff().tolist())])
    # their rounding depends on how many tokens there are, and norms of one's own square it
    torch.testing.assert_close(packed, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (ForgetfulMLP, "ForgetfulMLP has the parameter 'gain', which is missing from its `shards`; add it"),
        (BoastfulMLP, "BoastfulMLP.shards has 'gain', which is not one of its parameters; remove it"),
    ],
)
def test_a_class_that_declares_its_parameters_wrongly_is_named(cls, message):
    model = Transformer(BASE.replace(mlp=own(cls), extra=Extra({"scale": 1.0})))
    with pytest.raises(PluginError, match=message):
        model.parameter_shards()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding": own(NoTable)}, "NoTable has no 'tokens', the table of embeddings; make it a TokenEmbedding"),
        ({"head": own(OwnOutput), "head_bias": True}, "OwnOutput has no 'out.bias'; let it derive from"),
        ({"head": own(OwnOutput), "tied_embeddings": True}, "has 'out.weight', which this configuration does not use"),
        ({"head": own(NoTable)}, "NoTable has no 'out.weight'"),
    ],
)
def test_an_embedding_or_head_without_what_others_read_is_named(changes, message):
    with pytest.raises(PluginError, match=message):
        Transformer(BASE.replace(**changes))


def test_a_table_narrower_than_the_hidden_states_may_be_tied():
    model = build(BASE.replace(embedding=own(NarrowEmbedding), head=own(NarrowHead), tied_embeddings=True))
    hidden = model.hidden(TOKENS, BOUNDS)
    assert hidden.shape == (30, 8)
    torch.testing.assert_close(model(TOKENS, BOUNDS), hidden @ model.get_parameter("layers.0.tokens.weight").t())
    found = model.cross_entropy(hidden, TOKENS).nll
    torch.testing.assert_close(found, -model(TOKENS, BOUNDS).log_softmax(-1)[torch.arange(30), TOKENS])


def test_the_norm_of_embeddings_comes_after_positions():
    changes = {"learned_positions": True, "norm": "layer", "norm_bias": True, "rope": None}
    plain, normed = (build(BASE.replace(**changes, embedding_norm=norm)).layers["0"] for norm in (False, True))
    normed.load_state_dict(plain.state_dict(), strict=False)
    seqs = PackedSequences.from_lengths(BOUNDS.diff().tolist())
    torch.testing.assert_close(normed(TOKENS, seqs), normed.embedding_norm(plain(TOKENS, seqs)))


def test_a_class_that_is_not_there_is_named():
    with pytest.raises(PluginError, match=f"cannot import '{__name__}:Missing'"):
        Transformer(BASE.replace(block=f"{__name__}:Missing"))


@pytest.mark.parametrize("scale", [-1, 0, 2**62])
def test_sizes_that_a_class_cannot_have_are_one_line(scale):
    config = BASE.replace(mlp=own(SizedMLP), extra=Extra({"scale": scale}))
    with pytest.raises(ConfigError, match="SizedMLP cannot be built of these sizes") as caught, torch.device("meta"):
        Transformer(config)
    assert "\n" not in str(caught.value)


def test_a_lack_of_memory_is_not_taken_for_wrong_sizes():
    with pytest.raises(RuntimeError, match="can't allocate memory") as caught:
        Transformer(BASE.replace(mlp=own(MLPWithoutMemory)))
    assert shortage(caught.value) is not None


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


def test_fresh_weights_are_normal_and_norms_and_biases_do_nothing():
    changes = {
        **dict.fromkeys(BIASES, True),
        "norm_bias": True,
        "norm_offset": 1.0,
        "qk_norm": "per_head",
        "qk_norm_bias": True,
    }
    model = Transformer(BASE.replace(**changes, init_std=0.3))
    model.init_weights(3)
    norms = 0
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert not parameter.any(), name  # 1 is added to them
            norms += 1
        else:
            assert parameter.std().item() == pytest.approx(0.3, rel=0.15), name
    assert norms == 3 * 4 + 1


class SelfMadeMLP(ForgetfulMLP):
    """Says how one of its parameters starts."""

    def __init__(self, config, block):
        super().__init__(config, block)
        self.decay = nn.Parameter(torch.empty(3, 4))
        self.shards = {"gain": None, "decay": None}

    def fresh_parameter(self, name, generator):
        return torch.rand(3, 4, generator=generator) + 5.0 if name == "decay" else None


def test_a_class_may_say_how_its_parameters_start():
    model = Transformer(BASE.replace(mlp=own(SelfMadeMLP), extra=Extra({"scale": 1.0})))
    model.init_weights(3)
    first, second = model.layers["1"].mlp, model.layers["2"].mlp
    assert 5.0 <= first.decay.min() < first.decay.max() <= 6.0
    assert not torch.equal(first.decay, second.decay)
    assert torch.equal(first.gain, torch.ones(32))
    assert not first.out.bias.any()
    assert first.out.weight.std().item() == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        (torch.tensor([0, 10]), "rise from 0 to the number of tokens, 30"),
        (torch.tensor([0, 20, 10, 30]), "decreases in between"),
        (torch.tensor([1, 30]), "goes from 1 to 30"),
        (torch.tensor([0.0, 30.0]), "must be integers .* its dtype is float32"),
        (torch.tensor([[0, 30]]), "must be one-dimensional"),
    ],
)
def test_bounds_that_do_not_fit_the_tokens(bounds, message):
    with pytest.raises(DataError, match=message):
        build(BASE)(TOKENS, bounds)
