"""What bitsandbytes is asked for, and what is said where it cannot be used."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from reallm.errors import ConfigError
from reallm.model.products.nf4 import NF4Weight, nf4_bytes, nf4_quantizer
from tests.helpers.nf4 import ReferenceWeight

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_where_it_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for device, dtype, message in [
        (CPU, torch.float32, r"^quantize_base=nf4 needs a CUDA GPU, and the device is cpu; leave it out$"),
        (CUDA, torch.float64, r"^quantize_base=nf4 does not work with torch.float64; load the model as bfloat16 or"),
        (CUDA, torch.bfloat16, r"^quantize_base=nf4 needs bitsandbytes: pip install 'reallm-core\[qlora\]'$"),
    ]:
        with pytest.raises(ConfigError, match=message):
            nf4_quantizer(device, dtype)


def test_bitsandbytes_is_asked_for_what_the_paper_has(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def quantize_4bit(weight: torch.Tensor, **options: Any) -> tuple[torch.Tensor, SimpleNamespace]:
        assert weight.is_contiguous()
        asked.update(options)
        return torch.empty(weight.numel() // 2, 1, dtype=torch.uint8), SimpleNamespace(weight=weight)

    def matmul_4bit(x: torch.Tensor, packed: torch.Tensor, state: Any, *, bias: torch.Tensor | None) -> torch.Tensor:
        return torch.nn.functional.linear(x, state.weight, bias)

    package, functional = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.functional")
    vars(package).update(matmul_4bit=matmul_4bit, functional=functional)
    vars(functional).update(quantize_4bit=quantize_4bit, dequantize_4bit=lambda packed, state: state.weight)
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", functional)
    weight, x, bias = torch.randn(64, 8).T, torch.randn(3, 64), torch.randn(8)
    made = nf4_quantizer(CUDA, torch.float32)(weight)
    assert isinstance(made, NF4Weight)
    assert asked == {"blocksize": 64, "compress_statistics": True, "quant_type": "nf4"}
    torch.testing.assert_close(made.linear(x, bias), x @ weight.T + bias)
    assert torch.equal(made.dequantize(), weight)


@pytest.mark.parametrize("shape", [(64, 64), (256, 512)])
def test_bytes_are_those_of_codes_and_both_kinds_of_scales(shape: tuple[int, int]) -> None:
    n = shape[0] * shape[1]
    assert nf4_bytes(n) == ReferenceWeight.of(torch.randn(shape)).nbytes
    assert 8 * nf4_bytes(n) == pytest.approx((4 + 8 / 64 + 32 / (64 * 256)) * n, rel=1e-2)  # bits, as in the paper
    assert nf4_bytes(n) < 4 * n / 7.7


def test_the_real_one_errs_as_little_as_the_one_of_these_tests() -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'reallm-core[qlora]'")
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(1))
    made, reference = NF4Weight.of(weight), ReferenceWeight.of(weight)
    # scales have 8 bits of another kind
    torch.testing.assert_close(made.dequantize(), reference.dequantize(), rtol=0.05, atol=0.01)
    x, bias = torch.randn(5, 128, requires_grad=True), torch.randn(96)
    expected = torch.nn.functional.linear(x, made.dequantize(), bias)
    torch.testing.assert_close(made.linear(x, bias), expected, rtol=1e-4, atol=1e-4)
    cotangent = torch.randn(5, 96)
    ours, theirs = (torch.autograd.grad(out, x, cotangent)[0] for out in (made.linear(x, bias), expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
