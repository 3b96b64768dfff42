"""Exact mode of a network: entered where a probe finds nothing against it, refused with the reason elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from reallm.errors import ConfigError
from reallm.model import exact
from reallm.model.exact import ExactMode, why_not_exact
from reallm.model.products import linear as products
from reallm.model.products.onednn import why_not_batch_invariant
from reallm.model.transformer import Transformer
from tests.helpers.variants import BASE, VARIANTS, build

needs_exact = pytest.mark.skipif(
    why_not_exact(build(BASE)) is not None, reason=f"not exact on this machine: {why_not_exact(build(BASE))}"
)


class BatchMeanMLP(nn.Module):
    """An MLP that looks at all tokens of a pass."""

    def __init__(self, config: object, block: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, context: object) -> Tensor:
        return x - 0.1 * x.mean(dim=0)


def replace_mlp(model: Transformer) -> None:
    model.layers["2"].mlp = BatchMeanMLP(model.config, 1)


def compile_blocks(model: Transformer) -> None:
    model._compiled = object()  # type: ignore[assignment] # compiling takes ten seconds


def split(model: Transformer) -> None:
    model.tp_size = 2


@needs_exact
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_attention_and_block_can_be_exact(variant: str) -> None:
    assert why_not_exact(build(VARIANTS[variant])) is None


@needs_exact
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda model: model.double(),
            "it needs float32 parameters on a CPU, or float32 or half precision on a CUDA GPU",
        ),
        (split, "it needs the whole network in each process, without tensor parallelism, a pipeline or FSDP"),
        (compile_blocks, "it does not work with compiled blocks, since decoding is never compiled"),
        (replace_mlp, "the result of block 2 for a token depends on what else a forward pass computes"),
    ],
)
def test_what_cannot_be_exact_is_refused_with_the_reason(change: Callable[[Transformer], None], reason: str) -> None:
    model = build(BASE)
    change(model)
    assert why_not_exact(model) == reason
    with pytest.raises(ConfigError, match=f"exact mode is not possible: {reason}; leave exact out"):
        ExactMode(model)
    assert not model.exact


def test_a_stage_of_a_pipeline_is_refused() -> None:
    model = Transformer(BASE, range(2))
    model.init_weights()
    assert "a pipeline" in (why_not_exact(model) or "")


def test_products_that_depend_on_the_batch_are_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "why_not_batch_invariant", lambda: "rows depend on the batch")
    assert why_not_exact(build(BASE)) == "rows depend on the batch"


@needs_exact
def test_the_probe_is_made_once_for_each_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    model, probed = build(BASE), []
    monkeypatch.setattr(exact, "_why_passes_differ", lambda network: probed.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    try:
        for n_threads in (1, 2, 1):
            torch.set_num_threads(n_threads)
            ExactMode(model)
    finally:
        torch.set_num_threads(before)
    assert probed == [1, 2]


@needs_exact
def test_outside_of_the_context_nothing_changes() -> None:
    model, tokens, bounds = build(BASE), torch.arange(12) % 50, torch.tensor([0, 5, 12])
    model.train()
    expected = model(tokens, bounds)
    mode = ExactMode(model)
    assert model.training
    assert torch.equal(model(tokens, bounds), expected)
    for _ in range(2):
        with mode, mode:
            assert model.exact
            assert model.layers["1"].mlp.act.exact
            torch.testing.assert_close(model(tokens, bounds), expected, rtol=0, atol=1e-4)
        assert not model.exact
        assert not model.layers["1"].mlp.act.exact
        assert torch.equal(model(tokens, bounds), expected)
    with pytest.raises(RuntimeError, match="stop"), mode:
        raise RuntimeError("stop")
    assert not model.exact


@needs_exact
@pytest.mark.parametrize("variant", ["grouped heads", "experts", "soft cap"])
def test_gradients_are_those_of_the_usual_passes(variant: str) -> None:
    model, tokens, bounds = build(VARIANTS[variant]), torch.arange(12) % 50, torch.tensor([0, 5, 12])
    gradients = []
    for mode in (None, ExactMode(model)):
        model.zero_grad()
        if mode is not None:
            mode.__enter__()
        model(tokens, bounds).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, grad in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], grad, rtol=1e-3, atol=1e-3, msg=name)


@needs_exact
@pytest.mark.parametrize("variant", ["grouped heads", "experts", "head bias"])
def test_products_are_exact_whichever_library_is_named(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens, bounds = build(VARIANTS[variant]), torch.arange(13) % 50, torch.tensor([0, 13])
    computed = []
    for library in ("onednn", "torch"):
        monkeypatch.setattr(products, "linear_backend", lambda library=library: library)
        with torch.no_grad(), ExactMode(model):
            computed.append(model(tokens, bounds))
    assert torch.equal(*computed) or why_not_batch_invariant()
