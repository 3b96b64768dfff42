"""Adapters of linear layers: their products, gradients, initial values and dtypes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from reallm.errors import ConfigError
from reallm.model.adapted import adapters_off
from reallm.model.layers import Linear
from reallm.model.lora import LoRALinear
from reallm.model.lora_config import LoRAConfig
from reallm.model.parameters import n_parameters, n_trained
from reallm.model.transformer import Transformer
from tests.helpers.tiny_config import TINY

LORA = LoRAConfig(4, 6.0, ("attn.q", "mlp.down"))
TOKENS, CU_SEQLENS = torch.arange(11), torch.tensor([0, 4, 11])


def layer(bias: bool = True, **options: object) -> LoRALinear:
    generator = torch.Generator().manual_seed(1)
    made = LoRALinear(Linear(12, 8, bias=bias, split="column"), LoRAConfig(3, 6.0, ("attn.q",), **options)).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return made


def adapted(one: LoRALinear) -> Tensor:
    """The weight by its formula."""
    weight = one.weight + one.scaling * one.lora_b @ one.lora_a
    if one.lora_magnitude is None:
        return weight
    return weight / weight.norm(dim=1, keepdim=True).detach() * one.lora_magnitude[:, None]


@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"dora": True}], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_the_formula(options: dict[str, bool], bias: bool) -> None:
    one = layer(bias, **options)
    assert one.scaling == 6.0 / (math.sqrt(3) if options.get("rslora") else 3)
    x = torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    expected = x @ adapted(one).T + (0 if one.bias is None else one.bias)
    wanted = [x, *(each for name, each in one.named_parameters() if "lora" in name)]
    cotangent = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for ours, theirs in zip(
        torch.autograd.grad(one(x), wanted, cotangent), torch.autograd.grad(expected, wanted, cotangent), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(one(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.merged_weight(), adapted(one).detach(), rtol=1e-12, atol=1e-12)


def test_dropout_is_of_the_adapters_inputs_alone_and_in_training_alone() -> None:
    one = layer(False, dropout=0.5)
    x = torch.randn(64, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(one.eval()(x), x @ adapted(one).T)
    torch.manual_seed(7)
    out = one.train()(x)
    torch.manual_seed(7)
    left = torch.nn.functional.dropout(x, 0.5)
    torch.testing.assert_close(out, x @ one.weight.T + one.scaling * left @ one.lora_a.T @ one.lora_b.T)


def test_the_base_has_the_bits_that_it_has_without_adapters() -> None:
    base, network = Transformer(TINY), Transformer(TINY.replace(lora=LORA))
    base.init_weights(3)
    network.init_weights(3)
    state = network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in base.state_dict().items())
    expected = base(TOKENS, CU_SEQLENS)
    torch.testing.assert_close(network(TOKENS, CU_SEQLENS), expected, rtol=0, atol=1e-6)  # B is zero
    for module in network.modules():
        if isinstance(module, LoRALinear):
            bound = 1 / math.sqrt(module.in_features)
            assert not module.lora_b.any()
            assert 0.8 * bound < module.lora_a.abs().max() <= bound
            torch.nn.init.ones_(module.lora_b)
    assert not torch.allclose(network(TOKENS, CU_SEQLENS), expected)
    with adapters_off(network):
        assert torch.equal(network(TOKENS, CU_SEQLENS), expected)
    assert not torch.allclose(network(TOKENS, CU_SEQLENS), expected)


def test_adapters_stay_in_float32_whatever_the_base() -> None:
    network = Transformer(TINY.replace(lora=LORA))
    network.init_weights(3)
    drawn = network.get_parameter("layers.1.attn.q.lora_a").detach().clone()
    network.to(torch.bfloat16)
    assert {each.dtype for name, each in network.named_parameters() if "lora" not in name} == {torch.bfloat16}
    assert torch.equal(network.get_parameter("layers.1.attn.q.lora_a"), drawn)
    network(TOKENS, CU_SEQLENS).float().sum().backward()
    gradients = {name: each.grad for name, each in network.named_parameters() if each.grad is not None}
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}
    assert len(gradients) == 2 * 2 * TINY.n_layers


def test_what_is_trained_is_counted() -> None:
    config = TINY.replace(lora=LORA)
    of_block = 4 * (32 + 32) + 4 * (48 + 32)
    assert n_trained(config) == 2 * of_block
    assert n_parameters(config) == n_parameters(TINY) + 2 * of_block
    assert n_trained(TINY) == n_parameters(TINY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, r"^rank=0 must be a whole number of at least 1"),
        ({"alpha": 0.0}, r"^alpha=0.0 must be greater than 0"),
        ({"alpha": math.nan}, r"^alpha=nan must be greater than 0"),
        ({"alpha": math.inf}, r"^alpha=inf must be greater than 0, and at most 1e\+09"),
        ({"alpha": 1e300}, r"^alpha=1e\+300 must be greater than 0, and at most 1e\+09"),
        ({"dropout": 1.0}, r"^dropout=1.0 must be at least 0 and less than 1"),
        ({"targets": ()}, r"^targets=\(\) must be a tuple with at least one linear layer"),
    ],
)
def test_values_that_are_not_allowed(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoRAConfig(**{"rank": 4, "alpha": 8.0, "targets": ("attn.q",), **changes})  # type: ignore[arg-type]


def test_a_layer_that_no_block_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^lora.targets has 'attn.x', which no block has as a linear layer"):
        Transformer(TINY.replace(lora=LoRAConfig(4, 8.0, ("attn.q", "attn.x"))))
