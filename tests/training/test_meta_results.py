"""Results of operations on the meta device: of the shape, dtype and strides that torch's own kernels for it give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from reallm.training.meta_results import result_on_meta
from tests.helpers.imports import imported_by

aten = torch.ops.aten


def _x(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _indices(*shape: int) -> Tensor:
    return _x(*shape, dtype=torch.int64)


QUERIES = _x(7, 4, 8).transpose(0, 1).unsqueeze(0)  # as attention gets them: [sequences, heads, tokens, dims]
FLASH, FLASH_BACKWARD = (
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten._scaled_dot_product_flash_attention_for_cpu_backward,
)
CASES: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "arange": (aten.arange.start_step, (2, 9, 3), {"device": torch.device("meta")}),
    "argmax": (aten.argmax.default, (_x(5, 6), -1), {}),
    "argmax of all": (aten.argmax.default, (_x(5, 6),), {}),
    "attention": (FLASH.default, (QUERIES, QUERIES, QUERIES, 0.0, True), {"scale": 1.0}),
    "cat": (aten.cat.default, ([_x(2, 3), _x(2, 4)], 1), {}),
    "embedding": (aten.embedding.default, (_x(11, 6), _indices(5)), {}),
    "gather": (aten.gather.default, (_x(5, 6), 1, _indices(5, 2)), {}),
    "index": (aten.index.Tensor, (_x(5, 6, 7), [_indices(3)]), {}),
    "index of two dims": (aten.index.Tensor, (_x(5, 6, 7), [_indices(3, 1), _indices(4)]), {}),
    "index_put": (aten.index_put.default, (_x(5, 6), [_indices(3)], _x(3, 6), True), {}),
    "log_softmax": (aten._log_softmax.default, (_x(5, 6, dtype=torch.float32), -1, False), {}),
    "masked_fill_": (aten.masked_fill_.Scalar, (_x(5, 6), _x(5, 6, dtype=torch.bool), 0.0), {}),
    "mean": (aten.mean.default, (_x(5, 6),), {}),
    "mm": (aten.mm.default, (_x(5, 6), _x(6, 7)), {}),
    "roll": (aten.roll.default, (_x(5, 6), [3], [-1]), {}),
    "select_backward": (aten.select_backward.default, (_x(5), [5, 6], 1, 2), {}),
    "slice_backward": (aten.slice_backward.default, (_x(2, 6), [5, 6], 0, 1, 3, 1), {}),
    "softmax": (aten._softmax.default, (_x(5, 6), -1, False), {}),
    "softmax's gradient": (aten._softmax_backward_data.default, (_x(5, 6), _x(5, 6), -1, torch.bfloat16), {}),
    "sum": (aten.sum.default, (_x(5, 6),), {}),
    "sum of a dim": (aten.sum.dim_IntList, (_x(5, 6), [1], True), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_known_result_is_that_of_torch(case: str) -> None:
    operation, args, kwargs = CASES[case]
    _assert_alike(result_on_meta(operation, args, kwargs), operation(*args, **kwargs))


def test_gradients_of_attention_are_those_of_torch() -> None:
    out, sums = FLASH.default(QUERIES, QUERIES, QUERIES)
    args = (out, QUERIES, QUERIES, QUERIES, out, sums, 0.0, True)
    _assert_alike(result_on_meta(FLASH_BACKWARD.default, args, {}), FLASH_BACKWARD.default(*args))


@pytest.mark.parametrize(
    "unknown",
    [
        lambda: aten.index.Tensor(_x(5, 6), [_x(5, dtype=torch.int64), None]),
        lambda: aten.arange.start_step(0.0, 1.0, 0.25, device="meta"),
        lambda: aten.sum.default(_indices(3)),
    ],
)
def test_of_others_it_says_that_it_does_not_know(unknown: Callable[[], Tensor]) -> None:
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert result_on_meta(func, args, kwargs or {}) is None
            return func(*args, **(kwargs or {}))

    with Mode():
        unknown()


def test_tracing_imports_neither_sympy_nor_the_compiler() -> None:
    program = """
import torch
from reallm import ReaLModelConfig
from reallm.training.memory import activation_peaks

sizes = {"n_layers": 3, "hidden_size": 8, "intermediate_size": 8, "n_q_heads": 1, "n_kv_heads": 1, "head_dim": 8}
config = ReaLModelConfig(**sizes, vocab_size=16, max_positions=16)
for is_critic in (False, True):
    for how in ("none", "full", None):
        peaks = activation_peaks(config.replace(is_critic=is_critic), torch.bfloat16, torch.device("meta"), [8], how)
        assert peaks is not None
"""
    assert imported_by(program, "sympy", "torch._dynamo") == []


def _assert_alike(found: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        found, expected = (found,), (expected,)
    for ours, torchs in zip(found, expected, strict=True):
        assert (ours.shape, ours.dtype, ours.device) == (torchs.shape, torchs.dtype, torchs.device)
        dims = [dim for dim in range(ours.dim()) if ours.shape[dim] > 1]  # the strides of others mean nothing
        assert [ours.stride(dim) for dim in dims] == [torchs.stride(dim) for dim in dims]
