"""A checkpoint that several ranks load together: a weight that is not finite fails on all; a vocabulary grows."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from reallm.engine.real_model import ReaLModel
from reallm.errors import CheckpointError
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from tests.helpers.hf_grid import raw_config, save_hf
from tests.helpers.ranks import on_ranks

DOWN = "model.layers.1.mlp.down_proj.weight"


def load(rank: int, layout: str, folder: Path) -> str:
    mesh = Mesh.of(layout)
    with pytest.raises(CheckpointError) as error:
        ReaLModel.from_pretrained(folder, mesh=mesh)
    return str(error.value)


@pytest.mark.parametrize("layout", ["dp2", "tp2", "pp2", "fsdp2", "tp2pp2"])
def test_all_ranks_fail_together(layout: str, tmp_path: Path) -> None:
    save_hf(raw_config("gqa"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[DOWN][-1, -1] = math.nan  # held by the last rank
    save_file(tensors, tmp_path / "model.safetensors")
    messages = set(on_ranks(max(Layout.parse(layout).ranks) + 1, load, layout, tmp_path))
    [message] = messages
    assert f"tensor '{DOWN}' has 1 of 1,536 values that are NaN or infinite" in message


def grown(rank: int, layout: str, folder: Path) -> bool:
    whole = ReaLModel.from_pretrained(folder, min_vocab_size=103, seed=2)
    model = ReaLModel.from_pretrained(folder, min_vocab_size=103, seed=2, mesh=Mesh.of(layout))
    tokens, bounds = torch.tensor([5, 102, 8, 99]), torch.tensor([0, 4], dtype=torch.int32)
    ours, theirs = (each.token_logprobs(tokens, bounds) for each in (model, whole))
    model.save_pretrained(folder / "saved")
    saved = ReaLModel.from_pretrained(folder / "saved").state_dict()
    return torch.allclose(ours, theirs, atol=1e-5) and all(
        torch.equal(tensor, saved[name]) for name, tensor in whole.state_dict().items()
    )


@pytest.mark.parametrize("name", ["gqa", "tied"])
@pytest.mark.parametrize("layout", ["tp2", "fsdp2", "tp2pp2"])
def test_a_vocabulary_grows_on_several_ranks(layout: str, name: str, tmp_path: Path) -> None:
    save_hf(raw_config(name), tmp_path)
    assert all(on_ranks(max(Layout.parse(layout).ranks) + 1, grown, layout, tmp_path))
