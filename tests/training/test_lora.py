"""Adapters in every layout: as in one process, and only they change."""

from __future__ import annotations

import pytest
import torch

from tests.training.train_cases import LLAMA, Case, Run, all_on_ranks, assert_as_one_process, trained

CASES = [
    Case("tp4", "lora", n_layers=2, checkpointing="selective"),  # two KV heads on four ranks
    Case("tp4", "dora", n_layers=2, sequence_parallel=True),
    *(Case("fsdp2tp2", "dora", n_layers=2, zero=zero) for zero in (1, 3)),
    Case("tp2pp2", "lora", checkpointing="full"),
    Case("tp4", "lora-experts", sequence_parallel=True, checkpointing="selective"),
    Case("fsdp2pp2", "lora-experts", max_tokens=1),
    Case("dp2pp2", "lora", n_layers=2, objective="scores"),
]


@pytest.fixture(scope="module")
def runs() -> dict[Case, list[Run | None]]:
    return all_on_ranks(4, CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_gives_the_numbers_of_one_process(case: Case, runs: dict[Case, list[Run | None]]) -> None:
    assert_as_one_process(case, runs[case])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_adapters_have_gradients_state_and_updates(dtype: torch.dtype) -> None:
    engine = Case(None, "lora", dtype=dtype).engine()
    before = {name: tensor.clone() for name, tensor in engine.model.named_parameters()}
    trained_names = {name for name, each in engine.model.named_parameters() if each.requires_grad}
    assert trained_names == {name for name in before if "lora_" in name}
    run = trained(Case(None, "lora", dtype=dtype))
    for name, value in run.parameters.items():
        assert torch.equal(value, before[name]) == (name not in trained_names), name
        assert value.dtype == (torch.float32 if name in trained_names else dtype)


def test_a_critics_head_is_trained_too() -> None:
    model = Case(None, "lora", objective="scores").model()
    assert not model.head_weight.grad
    names = {name for name, each in model.named_parameters() if each.requires_grad and "lora_" not in name}
    assert names == {f"layers.{LLAMA.n_layers + 1}.out.weight"}
