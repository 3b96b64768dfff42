"""Folders of adapters: written, read, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from reallm.config.lora import LoRAArgs
from reallm.engine.real_model import ReaLModel
from reallm.errors import CheckpointError, ConfigError
from reallm.parallel.mesh import Mesh
from tests.helpers.hf_grid import raw_config, save_hf
from tests.helpers.ranks import on_ranks

TOKENS, CU_SEQLENS = torch.arange(11) * 5, torch.tensor([0, 4, 11])


def with_values(model: ReaLModel) -> ReaLModel:
    """As if it had been trained."""
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            if "lora_b" in name:
                parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(number))
            if "lora_magnitude" in name:
                parameter.mul_(1.1)
    return model


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_hf(raw_config("gqa"), tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    with_values(ReaLModel.from_pretrained(base, lora=LoRAArgs(rank=4))).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("name", ["gqa", "gpt2", "phi3", "gemma3", "mixtral"])
@pytest.mark.parametrize("options", [{"rslora": True}, {"dora": True}], ids=str)
def test_saved_and_loaded_again(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    base, folder = tmp_path / "base", tmp_path / "adapter"
    save_hf(raw_config(name), base)
    if name == "mixtral" and options.get("dora"):
        options = {**options, "targets": ["q_proj", "o_proj"]}  # experts have no DoRA
    model = with_values(ReaLModel.from_pretrained(base, lora=LoRAArgs(rank=4, alpha=6, **options)))
    model.save_pretrained(folder)
    assert sorted(file.name for file in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    again = ReaLModel.from_pretrained(base, lora=LoRAArgs(path=str(folder)))
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    of_folder = ReaLModel.from_pretrained(folder)  # whose base is at hand
    expected = model(TOKENS, CU_SEQLENS)
    assert torch.equal(of_folder(TOKENS, CU_SEQLENS), expected)
    merged = of_folder.merged()
    assert merged.config == model.config.base
    torch.testing.assert_close(merged(TOKENS, CU_SEQLENS), expected, rtol=1e-4, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(ReaLModel.from_pretrained(tmp_path / "merged")(TOKENS, CU_SEQLENS), merged(TOKENS, CU_SEQLENS))


def test_a_critic_takes_its_head_along(base: Path, tmp_path: Path) -> None:
    model = with_values(ReaLModel.from_pretrained(base, is_critic=True, lora=LoRAArgs(rank=4)))
    torch.nn.init.normal_(model.head_weight)
    model.save_pretrained(tmp_path / "adapter")
    content = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (content["modules_to_save"], content["task_type"]) == (["score"], "SEQ_CLS")
    again = ReaLModel.from_pretrained(base, is_critic=True, lora=LoRAArgs(path=str(tmp_path / "adapter")))
    assert torch.equal(again(TOKENS, CU_SEQLENS), model(TOKENS, CU_SEQLENS))


def on_rank(rank: int, base: Path, folder: Path, layout: str) -> None:
    torch.set_num_threads(1)
    args = LoRAArgs(rank=4, dora=True)
    model = ReaLModel.from_pretrained(base, mesh=Mesh.of(layout), lora=args, seed=3)
    whole = ReaLModel.from_pretrained(base, lora=args, seed=3)
    for name, tensor in model.local_tensors().items():
        assert torch.equal(tensor, whole.get_parameter(name)[model.boxes[name].slices]), name
    model.save_pretrained(folder / "sharded")
    if rank == 0:
        whole.save_pretrained(folder / "whole")
        one, other = (load_file(folder / each / "adapter_model.safetensors") for each in ("sharded", "whole"))
        assert list(one) == list(other)
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("layout", ["fsdp2", "tp2", "pp2"])
def test_ranks_draw_and_save_what_one_process_does(base: Path, tmp_path: Path, layout: str) -> None:
    on_ranks(2, on_rank, base, tmp_path, layout)


class TestDamage:
    def read(self, base: Path, adapter: Path) -> None:
        ReaLModel.from_pretrained(base, lora=LoRAArgs(path=str(adapter)))

    def changed(self, adapter: Path, **tensors: torch.Tensor | None) -> None:
        file = adapter / "adapter_model.safetensors"
        found = {**load_file(file), **tensors}
        save_file({name: tensor for name, tensor in found.items() if tensor is not None}, file)

    NAME = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"

    def test_a_missing_tensor(self, base: Path, adapter: Path) -> None:
        self.changed(adapter, **{self.NAME: None})
        with pytest.raises(CheckpointError, match=rf"lacks '{self.NAME}'; copy the adapter again"):
            self.read(base, adapter)

    def test_another_shape(self, base: Path, adapter: Path) -> None:
        self.changed(adapter, **{self.NAME: torch.zeros(47, 4)})
        with pytest.raises(
            CheckpointError, match=r"has the shape \[47, 4\], not \[48, 4\]; it belongs to another model"
        ):
            self.read(base, adapter)

    def test_a_value_that_is_not_finite(self, base: Path, adapter: Path) -> None:
        self.changed(adapter, **{self.NAME: torch.full((48, 4), float("nan"))})
        with pytest.raises(CheckpointError, match=r"'layers.2.mlp.up.lora_b' has values that are NaN or infinite"):
            self.read(base, adapter)

    def test_a_tensor_that_is_no_part_of_it(self, base: Path, adapter: Path) -> None:
        self.changed(adapter, extra=torch.zeros(1))
        with pytest.raises(CheckpointError, match=r"has 'extra', which is not part of a LoRA adapter of this model"):
            self.read(base, adapter)

    def test_an_adapter_of_another_family(self, adapter: Path, tmp_path: Path) -> None:
        save_hf(raw_config("gpt2"), tmp_path / "gpt2")
        with pytest.raises(CheckpointError, match=r"the base model has no linear layer 'model.layers.0.mlp.down_proj'"):
            self.read(tmp_path / "gpt2", adapter)

    def test_no_weights(self, base: Path, adapter: Path) -> None:
        (adapter / "adapter_model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"holds no adapter_model.safetensors; save the adapter with"):
            self.read(base, adapter)

    def test_a_whole_model_as_adapter(self, base: Path) -> None:
        with pytest.raises(CheckpointError, match=r"holds no adapter \(no adapter_config.json\), but a whole model"):
            self.read(base, base)

    def test_a_base_that_is_not_at_hand(self, base: Path, adapter: Path, tmp_path: Path) -> None:
        base.rename(tmp_path / "elsewhere")
        with pytest.raises(CheckpointError, match=r"holds an adapter of '.*/base', not a whole model; give its base"):
            ReaLModel.from_pretrained(adapter)

    def test_an_adapter_on_an_adapter(self, adapter: Path) -> None:
        with pytest.raises(
            ConfigError, match=r"holds an adapter; give the folder of its base model together with lora"
        ):
            ReaLModel.from_pretrained(adapter, lora=LoRAArgs(rank=4))
