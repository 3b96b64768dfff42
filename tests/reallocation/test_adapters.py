"""A model with adapters in another layout: only what is trained moves again, and offloading changes nothing."""

from __future__ import annotations

import pytest
import torch

from reallm.engine.real_model import ReaLModel
from reallm.model.config import MoEConfig, ReaLModelConfig
from reallm.model.lora_config import LoRAConfig
from reallm.parallel.mesh import Mesh
from tests.helpers.ranks import on_ranks
from tests.helpers.tiny_config import TINY

DENSE = TINY.replace(lora=LoRAConfig(4, 8.0, ("attn.q", "attn.o", "mlp.down")))
EXPERTS = TINY.replace(
    moe=MoEConfig(4, 2, 24), lora=LoRAConfig(2, 8.0, ("mlp.router", "mlp.experts.up", "mlp.experts.down"))
)
TOKENS, CU_SEQLENS = torch.arange(11), torch.tensor([0, 4, 11])


def moved_twice(rank: int, config: ReaLModelConfig, source: str, target: str) -> list[int]:
    """Bytes that the ranks receive in the first move, and in the second, after the adapters have changed."""
    torch.set_num_threads(1)
    model = ReaLModel(config, seed=3, mesh=Mesh.of(source), dtype=torch.bfloat16)
    copy, received = None, []
    for turn in range(2):
        with torch.no_grad():
            for name, tensor in model.local_tensors().items():
                if "lora_b" in name:
                    tensor.fill_(0.1 * (turn + 1))
        copy = model.reallocate(target, into=copy)
        assert copy.moved is not None
        received.append(copy.moved.bytes_received)
        expected = ReaLModel(config, seed=3, dtype=torch.bfloat16).local_tensors()
        for name, tensor in copy.local_tensors().items():
            wanted = torch.full_like(expected[name], 0.1 * (turn + 1)) if "lora_b" in name else expected[name]
            assert torch.equal(tensor, wanted[copy.boxes[name].slices]), name
            assert tensor.dtype == (torch.float32 if "lora_" in name else torch.bfloat16)
    return received


@pytest.mark.parametrize(
    ("config", "source", "target"), [(DENSE, "tp2", "dp2"), (DENSE, "fsdp2", "tp2"), (EXPERTS, "pp2", "tp2")]
)
def test_only_adapters_move_again(config: ReaLModelConfig, source: str, target: str) -> None:
    for first, second in on_ranks(2, moved_twice, config, source, target):
        assert 0 < second < first / 2  # of so small a model the adapters are a large part


def with_other_adapter(rank: int, layout: str) -> list[bool]:
    """Whether each parameter is the other adapter's meanwhile, and its own afterwards; some are offloaded before."""
    torch.set_num_threads(1)
    model = ReaLModel(DENSE, seed=3, mesh=Mesh.of(layout))
    own = {name: tensor.clone() for name, tensor in model.local_tensors().items()}
    other = {name: tensor + 0.5 for name, tensor in own.items() if "lora_" in name}
    kept = {name: tensor.clone() for name, tensor in other.items()}
    model.async_offload()
    model.wait_for_offload()
    with model.other_adapter(other):
        during = {name: tensor.clone() for name, tensor in model.local_tensors().items()}
    after = model.local_tensors()
    return [
        *(torch.equal(tensor, (own | kept)[name]) for name, tensor in during.items()),
        *(torch.equal(tensor, own[name]) for name, tensor in after.items()),
        *(torch.equal(tensor, kept[name]) for name, tensor in other.items()),
    ]


@pytest.mark.parametrize("layout", ["fsdp2", "pp2", "tp2"])
def test_another_adapter_takes_the_place_of_the_models_for_a_while(layout: str) -> None:
    for found in on_ranks(2, with_other_adapter, layout):
        assert found
        assert all(found)


def test_an_offloaded_model_computes_the_same() -> None:
    model = ReaLModel(DENSE, seed=3)
    expected = model(TOKENS, CU_SEQLENS)
    model.async_offload()
    model.wait_for_offload()
    assert torch.equal(model(TOKENS, CU_SEQLENS), expected)
