"""Adapters of experts: outputs and gradients are those of experts with the merged weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reallm.errors import ConfigError
from reallm.model.adapted import AdaptedLayer, adapters_off
from reallm.model.config import MoEConfig
from reallm.model.lora_config import LoRAConfig
from reallm.model.transformer import Transformer
from tests.helpers.tiny_config import TINY

MOE = TINY.replace(moe=MoEConfig(4, 2, 24))
PATHS = ("mlp.router", "mlp.experts.gate", "mlp.experts.up", "mlp.experts.down")
TOKENS, CU_SEQLENS = torch.arange(11), torch.tensor([0, 4, 11])


def network(*targets: str, dtype: torch.dtype = torch.float64) -> Transformer:
    made = Transformer(MOE.replace(lora=LoRAConfig(3, 6.0, targets))).to(dtype)
    made.init_weights(3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (each for each in made.parameters() if each.requires_grad):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made


def merged(adapted: Transformer) -> tuple[Transformer, dict[str, Tensor]]:
    """The network with weights `W + scaling * B @ A`, and these as functions of A and B."""
    weights = {
        f"{path}.weight": layer.weight.detach() + layer.scaling * layer.lora_b @ layer.lora_a
        for path, layer in adapted.named_modules()
        if isinstance(layer, AdaptedLayer)
    }
    plain = Transformer(MOE).to(next(adapted.parameters()).dtype)
    state = adapted.state_dict()
    plain.load_state_dict({name: weights.get(name, state[name]).detach() for name in plain.state_dict()})
    return plain, weights


@pytest.mark.parametrize("targets", [PATHS, PATHS[1:3], PATHS[3:]], ids=len)
def test_outputs_and_gradients_are_those_of_the_merged_weights(targets: tuple[str, ...]) -> None:
    adapted = network(*targets).train()
    plain, weights = merged(adapted)
    cotangent = torch.randn(11, MOE.vocab_size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    out, expected = adapted(TOKENS, CU_SEQLENS), plain(TOKENS, CU_SEQLENS)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    (out * cotangent).sum().backward()
    (expected * cotangent).sum().backward()
    trained = {name: each for name, each in adapted.named_parameters() if each.requires_grad}
    assert len(trained) == 2 * MOE.n_layers * len(targets)
    wanted = torch.autograd.grad(
        list(weights.values()), list(trained.values()), [plain.get_parameter(name).grad for name in weights]
    )
    for (name, parameter), gradient in zip(trained.items(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-10, msg=name)
    with torch.no_grad():
        assert torch.equal(adapted(TOKENS, CU_SEQLENS), out)


def test_without_their_adapters_experts_are_those_of_the_base() -> None:
    adapted = network(*PATHS)
    base = Transformer(MOE).double()
    base.init_weights(3)
    assert not torch.allclose(adapted(TOKENS, CU_SEQLENS), base(TOKENS, CU_SEQLENS))
    with adapters_off(adapted):
        assert torch.equal(adapted(TOKENS, CU_SEQLENS), base(TOKENS, CU_SEQLENS))


def test_adapters_of_a_network_in_bfloat16_are_trained_in_float32() -> None:
    adapted = network(*PATHS, dtype=torch.bfloat16).train()
    adapted(TOKENS, CU_SEQLENS).float().sum().backward()
    gradients = [each.grad for each in adapted.parameters() if each.grad is not None]
    assert len(gradients) == 2 * MOE.n_layers * len(PATHS)
    assert {gradient.dtype for gradient in gradients} == {torch.float32}


@pytest.mark.parametrize("options", [{"dora": True}, {"dropout": 0.5}], ids=str)
@pytest.mark.parametrize("path", ["mlp.router", "mlp.experts.up"])
def test_what_adapters_of_experts_cannot_have(path: str, options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=rf"^{name}=.* does not work with adapters of \w+, in PEFT neither"):
        Transformer(MOE.replace(lora=LoRAConfig(3, 6.0, (path,), **options)))  # type: ignore[arg-type]
