"""The rows of a config table: what a key states, in both directions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from reallm.errors import ConfigError
from reallm.hf.standard import AUX_LOSS, MLP_BIAS, QKV_BIAS, aux_loss, decoder_rows, same_as, without
from reallm.hf.tables import (
    INVERSE_SQUARE_ROOT,
    RECIPROCAL,
    Conversion,
    Derived,
    Key,
    LayerRopes,
    LayerTypes,
    Nested,
    always_sliding,
    sliding_except_every,
)
from reallm.hf.tables.config import ConfigTable
from reallm.hf.tables.rope import RopeRow
from reallm.model.config import Extra, MoEConfig, RopeConfig

KNOWN = {"max_positions": 64, "head_dim": 8, "n_layers": 4}


def config(**fields: object) -> SimpleNamespace:
    return SimpleNamespace(**{"max_positions": 64, "head_dim": 8, "n_layers": 4, **fields})


class TestKey:
    def test_several_fields_get_one_value_and_must_have_one(self):
        row = Key("attention_bias", bool, QKV_BIAS, default=False)
        assert row.read({"attention_bias": True}, {}) == dict.fromkeys(QKV_BIAS, True)
        with pytest.raises(ConfigError, match="q_bias=True, k_bias=False, v_bias=False differ, but 'attention_bias'"):
            row.write(config(q_bias=True, k_bias=False, v_bias=False), {})

    def test_spellings_may_be_truth_values(self):
        row = Key("pre_norm", bool, "norm_placement", default="pre", spellings={True: "pre", False: "post"})
        assert row.read({"pre_norm": False}, {}) == {"norm_placement": "post"}
        assert row.write(config(norm_placement="post"), {}) == {"pre_norm": False}
        with pytest.raises(ConfigError, match="norm_placement='branch' is not one of pre, post"):
            row.write(config(norm_placement="branch"), {})

    def test_none_has_a_spelling_of_its_own(self):
        row = Key("use_qk_norm", bool, "qk_norm", default=None, spellings={True: "head", False: None})
        assert row.read({"use_qk_norm": False}, {}) == {"qk_norm": None}
        assert row.write(config(qk_norm=None), {}) == {"use_qk_norm": False}
        assert row.write(config(qk_norm="head"), {}) == {"use_qk_norm": True}

    @pytest.mark.parametrize("theirs", [8.0, 16, 3, 0.3, 7])
    def test_a_conversion_comes_back_to_the_same_number(self, theirs):
        for conversion in (RECIPROCAL, INVERSE_SQUARE_ROOT):
            row = Key("x", float, "attn_scale", conversion=conversion)
            ours = row.read({"x": theirs}, {})["attn_scale"]
            assert row.write(config(attn_scale=ours), {}) == {"x": theirs}

    def test_null_is_not_converted(self):
        row = Key("x", int, "y", default=None, nullable=True, conversion=Conversion(abs, abs))
        assert row.read({"x": None}, {}) == {"y": None}
        assert row.write(config(y=None), {}) == {"x": None}

    def test_an_alias_is_read_and_keeps_its_spelling(self):
        row = Key("num_experts", int, "n", aliases=("num_local_experts",))
        assert row.keys == ("num_experts", "num_local_experts")
        assert row.read({"num_local_experts": 4}, {}) == {"n": 4}
        assert row.write(config(n=5), {"num_local_experts": 4}) == {"num_local_experts": 5}
        assert row.write(config(n=5), {}) == {"num_experts": 5}


class TestNested:
    row = Nested(
        "moe",
        MoEConfig,
        (Key("experts", int, "n_experts"), Key("per_token", int, "top_k", default=same_as("n_layers")), AUX_LOSS),
    )

    def test_its_rows_give_one_field_and_know_those_above(self):
        assert self.row.fields == ("moe",)
        assert self.row.keys == ("experts", "per_token", "router_aux_loss_coef", "output_router_logits")
        assert self.row.read({"experts": 8}, KNOWN) == {"moe": MoEConfig(8, 4)}

    def test_there_and_back(self):
        raw = {"experts": 8, "per_token": 2, "router_aux_loss_coef": 0.5, "output_router_logits": True}
        moe = self.row.read(raw, KNOWN)["moe"]
        assert moe == MoEConfig(8, 2, aux_loss_coef=0.5)
        assert self.row.write(config(moe=moe), {}) == raw
        assert self.row.write(config(moe=None), {}) == {}

    def test_the_loss_counts_only_where_it_is_asked_for(self):
        assert AUX_LOSS.read({"router_aux_loss_coef": 0.5}, {}) == {"aux_loss_coef": 0.0}
        assert AUX_LOSS.read({"output_router_logits": True}, {}) == {"aux_loss_coef": 0.001}
        assert AUX_LOSS.write(MoEConfig(4, 2), {"router_aux_loss_coef": 0.5})["router_aux_loss_coef"] == 0.5
        assert aux_loss(0.01).read({"output_router_logits": True}, {}) == {"aux_loss_coef": 0.01}
        assert aux_loss(0.01).write(MoEConfig(4, 2), {})["router_aux_loss_coef"] == 0.01

    def test_hyperparameters_of_a_class_of_ones_own(self):
        row = Nested("extra", Extra, (Key("beta", float, "beta", default=0.5),))
        extra = row.read({}, {})["extra"]
        assert extra.beta == 0.5
        assert row.write(config(extra=extra), {}) == {"beta": 0.5}


class TestLayerTypes:
    row = LayerTypes(default=sliding_except_every(2, "pattern"), window=16, older_keys=("pattern",))

    def test_windows_of_some_blocks(self):
        raw = {"layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": 5}
        assert self.row.read(raw, KNOWN) == {"sliding_window": (None, 5, None, 5)}
        assert self.row.write(config(windows=(None, 5, None, 5)), {}) == raw

    def test_a_file_that_does_not_list_them(self):
        assert self.row.read({}, KNOWN) == {"sliding_window": (16, None, 16, None)}
        assert self.row.read({"pattern": 4}, KNOWN) == {"sliding_window": (16, 16, 16, None)}

    def test_blocks_that_are_all_alike_are_one_number(self):
        assert self.row.read({"layer_types": ["full_attention"] * 4}, KNOWN) == {"sliding_window": None}
        assert self.row.read({"layer_types": ["sliding_attention"] * 4}, KNOWN) == {"sliding_window": 16}

    def test_a_switch_without_which_no_block_has_one(self):
        row = LayerTypes(default=always_sliding, window=16, enabled_key="use", types_key=None)
        assert row.read({}, KNOWN) == {"sliding_window": None}
        assert row.read({"use": True}, KNOWN) == {"sliding_window": 16}
        assert row.write(config(windows=(3,) * 4), {}) == {"use": True, "sliding_window": 3}
        assert row.write(config(windows=(None,) * 4), {}) == {"use": False, "sliding_window": None}
        with pytest.raises(ConfigError, match="cannot be expressed; which blocks have a window is fixed"):
            row.write(config(windows=(3, None, 3, 3), sliding_window=(3, None, 3, 3)), {})

    @pytest.mark.parametrize(
        ("raw", "said"),
        [
            ({"layer_types": ["full_attention"]}, "layer_types has 1 entries for 4 layers; give one for each layer"),
            ({"layer_types": ["linear_attention"] * 4}, "layer_types has 'linear_attention'; supported are"),
            ({"sliding_window": "5"}, "sliding_window='5' must be of type int"),
        ],
    )
    def test_what_cannot_be_is_refused(self, raw, said):
        with pytest.raises(ConfigError, match=said):
            self.row.read(raw, KNOWN)

    def test_windows_that_differ_cannot_be_stated(self):
        with pytest.raises(ConfigError, match="cannot be expressed; all windows must be alike"):
            self.row.write(config(windows=(3, 4, None, None), sliding_window=(3, 4, None, None)), {})


class TestLayerRopes:
    row = LayerRopes(full_theta=1e6, sliding_theta=1e4)
    windows = (5, None, 5, None)

    @property
    def known(self):
        return {**KNOWN, "sliding_window": self.windows}

    def write(self, ropes, base):
        return self.row.write(config(ropes=ropes, windows=self.windows, rope=ropes), base)

    def test_each_type_has_its_own(self):
        local, full = RopeConfig(theta=1e4), RopeConfig("linear", theta=1e6, factor=8.0)
        raw = {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        }
        assert self.row.read(raw, self.known) == {"rope": (local, full, local, full)}
        assert self.write((local, full, local, full), {}) == raw

    def test_the_older_spelling_is_kept(self):
        raw = {
            "rope_theta": 500.0,
            "rope_local_base_freq": 50.0,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        }
        local, full = RopeConfig(theta=50.0), RopeConfig("linear", theta=500.0, factor=2.0)
        assert self.row.read(raw, self.known) == {"rope": (local, full, local, full)}
        assert self.write((local, full, local, full), raw) == raw

    def test_blocks_of_one_type_that_differ_cannot_be_stated(self):
        ropes = (RopeConfig(theta=1.0), RopeConfig(), RopeConfig(theta=2.0), RopeConfig())
        with pytest.raises(ConfigError, match="blocks of one type must have one RoPE"):
            self.write(ropes, {})


class TestRopeOfAPartOfEachHead:
    row = RopeRow(partial=0.25, interleaved=True, theta_key="rotary_emb_base", partial_key="rotary_pct")

    def test_older_keys(self):
        raw = {"rotary_pct": 0.5, "rotary_emb_base": 100}
        rope = RopeConfig(theta=100, rotary_dim=4, interleaved=True)
        assert self.row.read(raw, KNOWN) == {"rope": rope}
        assert self.row.write(config(rope=rope), raw) == {**raw, "rope_scaling": None}

    def test_the_default_fraction_and_a_whole_head(self):
        assert self.row.read({}, KNOWN)["rope"].rotary_dim == 2
        assert self.row.read({"rope_parameters": {"partial_rotary_factor": 1.0}}, KNOWN)["rope"].rotary_dim is None

    @pytest.mark.parametrize("head_dim", [80, 96, 100, 128, 250])
    def test_every_number_of_dims_can_be_stated(self, head_dim):
        for n_dims in range(2, head_dim, 2):
            rope = RopeConfig(rotary_dim=n_dims, interleaved=True)
            written = self.row.write(config(rope=rope, head_dim=head_dim), {})
            assert self.row.read(written, {**KNOWN, "head_dim": head_dim}) == {"rope": rope}

    @pytest.mark.parametrize(
        ("row", "rope", "said"),
        [
            (row, RopeConfig(), "rope.interleaved=False cannot be expressed"),
            (RopeRow(), RopeConfig(rotary_dim=4), "rope.rotary_dim=4 cannot be expressed; it must be head_dim=8"),
            (RopeRow(), None, "this family has one RoPE for all blocks"),
        ],
    )
    def test_what_a_family_cannot_state(self, row, rope, said):
        with pytest.raises(ConfigError, match=said):
            row.write(config(rope=rope), {})


class TestLongRope:
    row = RopeRow(partial=1.0, kinds={"su": "longrope"}, original_key="original_max_position_embeddings")

    def test_the_older_name_and_the_key_of_its_own(self):
        scaling = {"type": "su", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2, 3, 4, 5]}
        raw = {"rope_scaling": scaling, "original_max_position_embeddings": 16}
        rope = self.row.read(raw, KNOWN)["rope"]
        assert (rope.kind, rope.original_max_positions) == ("longrope", 16)
        assert rope.long_factor == (2, 3, 4, 5)
        written = self.row.write(config(rope=rope), {})
        assert written["original_max_position_embeddings"] == 16
        assert self.row.read(written, KNOWN) == {"rope": rope}


class TestRopeWhereNothingIsStated:
    stretched = RopeConfig("llama3", 12e6, factor=8.0, original_max_positions=16, low_freq_factor=1, high_freq_factor=4)
    row = RopeRow(absent=stretched)

    def test_it_is_what_the_family_says(self):
        assert self.row.read({"rope_theta": 500.0}, KNOWN) == {"rope": self.stretched}
        assert self.row.read({"rope_parameters": {"rope_theta": 500.0}}, KNOWN) == {"rope": RopeConfig(theta=500.0)}

    def test_plain_rope_is_stated_all_the_same(self):
        old = {"rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
        written = self.row.write(config(rope=RopeConfig(theta=500.0)), old)
        assert self.row.read(written, KNOWN) == {"rope": RopeConfig(theta=500.0)}


class TestDerived:
    row = Derived("head_dim", lambda known: known["hidden_size"] // known["n_q_heads"])

    def test_it_follows_from_the_fields_above(self):
        assert self.row.keys == ()
        assert self.row.read({}, {"hidden_size": 32, "n_q_heads": 4}) == {"head_dim": 8}

    def test_another_value_cannot_be_stated(self):
        assert self.row.write(config(hidden_size=32, n_q_heads=4), {}) == {}
        with pytest.raises(ConfigError, match="head_dim=8 cannot be expressed in config.json; it must be 16"):
            self.row.write(config(hidden_size=64, n_q_heads=4), {})

    def test_it_stands_in_for_a_key_that_the_class_has_not(self):
        rows = decoder_rows(n_kv_heads=same_as("n_q_heads"), n_kv_heads_key=None, head_dim_key=None, max_positions=64)
        keys = {key for row in rows for key in row.keys}
        assert not keys & {"num_key_value_heads", "head_dim"}
        raw = {"vocab_size": 9, "hidden_size": 16, "intermediate_size": 4, "num_hidden_layers": 1,
               "num_attention_heads": 2}  # fmt: skip
        fields = ConfigTable(rows).read(raw)
        assert (fields["head_dim"], fields["n_kv_heads"]) == (8, 2)

    def test_an_activation_is_spelled_as_in_transformers(self):
        with pytest.raises(ConfigError, match="activation='gelu_tanh' is not one of .*did you mean 'gelu"):
            decoder_rows(n_kv_heads=1, max_positions=64, activation="gelu_tanh")


class TestConfigTable:
    sizes = decoder_rows(n_kv_heads=same_as("n_q_heads"), max_positions=64)

    def test_a_field_that_follows_from_others(self):
        table = ConfigTable(self.sizes, {"embedding_multiplier": lambda known: known["hidden_size"] ** 0.5})
        raw = {"vocab_size": 9, "hidden_size": 16, "intermediate_size": 4, "num_hidden_layers": 1,
               "num_attention_heads": 2}  # fmt: skip
        assert table.read(raw)["embedding_multiplier"] == 4.0

    def test_a_row_that_comes_too_early_says_what_it_needs(self):
        rows = (self.sizes[-1], *self.sizes[:-1])
        with pytest.raises(ConfigError, match="the row of 'rope' needs the field 'head_dim', whose row must"):
            ConfigTable(rows).read({"vocab_size": 9})

    def test_a_key_in_two_rows_and_a_field_with_a_nearby_name(self):
        with pytest.raises(ConfigError, match="the key 'head_dim' is in two rows"):
            ConfigTable((*self.sizes, Key("head_dim", int, "attn_scale")))
        with pytest.raises(ConfigError, match="no field 'norm_epss' to be set by a table; did you mean 'norm_eps'"):
            ConfigTable(self.sizes, {"norm_epss": 1.0})

    def test_a_row_inside_another_says_so_too(self):
        row = Nested("moe", MoEConfig, (Key("top", int, "top_k", default=same_as("n_experts")),))
        with pytest.raises(ConfigError, match="the row of 'moe' needs the field 'n_experts'"):
            ConfigTable((*self.sizes[:-1], row, self.sizes[-1])).read(
                {"vocab_size": 9, "hidden_size": 16, "intermediate_size": 4, "num_hidden_layers": 1,
                 "num_attention_heads": 2}
            )  # fmt: skip

    def test_rows_taken_out(self):
        rows = without(self.sizes, "head_dim", "rope_theta")
        assert len(rows) == len(self.sizes) - 2
        with pytest.raises(ValueError, match="no row has the key 'n_ctx'"):
            without(self.sizes, "n_ctx")

    def test_fields_of_hook_api_1_0_work_on_with_a_warning(self):
        with pytest.warns(DeprecationWarning, match=r"'qkv_bias' .*since hook API 1.1 .*use 'q_bias' and 'k_bias' and"):
            table = ConfigTable((*self.sizes, Key("attention_bias", bool, ("qkv_bias", "o_bias"), default=False)))
        assert table.rows[-1].fields == (*QKV_BIAS, "o_bias")
        with pytest.warns(DeprecationWarning, match="'mlp_bias'"):
            assert ConfigTable(self.sizes, {"mlp_bias": True}).constants == dict.fromkeys(MLP_BIAS, True)
        with pytest.warns(DeprecationWarning, match="'mlp_bias'"):
            plain = ConfigTable(self.sizes, {"mlp": "plain", "mlp_bias": True})
        assert plain.constants == {"mlp": "plain", "up_bias": True, "down_bias": True}

    def test_values_that_a_field_does_not_have(self):
        spelled = Key("use_qk_norm", bool, "qk_norm", default=None, spellings={False: None, True: "perhead"})
        with pytest.raises(ConfigError, match="the spellings of 'use_qk_norm' give qk_norm='perhead', .*'per_head'"):
            ConfigTable((*self.sizes, spelled))
        with pytest.raises(ConfigError, match="the constants give norm='layernorm', which is not one of rms, layer"):
            ConfigTable(self.sizes, {"norm": "layernorm"})
        assert ConfigTable(self.sizes, {"norm": "my_package.layers:Norm"})
