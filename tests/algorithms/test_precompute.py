"""Outputs for all samples: batches by a budget of tokens, and a hash that every sample changes."""

from __future__ import annotations

import pytest
import torch

from reallm.algorithms.graph import Graph
from reallm.algorithms.precompute import input_hash, precompute
from reallm.data.batching import lengths
from reallm.data.namedarray import NamedArray, merge
from reallm.errors import PluginError
from reallm.specs import Algorithm, ModelFunctionCall

CALL = ModelFunctionCall("ref_inf", "ref", "inference", ("ids",), ("sums",), precompute=True)


class Rows(list):  # type: ignore[type-arg]
    """A dataset of given token ids."""

    def __getitem__(self, i: int, /) -> NamedArray:  # type: ignore[override]
        ids = torch.tensor(super().__getitem__(i))
        return NamedArray(ids=ids, other=ids).with_metadata(seqlens={"ids": [[len(ids)]], "other": [[len(ids)]]})


def sums(batch: NamedArray) -> NamedArray:
    parts = torch.split(batch["ids"], lengths(batch, "ids"))
    found = NamedArray(sums=torch.stack([part.sum() for part in parts]))
    return merge([batch, found.with_metadata(seqlens={"sums": [[1]] * len(parts)})])


def test_long_samples_come_first_and_results_in_order() -> None:
    rows = Rows([[1] * n for n in (3, 9, 4, 3)])
    done: list[tuple[int, int]] = []
    fields = precompute(CALL, rows, {"sums"}, sums, 7, lambda *counts: done.append(counts))
    assert [fields["sums"][i][0].item() for i in range(4)] == [3, 9, 4, 3]
    assert done == [(1, 9), (2, 7), (1, 3)]


def test_the_hash_changes_with_every_input_and_with_nothing_else() -> None:
    rows = [[i, i + 1, i + 2] for i in range(2000)]

    def hashed(rows: Rows) -> str:
        return input_hash(CALL, rows, lambda n: None)

    before = hashed(Rows(rows))
    assert hashed(Rows(rows)) == before
    assert hashed(Rows([*rows[:-1], [0, 0, 0]])) != before
    assert hashed(Rows([*rows[:777], [1], *rows[778:]])) != before
    assert hashed(Rows(rows[:-1])) != before


def test_an_output_must_be_a_tensor() -> None:
    def numpy_sums(batch: NamedArray) -> NamedArray:
        batch = sums(batch)
        return batch.with_fields(sums=batch["sums"].numpy())

    with pytest.raises(PluginError, match="'ref_inf' is precomputed, and its output 'sums' must be a tensor, not"):
        precompute(CALL, Rows([[1]]), set(), numpy_sums, 7, lambda *counts: None)


def test_what_a_step_makes_cannot_be_read_before_training() -> None:
    calls = (
        ModelFunctionCall("gen", "actor", "generate", ("prompt_ids",), ("ids",)),
        CALL,
        ModelFunctionCall("train", "actor", "train_step", ("ids", "sums")),
    )
    graph = Graph.from_calls(calls)
    assert graph.roles == ["actor", "ref"]
    assert graph.roles_of_steps == ["actor"]
    with pytest.raises(PluginError, match="'ref_inf' cannot be precomputed: it reads 'ids', which 'gen' writes anew"):
        Graph.of(Algorithm(object, calls, {}), None)
