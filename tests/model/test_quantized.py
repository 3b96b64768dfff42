"""Linear layers with their weight in 4 bits: outputs, gradients, what is a parameter, what is refused."""

from __future__ import annotations

import pytest
import torch

from reallm.errors import ConfigError
from reallm.model.adapted import adapters_off
from reallm.model.config import MoEConfig
from reallm.model.exact import why_not_exact
from reallm.model.layers import Linear
from reallm.model.lora import LoRALinear
from reallm.model.lora_config import LoRAConfig
from reallm.model.parameters import n_parameters, n_trained
from reallm.model.quantized import QuantizedLinear, QuantizedLoRALinear, quantized_layers
from reallm.model.transformer import Transformer
from tests.helpers.nf4 import HALF_GAP, ReferenceWeight
from tests.helpers.tiny_config import TINY

LORA = LoRAConfig(4, 6.0, ("attn.q", "mlp.down"), quantize_base="nf4")
CONFIG = TINY.replace(lora=LORA)
DENSE = TINY.replace(lora=LoRAConfig(4, 6.0, LORA.targets))


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def adapted(dropout: float = 0.0) -> tuple[QuantizedLoRALinear, torch.Tensor]:
    """A layer with values, and its dequantized weight."""
    base = LoRALinear(Linear(64, 8, bias=True, split="column"), LoRAConfig(3, 6.0, ("attn.q",), dropout))
    for number, parameter in enumerate(base.parameters()):
        parameter.data = random(*parameter.shape, seed=number)
    layer = QuantizedLoRALinear(base)
    layer.bias.requires_grad_(False)
    layer.quantized = ReferenceWeight.of(base.weight)
    return layer, layer.weight


def test_the_quantizer_of_these_tests_errs_by_no_more_than_its_table() -> None:
    weight = random(48, 64)
    found = ReferenceWeight.of(weight).dequantize()
    largest = weight.abs().amax(dim=1, keepdim=True)  # a row is a block
    assert bool(((found - weight).abs() <= (HALF_GAP + 0.01) * largest).all())
    assert float((found - weight).norm() / weight.norm()) < 0.1


def test_outputs_and_gradients_are_those_of_the_dequantized_weight() -> None:
    layer, weight = adapted()
    x = random(5, 64, seed=9).requires_grad_()
    expected = x @ (weight + 2.0 * layer.lora_b @ layer.lora_a).T + layer.bias
    wanted, cotangent = [x, layer.lora_a, layer.lora_b], random(5, 8, seed=10)
    for ours, theirs in zip(
        torch.autograd.grad(layer(x), wanted, cotangent), torch.autograd.grad(expected, wanted, cotangent), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)  # sums of 64 and 8 numbers, in another order
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-4)
    with adapters_off(layer):
        torch.testing.assert_close(layer(x), x @ weight.T + layer.bias, rtol=1e-5, atol=1e-4)


def test_gradients_reach_only_the_adapter() -> None:
    layer, _ = adapted()
    layer(random(5, 64)).square().sum().backward()  # inputs without gradients, as of the first block
    assert {name for name, each in layer.named_parameters() if each.grad is not None} == {"lora_a", "lora_b"}
    assert {name for name, _ in layer.named_parameters()} == {"bias", "lora_a", "lora_b"}


def test_dropout_is_of_the_adapters_inputs_alone() -> None:
    layer, weight = adapted(dropout=0.5)
    x = random(64, 64, seed=9)
    torch.manual_seed(7)
    out = layer.train()(x)
    torch.manual_seed(7)
    left = torch.nn.functional.dropout(x, 0.5)
    expected = x @ weight.T + layer.bias + 2.0 * left @ layer.lora_a.T @ layer.lora_b.T
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-3)


def test_adapters_are_float32_beside_a_base_in_half_precision() -> None:
    layer, _ = adapted()
    layer.bfloat16()
    layer.quantized = ReferenceWeight.of(random(8, 64).bfloat16())
    assert {layer.lora_a.dtype, layer.lora_b.dtype} == {torch.float32}
    assert layer(random(5, 64).bfloat16()).dtype == torch.bfloat16


def test_all_linear_layers_of_blocks_and_nothing_else_are_quantized() -> None:
    network = Transformer(CONFIG)
    linear = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down")
    assert set(quantized_layers(network)) == {f"layers.{n}.{path}.weight" for n in (1, 2) for path in linear}
    others = {name for name, _ in Transformer(DENSE).named_parameters()} - set(quantized_layers(network))
    assert {name for name, _ in network.named_parameters()} == others
    for path, module in network.named_modules():
        if isinstance(module, QuantizedLinear):
            assert isinstance(module, QuantizedLoRALinear) == path.endswith(LORA.targets)
    assert n_parameters(CONFIG) == n_parameters(DENSE)  # quantized or not
    assert (
        n_trained(CONFIG)
        == n_trained(DENSE)
        == sum(each.numel() for each in network.parameters() if each.requires_grad)
    )


def test_what_does_not_work_with_it() -> None:
    with pytest.raises(ConfigError, match=r"^quantize_base=nf4 does not quantize experts"):
        Transformer(CONFIG.replace(moe=MoEConfig(4, 2, 16), lora=LoRAConfig(4, 6.0, ("attn.q",), quantize_base="nf4")))
    with pytest.raises(ConfigError, match=r"^quantize_base=nf4 does not work with dora; leave one of the two out"):
        LoRAConfig(4, 6.0, ("attn.q",), dora=True, quantize_base="nf4")
    with pytest.raises(ConfigError, match=r"^quantize_base='int3' is not nf4"):
        LoRAConfig(4, 6.0, ("attn.q",), quantize_base="int3")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^model.compile=true does not work with a base model in 4 bits"):
        Transformer(CONFIG).compile_blocks()
    assert why_not_exact(Transformer(CONFIG)) == "the base model is in 4 bits"
