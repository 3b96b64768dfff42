"""Names and shapes of adapters in PEFT's format, from the tables of families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from reallm.errors import CheckpointError, ConfigError
from reallm.hf.conversion.adapter_config import adapter_config, read_adapter_config
from reallm.hf.conversion.adapter_modules import adaptable_modules, target_paths
from reallm.hf.conversion.adapter_tensors import adapter_tensors
from reallm.hf.conversion.config import config_from_hf
from reallm.hf.conversion.families import family_for
from reallm.hf.family import HFFamily
from reallm.model.config import ReaLModelConfig
from reallm.model.lora_config import LoRAConfig
from tests.helpers.hf_grid import raw_config


def of_grid(name: str) -> tuple[HFFamily, ReaLModelConfig]:
    raw = raw_config(name)
    family = family_for(raw, Path(name))
    return family, config_from_hf(family, raw)


def adapted(name: str, targets: Any = "all-linear", **options: Any) -> tuple[HFFamily, ReaLModelConfig]:
    family, config = of_grid(name)
    lora = LoRAConfig(4, 8.0, target_paths(family, config, targets), **options)
    return family, config.replace(lora=lora)


@pytest.mark.parametrize(
    ("name", "targets", "paths"),
    [
        ("gqa", "all-linear", "attn.q attn.k attn.v attn.o mlp.gate mlp.up mlp.down"),
        ("gqa", ["v_proj", "self_attn.q_proj"], "attn.q attn.v"),
        ("phi3", "qkv_proj", "attn.q attn.k attn.v"),
        ("phi3", ["gate_up_proj"], "mlp.gate mlp.up"),
        ("gpt2", "c_proj", "attn.o mlp.down"),
        ("gpt2", "attn.c_proj", "attn.o"),
        (
            "mixtral",
            "all-linear",
            "attn.q attn.k attn.v attn.o mlp.router mlp.experts.gate mlp.experts.up mlp.experts.down",
        ),
        ("mixtral", ["w1", "w3"], "mlp.experts.gate mlp.experts.up"),
        ("mixtral", "experts.w2", "mlp.experts.down"),
        ("qwen3-moe-dense-layer", "experts.gate_up_proj", "mlp.experts.gate mlp.experts.up"),
        ("qwen3-moe-dense-layer", "down_proj", "mlp.down mlp.experts.down"),
    ],
)
def test_targets_are_named_as_in_the_checkpoint(name: str, targets: Any, paths: str) -> None:
    family, config = of_grid(name)
    assert target_paths(family, config, targets) == tuple(paths.split())


def test_an_unknown_target_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^targets: 'q_prj' is not a linear layer of the model's blocks; did you mean 'q_proj'\?; they have "
        r"q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, and all-linear means all of them$",
    ):
        target_paths(*of_grid("gqa"), "q_prj")


def test_experts_that_peft_adapts_together_are_named_together() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^targets: 'block_sparse_moe.experts.gate_up_proj' holds 'w1', 'w3' together; give adapters to all",
    ):
        target_paths(*of_grid("mixtral"), "w1")


@pytest.mark.parametrize("targets", ["all-linear", ["gate_proj", "up_proj"], "down_proj"])
def test_stacked_matrices_are_in_one_tensor_and_come_back(targets: Any) -> None:
    for one in adapter_tensors(*adapted("qwen3-moe-dense-layer", targets)):
        parts = [torch.randn(shape) for shape in one.shapes]
        packed = one.pack(parts)
        assert tuple(packed.shape) == one.shape
        assert all(map(torch.equal, one.unpack(packed), parts))
        assert one.kind != "lora_b" or one.is_block_diagonal(packed)


def test_modules_that_are_called_like_experts_are_named_by_their_weights() -> None:
    content = adapter_config(*adapted("qwen3-moe-dense-layer", ["q_proj", "up_proj", "gate_proj"]), None)
    assert content["target_modules"] == ["q_proj"]
    assert content["target_parameters"] == ["gate_proj.weight", "gate_up_proj", "up_proj.weight"]
    with pytest.raises(ConfigError, match=r"^dora=true does not work with 'down_proj', 'down_proj.weight' of a model"):
        adapter_config(*adapted("qwen3-moe-dense-layer", "down_proj", dora=True), None)


@pytest.mark.parametrize("name", ["gqa", "gpt2", "phi3", "gemma3"])
@pytest.mark.parametrize("dora", [False, True])
def test_every_parameter_is_in_one_tensor_and_comes_back(name: str, dora: bool) -> None:
    family, config = adapted(name, dora=dora)
    tensors = adapter_tensors(family, config)
    parameters = [parameter for one in tensors for parameter in one.parameters]
    assert len(set(parameters)) == len(parameters) == len(config.lora.targets) * config.n_layers * (3 if dora else 2)  # type: ignore[union-attr]
    for one in tensors:
        parts = [torch.randn(shape) for shape in one.shapes]
        packed = one.pack(parts)
        assert tuple(packed.shape) == one.shape
        assert all(map(torch.equal, one.unpack(packed), parts))
    n_weights = {module.name for module in adaptable_modules(family, config)}
    assert len(tensors) == len(n_weights) * (3 if dora else 2)


def test_a_fused_projection_is_the_sum_of_its_parts() -> None:
    """`B @ A` of the fused adapter has the rows of each part's `B @ A`."""
    family, config = adapted("phi3", "qkv_proj")
    a, b = adapter_tensors(family, config)[:2]
    parts_a, parts_b = ([torch.randn(shape) for shape in one.shapes] for one in (a, b))
    whole = b.pack(parts_b) @ a.pack(parts_a)
    torch.testing.assert_close(whole, torch.cat([y @ x for x, y in zip(parts_a, parts_b, strict=True)]))
    # and one that PEFT has made, of the same rank for all parts together
    shared, stacked = torch.randn(4, 32), torch.cat(parts_b)
    assert all(torch.equal(part, shared) for part in a.unpack(shared))
    assert torch.equal(torch.cat(b.unpack(stacked)), stacked)


def test_the_configuration_in_pefts_words() -> None:
    content = adapter_config(*adapted("phi3", "qkv_proj", rslora=True), "org/base")
    assert (content["r"], content["lora_alpha"], content["use_rslora"], content["use_dora"]) == (4, 8, True, False)
    assert content["rank_pattern"] == {"qkv_proj": 12}
    assert content["alpha_pattern"]["qkv_proj"] / 12**0.5 == pytest.approx(8 / 4**0.5)
    assert (content["base_model_name_or_path"], content["task_type"]) == ("org/base", "CAUSAL_LM")
    assert adapter_config(*adapted("gpt2", "attn.c_proj"), None)["target_modules"] == ["attn.c_proj"]
    assert adapter_config(*adapted("gpt2"), None)["target_modules"] == ["c_attn", "c_proj", "c_fc"]
    assert adapter_config(*adapted("gpt2"), None)["fan_in_fan_out"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3'; only LORA, with or without DoRA, can be read"),
        ({"bias": "all"}, "bias='all'; only adapters that leave biases alone can be read"),
        (
            {"init_lora_weights": "pissa_niter_4"},
            "init_lora_weights='pissa_niter_4' has changed the base model as well",
        ),
        ({"layer_replication": [[0, 4]]}, "layer_replication=.* is not supported; merge the adapter with peft"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, **changes}))
    with pytest.raises(CheckpointError, match=message):
        read_adapter_config(tmp_path)
