"""Weights that are NaN or infinite are named: when they are read, or when mapped ones are first used."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reallm.checkpoint.finite import nonfinite_names
from reallm.config.optimizer import OptimizerConfig
from reallm.engine.real_model import ReaLModel
from reallm.errors import CheckpointError
from reallm.training.engine import TrainEngine
from tests.helpers.hf_grid import raw_config, save_hf

TOKENS, BOUNDS = torch.tensor([5, 3, 8, 1]), torch.tensor([0, 4], dtype=torch.int32)
UP = "model.layers.1.mlp.up_proj.weight"
NAMED = rf"model.safetensors: tensor '{UP}' has 3 of 1,536 values that are NaN or infinite; download or copy"


def damage(folder: Path, name: str, values: list[float]) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[7 : 7 + len(values)] = torch.tensor(values, dtype=tensors[name].dtype)
    save_file(tensors, folder / "model.safetensors")


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    save_hf(raw_config("gqa"), tmp_path)
    damage(tmp_path, UP, [math.nan, math.inf, -math.inf])
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_tensors_with_one_such_value_among_many(dtype: torch.dtype, value: float) -> None:
    tensors = {name: torch.randn(300, 7).to(dtype) * 1000 for name in ("a", "b", "c")}
    assert nonfinite_names(tensors) == []
    tensors["b"][299, 6] = value
    tensors["c"][0, 0] = value
    assert nonfinite_names({**tensors, "empty": torch.empty(0, 3)}) == ["b", "c"]


def test_what_is_converted_is_checked_when_it_is_read(damaged: Path) -> None:
    with pytest.raises(CheckpointError, match=NAMED):
        ReaLModel.from_pretrained(damaged, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    "use",
    [
        lambda model: model(TOKENS, BOUNDS),
        lambda model: model.generate([[1, 2]], max_new_tokens=1, stop_token_ids=[]),
        lambda model: model.token_logprobs(TOKENS, BOUNDS),
        lambda model: TrainEngine(model, OptimizerConfig(), 1, 100),
        lambda model: model.async_offload(),
    ],
)
def test_what_is_mapped_is_checked_when_it_is_first_used(damaged: Path, use: object) -> None:
    model = ReaLModel.from_pretrained(damaged)
    assert callable(use)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=NAMED):
            use(model)


def test_several_tensors_and_tensors_that_hold_several_parameters(tmp_path: Path) -> None:
    save_hf(raw_config("phi3"), tmp_path)
    fused = "model.layers.0.self_attn.qkv_proj.weight"
    damage(tmp_path, fused, [math.nan])
    with pytest.raises(CheckpointError, match=rf"'{fused}' has 1 of [\d,]+ values that are NaN or infinite; "):
        ReaLModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    damage(tmp_path, "model.norm.weight", [math.inf])
    damage(tmp_path, "lm_head.weight", [math.inf])
    with pytest.raises(CheckpointError, match=rf"'{fused}' has 1 .* infinite, and 2 more tensors as well; "):
        ReaLModel.from_pretrained(tmp_path, dtype=torch.bfloat16)


def test_one_expert_of_many_is_named(tmp_path: Path) -> None:
    save_hf(raw_config("mixtral"), tmp_path)
    name = next(name for name in load_file(tmp_path / "model.safetensors") if "experts.2.w1" in name)
    damage(tmp_path, name, [math.nan])
    with pytest.raises(CheckpointError, match=f"'{name}' has 1 of"):
        ReaLModel.from_pretrained(tmp_path)(TOKENS, BOUNDS)


def test_values_that_the_dtype_cannot_hold(tmp_path: Path) -> None:
    save_hf(raw_config("gqa"), tmp_path)
    damage(tmp_path, UP, [1e6])
    with pytest.raises(CheckpointError, match=rf"'{UP}' has values up to 1e\+06, too large for float16; load it as"):
        ReaLModel.from_pretrained(tmp_path, dtype=torch.float16)
    ReaLModel.from_pretrained(tmp_path)(TOKENS, BOUNDS)


def test_weights_that_somebody_has_changed_since_are_their_affair(tmp_path: Path) -> None:
    save_hf(raw_config("gqa"), tmp_path)
    model = ReaLModel.from_pretrained(tmp_path)
    with torch.no_grad():
        model.get_parameter("layers.1.mlp.up.weight").fill_(math.nan)
    assert model(TOKENS, BOUNDS).isnan().all()
