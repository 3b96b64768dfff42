"""A base model in 4 bits by bitsandbytes, against the same weights in float."""

from __future__ import annotations

import pytest
import torch

from reallm.config.lora import LoRAArgs
from reallm.engine.real_model import ReaLModel
from reallm.generation.config import GenerationConfig
from reallm.generation.generate import generate_tokens
from reallm.model.quantized import quantized_layers
from tests.helpers.hf_grid import raw_config, save_hf

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA GPU: run `tox run -e gpu` on a machine that has one"
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_are_those_of_the_dequantized_weights(tmp_path, dtype):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'reallm-core[qlora]'")
    save_hf(raw_config("all-biases-tied"), tmp_path)
    quantized, dense = (
        ReaLModel.from_pretrained(
            tmp_path, dtype=dtype, device="cuda", lora=LoRAArgs(rank=4, quantize_base=kind)
        ).train()
        for kind in ("nf4", None)
    )
    with torch.no_grad():
        for name, layer in quantized_layers(quantized.network).items():
            dense.get_parameter(name).copy_(layer.weight)
    tokens, cu_seqlens = torch.arange(60, device="cuda"), torch.tensor([0, 1, 60])
    for model in (quantized, dense):
        model.cross_entropy(model.hidden(tokens, cu_seqlens), tokens.roll(-1)).loss_sum.backward()
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(quantized(tokens, cu_seqlens), dense(tokens, cu_seqlens), rtol=tolerance, atol=tolerance)
    for name, parameter in quantized.named_parameters():
        if parameter.requires_grad:
            expected = dense.get_parameter(name).grad
            torch.testing.assert_close(
                parameter.grad, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max() + 1)
            )


def test_it_generates(tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'reallm-core[qlora]'")
    save_hf(raw_config("gqa"), tmp_path)
    model = ReaLModel.from_pretrained(
        tmp_path, dtype=torch.bfloat16, device="cuda", lora=LoRAArgs(rank=4, quantize_base="nf4")
    )
    config = GenerationConfig(max_new_tokens=20, temperature=0.0, stop_token_ids=())
    first, second = (generate_tokens(model.network, [[5, 9, 2], [3]], config) for _ in range(2))
    assert [each.token_ids for each in first] == [each.token_ids for each in second]
    assert all(len(each.token_ids) == 20 for each in first)
