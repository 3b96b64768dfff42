"""The decoding pass gives the bits of the general pass, where it covers a network, and is not taken elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from reallm.generation.config import GenerationConfig
from reallm.generation.decode_pass import DecodePass
from reallm.generation.engine import GenerationEngine
from reallm.generation.prepacking import FEW_STEPS
from reallm.generation.request import Completion, Request
from reallm.model.block import Block
from reallm.model.products import linear as products
from reallm.model.products import onednn
from reallm.model.transformer import Transformer
from tests.helpers.variants import BASE, VARIANTS, build

PROMPTS = [[5, 9, 2, 7], [3], [1, 8, 4], [6, 6], [4, 1, 2, 3, 4]]
GENERAL = {"experts", "gated output", "gated shared expert"}
"""Variants that the decoding pass does not cover."""
MORE = {
    "biases": BASE.replace(q_bias=True, v_bias=True, o_bias=True, up_bias=True, down_bias=True, init_std=0.3),
    "plain MLP": BASE.replace(mlp="plain", activation="gelu_tanh", norm="layer", norm_bias=True),
    "parallel branches, norms of their own": BASE.replace(parallel_residual=True, shared_norm=False),
    "residual multiplier": BASE.replace(residual_multiplier=0.3),
    "partial rotation": BASE.replace(rope=VARIANTS["rope of each block"].ropes[0]),
}


@pytest.fixture(autouse=True)
def _by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    if onednn.why_not_batch_invariant() or not onednn.adds_exactly():
        pytest.skip("needs oneDNN in torch, with rows that do not depend on each other")
    monkeypatch.setattr(products, "linear_backend", lambda: "onednn")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of sequences of each decoding pass."""
    sizes, hidden = [], DecodePass.hidden

    def noted(self, tokens, *arguments):
        sizes.append(len(tokens))
        return hidden(self, tokens, *arguments)

    monkeypatch.setattr(DecodePass, "hidden", noted)
    return sizes


def run(network: Transformer, n_prompts: int = len(PROMPTS), **options) -> list[Completion]:
    with GenerationEngine(network, **options) as engine:
        for key, prompt in enumerate(PROMPTS[:n_prompts]):
            config = GenerationConfig(max_new_tokens=FEW_STEPS - key, seed=3, stop_token_ids=())
            engine.add(Request(tuple(prompt), config, key=key))
        return engine.run()


def by_the_general_pass(network: Transformer, n_prompts: int = len(PROMPTS), **options) -> list[Completion]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecodePass, "is_possible", False)
        return run(network, n_prompts, **options)


@pytest.mark.parametrize("n_prompts", [1, 3, 5])
@pytest.mark.parametrize("variant", [*VARIANTS, *MORE])
def test_completions_are_those_of_the_general_pass_bit_for_bit(passes, variant, n_prompts):
    network = build((VARIANTS | MORE)[variant].replace(max_positions=24))
    with torch.no_grad():  # no bias of zeros, no norm of ones
        for number, parameter in enumerate(network.parameters()):
            if parameter.dim() < 2:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) / 4)
    expected = by_the_general_pass(network, n_prompts)
    assert not passes
    assert run(network, n_prompts) == expected
    assert (passes == []) == (variant in GENERAL)
    if passes:
        assert max(passes) == n_prompts


def test_a_hook_in_a_block_is_called(passes):
    network, calls = build(BASE), []
    with torch.no_grad():
        run(network)
        assert passes
        passes.clear()
        for name in ("attn.o", "mlp", ""):
            handle = network.layers["2"].get_submodule(name).register_forward_hook(lambda *call: calls.append(call))
            run(network)
            handle.remove()
            assert len(calls) >= FEW_STEPS
            calls.clear()
        with torch.nn.modules.module.register_module_forward_hook(lambda *call: calls.append(call)):
            run(network)
    assert calls
    assert not passes


def test_not_for_layers_of_another_class(passes):
    class OtherBlock(Block):
        pass

    network = build(BASE)
    network.layers["2"].__class__ = OtherBlock
    run(network)
    assert not passes


@pytest.mark.parametrize("variant", ["grouped heads", "sliding window", "plain MLP", "sandwich norms with an offset"])
def test_exact_completions_are_those_of_the_general_pass_too(passes, variant):
    network = build((VARIANTS | MORE)[variant].replace(max_positions=24))
    expected = by_the_general_pass(network, exact=True)
    assert not passes
    assert run(network, exact=True) == expected
    assert passes


def test_not_without_prepacked_weights(passes):
    with GenerationEngine(build(BASE)) as engine:
        engine.add(Request(tuple(PROMPTS[0]), GenerationConfig(max_new_tokens=FEW_STEPS - 1, stop_token_ids=())))
        engine.run()
    assert not passes
