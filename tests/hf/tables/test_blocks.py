"""Rows for what only some blocks have: which blocks these are, in both directions."""

from __future__ import annotations

from typing import Any

import pytest

from reallm.errors import ConfigError
from reallm.hf.tables import (
    AttentionInBlocks,
    ExpertBlocks,
    InBlocks,
    Key,
    LaterBlocks,
    ListedBlocks,
    Nested,
    RopeRow,
    WindowedBlocks,
    all_except_every,
    sliding_except_every,
    sliding_without,
)
from reallm.model.config import MoEConfig, ReaLModelConfig, RopeConfig

KNOWN = {"max_positions": 64, "head_dim": 8, "n_layers": 4}
ROPE = RopeConfig(theta=100.0)
LISTED = ListedBlocks("rope_layers", all_except_every(4, "interval"), older_keys=("interval",))


def no_blocks(raw: Any, known: Any) -> list[bool]:
    return [False] * known["n_layers"]


def config(**fields: Any) -> ReaLModelConfig:
    sizes = dict.fromkeys(("n_layers", "n_q_heads", "n_kv_heads"), 4)
    return ReaLModelConfig(
        **sizes, hidden_size=32, head_dim=8, intermediate_size=48, vocab_size=97, max_positions=64, **fields
    )


class TestInBlocks:
    row = InBlocks(RopeRow(default_theta=100.0), LISTED)

    def test_a_list_names_the_blocks(self):
        fields = self.row.read({"rope_layers": [1, 0, True, False]}, KNOWN)
        assert fields == {"rope": (ROPE, None, ROPE, None)}
        written = self.row.write(config(**fields), {})
        assert written["rope_layers"] == [1, 0, 1, 0]
        assert written["rope_parameters"] == {"rope_type": "default", "rope_theta": 100.0}

    def test_a_file_without_the_list_has_the_default_blocks(self):
        assert self.row.read({}, KNOWN) == {"rope": (ROPE, ROPE, ROPE, None)}
        assert self.row.read({"rope_layers": None, "interval": 2}, KNOWN) == {"rope": (ROPE, None, ROPE, None)}
        assert self.row.keys == ("rope_parameters", "rope_theta", "rope_scaling", "rope_layers", "interval")

    def test_all_blocks_and_no_block_are_one_value(self):
        assert self.row.read({"rope_layers": [1, 1, 1, 1, 0]}, KNOWN) == {"rope": ROPE}
        assert self.row.read({"rope_layers": [0] * 4}, KNOWN) == {"rope": None}
        assert self.row.write(config(rope=None), {}) == {"rope_layers": [0] * 4}

    def test_a_wrong_list_is_refused_by_its_key(self):
        with pytest.raises(ConfigError, match="rope_layers has 3 entries for 4 layers; give a list with one for each"):
            self.row.read({"rope_layers": [1, 0, 1]}, KNOWN)
        with pytest.raises(ConfigError, match="rope_layers is 3 for 4 layers"):
            self.row.read({"rope_layers": 3}, KNOWN)
        with pytest.raises(ConfigError, match="rope_layers has 2; supported are 1 and 0"):
            self.row.read({"rope_layers": [1, 2, 0, 0]}, KNOWN)

    @pytest.mark.parametrize("every", ["LLLG", -2, True, 2.0])
    def test_a_period_that_is_no_positive_integer_is_refused_by_its_key(self, every):
        for default in (all_except_every(4, "interval"), sliding_except_every(4, "interval")):
            with pytest.raises(ConfigError, match=f"interval={every!r} must be a positive integer"):
                default({"interval": every}, KNOWN)

    def test_two_values_cannot_be_expressed(self):
        with pytest.raises(ConfigError, match="cannot be expressed; blocks that have it share one"):
            self.row.write(config(rope=(ROPE, RopeConfig(theta=5.0), None, None)), {})

    def test_errors_name_the_keys_of_the_value(self):
        assert self.row.keys_by_field({"rope_scaling": {"factor": 2.0}})["rope.factor"] == "rope_scaling.factor"


WINDOWED = {**KNOWN, "sliding_window": (5, 5, 5, None)}


class TestWindowedBlocks:
    row = InBlocks(RopeRow(default_theta=100.0), WindowedBlocks())

    def test_the_blocks_are_those_with_a_window(self):
        fields = self.row.read({}, WINDOWED)
        assert fields == {"rope": (ROPE, ROPE, ROPE, None)}
        written = self.row.write(config(**fields, sliding_window=(5, 5, 5, None)), {})
        assert written.keys() == {"rope_parameters"}
        with pytest.raises(ConfigError, match=r"blocks \[0, 1, 2\] cannot be expressed; they must be those with a"):
            self.row.write(config(**fields), {})

    def test_without_windows_none_or_all_are(self):
        none = {**KNOWN, "sliding_window": None}
        assert self.row.read({}, none) == {"rope": None}
        row = InBlocks(self.row.row, WindowedBlocks(or_all=True))
        assert row.read({}, none) == {"rope": ROPE}
        assert row.read({}, WINDOWED) == {"rope": (ROPE, ROPE, ROPE, None)}

    def test_windows_may_follow_from_another_field_in_turn(self):
        types = sliding_without("rope")({}, {**KNOWN, "rope": (ROPE, None, ROPE, None)})
        assert types == ["full_attention", "sliding_attention"] * 2
        assert sliding_without("rope")({}, {**KNOWN, "rope": ROPE}) == ["full_attention"] * 4


class TestAttentionInBlocks:
    row = AttentionInBlocks("layers:Conv", ListedBlocks("layer_types", no_blocks, chosen="conv", other="full"))

    def test_a_list_says_which_blocks_have_another_layer(self):
        raw = {"layer_types": ["conv", "full", "conv", "conv"]}
        read = self.row.read(raw, KNOWN)
        assert read == {"attention": ("layers:Conv", "standard", "layers:Conv", "layers:Conv")}
        assert config(**read).custom_classes == {"layers:Conv": "attention"}
        assert self.row.write(config(**read), {}) == raw

    def test_blocks_that_are_all_alike_have_one_value(self):
        assert self.row.read({}, KNOWN) == {"attention": "standard"}
        assert self.row.read({"layer_types": ["conv"] * 4}, KNOWN) == {"attention": "layers:Conv"}

    def test_the_others_may_have_a_class_too(self):
        row = AttentionInBlocks("layers:Conv", LISTED, other="layers:Gated")
        assert row.read({"rope_layers": [0, 0, 1, 0]}, KNOWN)["attention"][2:] == ("layers:Conv", "layers:Gated")

    def test_a_third_kind_cannot_be_written(self):
        with pytest.raises(ConfigError, match="attention='layers:Gated' cannot be expressed; it must be 'layers:Conv'"):
            self.row.write(config(attention=("layers:Gated", *["standard"] * 3)), {})


class TestExpertBlocks:
    def row(self, blocks: Any) -> Nested:
        sizes = (Key("n", int, "n_experts", default=4), Key("k", int, "top_k", default=2))
        return Nested("moe", MoEConfig, (*sizes, ExpertBlocks(blocks)))

    @pytest.mark.parametrize(("first", "layers"), [(0, None), (3, (3,)), (4, ()), (9, ())])
    def test_the_first_blocks_are_dense(self, first, layers):
        row = self.row(LaterBlocks("first_k", default=1))
        assert row.read({}, KNOWN)["moe"].layers == (1, 2, 3)
        moe = row.read({"first_k": first}, KNOWN)["moe"]
        assert moe.layers == layers
        assert row.write(config(moe=moe), {})["first_k"] == min(first, 4)

    def test_only_the_first_can_be(self):
        row = self.row(LaterBlocks("first_k"))
        with pytest.raises(ConfigError, match=r"blocks \[0, 2\] cannot be expressed; 'first_k' only leaves out the"):
            row.write(config(moe=MoEConfig(4, 2, layers=(0, 2))), {})
        with pytest.raises(ConfigError, match="first_k='2' must be of type int"):
            row.read({"first_k": "2"}, KNOWN)

    def test_a_list_of_words_names_them(self):
        every = lambda raw, known: [True] * known["n_layers"]  # noqa: E731
        row = self.row(ListedBlocks("kinds", every, chosen="sparse", other="dense"))
        moe = row.read({"kinds": ["dense", "sparse", "sparse", "dense"]}, KNOWN)["moe"]
        assert moe.layers == (1, 2)
        assert row.write(config(moe=moe), {})["kinds"] == ["dense", "sparse", "sparse", "dense"]
        assert row.read({}, KNOWN)["moe"].layers is None
