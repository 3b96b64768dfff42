"""A dataset that declares its keys is refused by an algorithm that needs others, before any data is read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from reallm.algorithms.graph import Graph
from reallm.builtin import reallm_algorithms
from reallm.errors import DataError
from reallm.experiments.preflight.checks import check_dataset_keys
from reallm.plugins import registry
from reallm.specs import DatasetSpec

GRAPH = Graph.from_calls(reallm_algorithms()["sft"].calls(None))
CONFIG: Any = SimpleNamespace(name="prompts")


@pytest.mark.parametrize("keys", [(), ("input_ids", "loss_mask"), ("loss_mask", "more", "input_ids")])
def test_a_dataset_with_the_keys_or_none_declared_will_do(monkeypatch: pytest.MonkeyPatch, keys: Any) -> None:
    monkeypatch.setattr(registry, "get", lambda kind, name: DatasetSpec("nowhere:A", "nowhere:B", keys=keys))
    check_dataset_keys(CONFIG, GRAPH)


def test_a_dataset_with_other_keys_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "get", lambda kind, name: DatasetSpec("nowhere:A", "nowhere:B", keys=("prompt_ids",)))
    with pytest.raises(DataError) as error:
        check_dataset_keys(CONFIG, GRAPH)
    assert str(error.value) == (
        "the call 'train' needs 'input_ids', which dataset 'prompts' does not give; it gives prompt_ids: choose "
        "another dataset.name"
    )
