"""Tensors that hold several parameters of ours, or a part of one: taken apart and put together, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reallm.errors import CheckpointError, ConfigError, PluginError
from reallm.hf.conversion.mapping import weight_mappings
from reallm.hf.conversion.state_dict import hf_names, state_dict_from_hf, state_dict_to_hf
from reallm.hf.family import HFFamily
from reallm.hf.standard import GATED_DECODER
from reallm.hf.tables import Source, Transposed, WeightTable, fused, transposed
from reallm.model.config import Extra, MoEConfig, ReaLModelConfig
from reallm.model.parameters import parameter_shapes
from reallm_hf_llama.plugin import LLAMA

CONFIG = ReaLModelConfig(
    n_layers=2,
    hidden_size=12,
    n_q_heads=6,
    n_kv_heads=2,
    head_dim=4,
    intermediate_size=10,
    vocab_size=11,
    max_positions=16,
    q_bias=True,
    k_bias=True,
    v_bias=True,
)
QKV = ("attn.q", "attn.k", "attn.v")
BLOCK = "layers.1."


def family(**changes: object) -> HFFamily:
    """The Llama family with other weights in its blocks."""
    return replace(LLAMA, weights=GATED_DECODER.updated(block=changes.pop("block"), **changes))


def ours(config: ReaLModelConfig) -> dict[str, torch.Tensor]:
    """Parameters of which every number is another."""
    shapes, start, state = parameter_shapes(config), 0, {}
    for name, shape in shapes.items():
        size = int(torch.Size(shape).numel())
        state[name] = torch.arange(start, start + size, dtype=torch.float64).reshape(shape)
        start += size
    return state


def test_groups_of_a_number_in_extra_and_outputs_in_another_dim():
    config = CONFIG.replace(extra=Extra(n_groups=4), q_bias=False, k_bias=False, v_bias=False, moe=MoEConfig(4, 2))
    experts = "mlp.experts.gate.weight", "mlp.experts.up.weight"
    names = {f"mlp.{name}": f"h.{{}}.{name}" for name in ("router", "experts.down")}
    stacked = fused("h.{}.experts", dim=0)
    grouped = family(block={QKV: fused("h.{}.qkv", groups="extra.n_groups"), experts: stacked, **names})
    state = ours(config)
    theirs = state_dict_to_hf(grouped, state, config)
    parts = [state[f"{BLOCK}{name}.weight"].chunk(4) for name in QKV]
    assert torch.equal(
        theirs["h.0.qkv.weight"], torch.cat([part for group in zip(*parts, strict=True) for part in group])
    )
    assert torch.equal(theirs["h.0.experts"], torch.cat([state[f"{BLOCK}{name}"] for name in experts]))
    again = state_dict_from_hf(grouped, theirs, config)
    assert all(torch.equal(again[name], value) for name, value in state.items())


def test_projections_one_after_another():
    fused_family = family(block={QKV: fused("h.{}.qkv")})
    state = ours(CONFIG)
    theirs = state_dict_to_hf(fused_family, state, CONFIG)
    parts = [state[f"{BLOCK}{name}.weight"] for name in QKV]
    assert torch.equal(theirs["h.0.qkv.weight"], torch.cat(parts))
    assert torch.equal(theirs["h.0.qkv.bias"], torch.cat([state[f"{BLOCK}{name}.bias"] for name in QKV]))


def test_projections_dealt_out_by_groups_of_heads():
    grouped = family(block={QKV: fused("h.{}.qkv", groups="n_kv_heads")})
    state = ours(CONFIG)
    theirs = state_dict_to_hf(grouped, state, CONFIG)["h.1.qkv.weight"]
    # two groups, each of three queries, one key and one value of 4 rows
    groups = theirs.reshape(2, 3 + 1 + 1, 4, 12)
    assert torch.equal(groups[:, :3].reshape(24, 12), state["layers.2.attn.q.weight"])
    assert torch.equal(groups[:, 3].reshape(8, 12), state["layers.2.attn.k.weight"])
    assert torch.equal(groups[:, 4].reshape(8, 12), state["layers.2.attn.v.weight"])


def test_weights_that_are_stored_the_other_way_round():
    turned = family(block={"mlp.up": transposed("h.{}.fc"), QKV: fused("h.{}.qkv", transposed=True)})
    state = ours(CONFIG)
    theirs = state_dict_to_hf(turned, state, CONFIG)
    assert torch.equal(theirs["h.0.fc.weight"], state[f"{BLOCK}mlp.up.weight"].t())
    assert torch.equal(theirs["h.0.qkv.weight"], torch.cat([state[f"{BLOCK}{name}.weight"] for name in QKV]).t())
    assert theirs["h.0.qkv.bias"].shape == (24 + 8 + 8,)


MOE = CONFIG.replace(moe=MoEConfig(n_experts=3, top_k=2, intermediate_size=6))
EXPERTS = dict.fromkeys(("mlp.gate", "mlp.up", "mlp.down")) | {"mlp.router": "h.{}.router"}
ONE_BY_ONE = family(
    block=EXPERTS | {f"mlp.experts.{name}": f"h.{{}}.experts.{{each}}.{name}" for name in ("gate", "up", "down")}
)
TOGETHER = family(
    block=EXPERTS
    | {
        ("mlp.experts.gate.weight", "mlp.experts.up.weight"): fused("h.{}.experts.gate_up", transposed=True),
        "mlp.experts.down.weight": "h.{}.experts.down",
    }
)


def test_a_tensor_for_each_expert():
    state = ours(MOE)
    theirs = state_dict_to_hf(ONE_BY_ONE, state, MOE)
    for expert in range(3):
        assert torch.equal(theirs[f"h.0.experts.{expert}.up.weight"], state[f"{BLOCK}mlp.experts.up.weight"][expert])
    assert hf_names(ONE_BY_ONE, MOE, 2)[-9:] == [
        f"h.1.experts.{expert}.{name}.weight" for name in ("gate", "up", "down") for expert in range(3)
    ]


def test_all_experts_in_one_tensor_under_a_whole_name():
    state = ours(MOE)
    theirs = state_dict_to_hf(TOGETHER, state, MOE)
    assert theirs["h.0.experts.gate_up"].shape == (3, 12, 2 * 6)
    gate, up = theirs["h.0.experts.gate_up"].transpose(1, 2).split(6, dim=1)
    assert torch.equal(gate, state[f"{BLOCK}mlp.experts.gate.weight"])
    assert torch.equal(up, state[f"{BLOCK}mlp.experts.up.weight"])


FAMILIES = {
    "one after another": (family(block={QKV: fused("h.{}.qkv")}), CONFIG),
    "by groups": (family(block={QKV: fused("h.{}.qkv", groups="n_kv_heads")}), CONFIG),
    "turned": (family(block={"attn.o": transposed("h.{}.o"), QKV: fused("h.{}.qkv", transposed=True)}), CONFIG),
    "experts one by one": (ONE_BY_ONE, MOE),
    "experts together": (TOGETHER, MOE),
}


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_subset_there_and_back_is_the_same_bit_for_bit(name, data):
    of_name, config = FAMILIES[name]
    state, found = ours(config), weight_mappings(of_name, config)
    chosen = {name for item in data.draw(st.lists(st.sampled_from(found))) for name in item.parameters}
    there = state_dict_to_hf(of_name, {key: state[key] for key in chosen}, config)
    assert all(there.meta_tensor(key).shape == tensor.shape for key, tensor in there.items())
    back = state_dict_from_hf(of_name, there, config)
    assert back.keys() == chosen
    assert all(torch.equal(back[key], state[key]) and back[key].is_contiguous() for key in chosen)


def test_a_part_of_what_is_stored_together_is_refused_in_both_directions():
    of_name, config = FAMILIES["one after another"]
    with pytest.raises(ConfigError, match=r"'h.0.qkv.weight' holds .* together; give 'layers.1.attn.k.weight', "):
        state_dict_to_hf(of_name, {"layers.1.attn.q.weight": torch.zeros(24, 12)}, config)
    half = {"h.0.experts.0.up.weight": torch.zeros(6, 12), "h.0.experts.2.up.weight": torch.zeros(6, 12)}
    with pytest.raises(CheckpointError, match="without 'h.0.experts.1.up.weight'"):
        state_dict_from_hf(ONE_BY_ONE, half, MOE)


@dataclass(frozen=True)
class Overlapping:
    """An arrangement that uses the first rows twice and the last ones never."""

    def shape(self, shapes, kind, config):
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def views(self, theirs, shapes, kind, config):
        return [theirs[: shape[0]] for shape in shapes]


@dataclass(frozen=True)
class TooSmall(Overlapping):
    """One that has no room for all of ours."""

    def shape(self, shapes, kind, config):
        return shapes[0]


def test_entries_of_experts_apply_to_a_model_whose_blocks_are_all_dense():
    mlp = {f"mlp.{part}": f"h.{{}}.{part}" for part in ("router", "shared.gate", "shared.up", "shared.down")}
    experts = family(block={**mlp, "mlp.router.correction_bias": "h.{}.router.bias"})
    moe = MoEConfig(n_experts=4, top_k=2, n_shared_experts=1, scores="sigmoid", correction_bias=True, layers=())
    dense = replace(CONFIG, vocab_size=CONFIG.vocab_size + 1)  # another test needs CONFIG to be new to `hf_names`
    assert hf_names(experts, replace(dense, moe=moe)) == hf_names(LLAMA, dense)


class TestAWrongTableIsRefused:
    """By whatever uses it first, with the family, the key and the nearest right one."""

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"attn.k": None}, r"has no entry 'attn.k' for the parameter 'layers.1.attn.k.weight'; did you mean 'attn"),
            ({"attn.k": None, "attn.kk": "h.{}.k"}, "has no entry 'attn.k' .* did you mean 'attn.kk'"),
            ({"attn.kk": "h.{}.k"}, r"'attn.kk' is not a parameter of the model; did you mean 'attn.k'"),
            ({QKV: Source("h.{}.qkv", Overlapping())}, "'h.0.qkv.weight' has .* of its 480 numbers in no parameter or"),
            ({QKV: Source("h.{}.qkv", Transposed(Overlapping()))}, "'h.0.qkv.weight' has .* of its 480 numbers in no"),
            ({QKV: fused("h.{}.qkv", groups="hidden_size")}, "'h.0.qkv.weight' cannot be taken apart"),
            ({QKV: Source("h.{}.qkv", TooSmall())}, "'h.0.qkv.weight' has the shape .* for parameters of 480"),
            ({QKV: Source("h.{}.qkv")}, "holds one parameter, but the key names several"),
            ({("attn.q", "mlp.router"): fused("h.{}.x")}, "share a tensor, but layer 1 has no 'mlp.router.weight'"),
        ],
    )  # fmt: skip
    def test_when_it_is_applied(self, changes, said):
        with pytest.raises(PluginError, match=f"^family 'llama': weight table: .*{said}") as caught:
            hf_names(family(block=changes), CONFIG)
        assert "\n" not in str(caught.value)

    def test_naming_the_distribution_that_offers_it(self, monkeypatch):
        object.__setattr__(LLAMA, "weights", GATED_DECODER.updated(block={"attn.o": None}))
        try:
            with pytest.raises(PluginError, match=r"family 'llama' of reallm-hf-llama \d.*'attn.o'"):
                hf_names(LLAMA, CONFIG)
        finally:
            object.__setattr__(LLAMA, "weights", GATED_DECODER)

    @pytest.mark.parametrize(
        ("block", "said"),
        [
            ({"attn.q": "h.{}.q", ("attn.q", "attn.k"): fused("h.{}.qk")}, "'attn.q' is in two rows"),
            ({"attn.q": "h.{}.x", "attn.k": "h.{}.x"}, "'h.{}.x' is the name of two modules, 'attn.q' and 'attn.k'"),
            ({"attn_norm": "h.{}.n", "mlp_norm": "h.{}.n"}, "no inverse; a norm that .* share is shared_norm=True"),
            ({("attn.q", "attn.k"): "h.{}.qk"}, r"must say how one tensor holds several parameters, such as fused"),
            ({"attn.q": "h.q"}, r"'attn.q': 'h.q' must have {} 1 times"),
        ],
    )
    def test_when_it_is_written(self, block, said):
        with pytest.raises(ConfigError, match=said):
            WeightTable(embedding={}, block=block, head={})


def test_new_entries_replace_those_of_the_same_modules():
    table = GATED_DECODER.updated(block={QKV: fused("h.{}.qkv"), "mlp.gate": None, "attn_norm": "h.{}.n"})
    assert not {"attn.q", "attn.k", "attn.v", "mlp.gate"} & table.block.keys()
    assert table.block["attn_norm"] == "h.{}.n"
    again = table.updated(block={"attn.k": "h.{}.k"})
    assert QKV not in again.block


def test_names_that_lack_a_beginning_are_read_and_written_whole(tmp_path):
    import transformers
    from safetensors.torch import load_file, save_file

    from reallm.engine.real_model import ReaLModel

    config = transformers.GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=32)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "short")
    file = tmp_path / "short" / "model.safetensors"
    tensors = load_file(file)
    save_file({name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}, file)
    one, other = (ReaLModel.from_pretrained(tmp_path / folder) for folder in ("whole", "short"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    other.save_pretrained(tmp_path / "short")
    assert load_file(file).keys() == tensors.keys()
