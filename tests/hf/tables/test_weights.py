"""Names of tensors that depend on the configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from reallm.errors import ConfigError, PluginError
from reallm.hf.conversion.mapping import weight_mappings
from reallm.hf.family import HFFamily
from reallm.hf.tables import fused
from reallm_hf_llama.plugin import LLAMA
from tests.helpers.tiny_config import TINY

QKV = ("attn.q", "attn.k", "attn.v")


def with_block(**entries: Any) -> HFFamily:
    block = {name.replace("__", "."): entry for name, entry in entries.items()}
    return dataclasses.replace(LLAMA, weights=LLAMA.weights.updated(block=block))


def names(family: HFFamily, **changes: Any) -> set[str]:
    return {name for mapping in weight_mappings(family, TINY.replace(**changes)) for name in mapping.hf_names}


def test_a_name_may_follow_from_the_configuration():
    family = with_block(attn_norm=lambda config: "h.{}.wide" if config.hidden_size > 32 else "h.{}.narrow")
    assert "h.0.narrow.weight" in names(family)
    assert "h.0.wide.weight" in names(family, hidden_size=64)


def test_an_arrangement_may_too():
    block = {
        QKV: lambda config: fused("h.{}.qkv", groups="n_kv_heads" if config.n_kv_heads < config.n_q_heads else None)
    }
    family = dataclasses.replace(LLAMA, weights=LLAMA.weights.updated(block=block))
    for n_kv_heads, groups in ((2, "n_kv_heads"), (4, None)):
        config = TINY.replace(n_q_heads=4, n_kv_heads=n_kv_heads)
        (first, *_) = (one for one in weight_mappings(family, config) if one.hf_names == ("h.0.qkv.weight",))
        assert first.arrangement.groups == groups


def test_what_a_function_returns_is_checked_like_any_entry():
    with pytest.raises(PluginError, match=": weight table: 'model.* is the name of two modules, 'mlp.up' and"):
        names(with_block(mlp_norm=lambda config: "model.layers.{}.mlp.up_proj"))
    with pytest.raises(PluginError, match="'mlp_norm': the function raised AttributeError: .*no attribute 'normal'"):
        names(with_block(mlp_norm=lambda config: config.normal))
    with pytest.raises(ConfigError, match="'norm': only entries of block may be functions"):
        LLAMA.weights.updated(head={"norm": lambda config: "norm"})
