"""Generation with adapters in place: as with merged weights, by the decoding pass, and never with stale ones."""

from __future__ import annotations

import pytest
import torch

from reallm.engine.real_model import ReaLModel
from reallm.generation import engine, prepacking
from reallm.generation.config import GenerationConfig
from reallm.generation.decode_pass import DecodePass
from reallm.generation.generate import generate_tokens
from reallm.generation.prepacking import FEW_STEPS
from reallm.generation.request import Request
from reallm.model.lora_config import LoRAConfig
from reallm.model.products import linear as products
from reallm.model.products import onednn
from tests.helpers.tiny_config import TINY

PROMPTS = [[5, 9, 2, 7], [3], [1, 8, 4]]
SAMPLING = GenerationConfig(max_new_tokens=FEW_STEPS, temperature=0.0, stop_token_ids=())
LINEAR = ("attn.q", "attn.v", "attn.o", "mlp.gate", "mlp.down")  # and some without


@pytest.fixture(autouse=True)
def _by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    if onednn.why_not_batch_invariant() or not onednn.adds_exactly():
        pytest.skip("needs oneDNN in torch, with rows that do not depend on each other")
    monkeypatch.setattr(products, "linear_backend", lambda: "onednn")


def adapted(**options: bool) -> ReaLModel:
    model = ReaLModel(TINY.replace(init_std=0.3, lora=LoRAConfig(4, 8.0, LINEAR, dropout=0.5, **options)), seed=3)
    change(model, 0.1)
    return model


def change(model: ReaLModel, factor: float) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_b" in name:
                parameter.copy_(factor * torch.randn(parameter.shape, generator=generator))


def completions(model: ReaLModel) -> list[tuple[int, ...]]:
    return [each.token_ids for each in generate_tokens(model.network, PROMPTS, SAMPLING)]


@pytest.mark.parametrize("options", [{}, {"dora": True}], ids=str)
@pytest.mark.parametrize("is_training", [False, True])
def test_completions_are_those_of_the_merged_model_by_the_decoding_pass(
    options: dict[str, bool], is_training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, n_passes, hidden = adapted(**options).train(is_training), 0, DecodePass.hidden

    def counted(*arguments: object) -> torch.Tensor:
        nonlocal n_passes
        n_passes += 1
        return hidden(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(DecodePass, "hidden", counted)
    assert completions(model) == completions(model.merged())
    n_of_both, n_passes = n_passes, 0
    completions(model.merged())
    assert n_of_both == 2 * n_passes > 0
    monkeypatch.setattr(prepacking, "prepacked_bytes", lambda model: 0)
    assert completions(model.eval()) == completions(model.merged())  # and without prepacked weights


def test_prepacked_weights_are_made_anew_when_the_adapter_changes_or_is_turned_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[torch.Tensor] = []
    monkeypatch.setattr("reallm.model.products.prepacked.prepack", lambda w: made.append(w) or onednn.prepack(w))
    model = adapted()
    base = ReaLModel(TINY.replace(init_std=0.3), seed=3)
    base.network.load_state_dict({n: each for n, each in model.state_dict().items() if "lora" not in n})

    def run(running: engine.GenerationEngine) -> list[tuple[int, ...]]:
        for key, prompt in enumerate(PROMPTS):
            running.add(Request(tuple(prompt), SAMPLING, key=key))
        return [each.token_ids for each in running.run()]

    of_base, of_first = completions(base), completions(model.merged())
    made.clear()
    with model.generation_engine() as running:
        assert run(running) == run(running) == of_first
        assert len(made) == 2 * 4 + 1
        with model.adapters_off():
            assert run(running) == of_base
        assert run(running) == of_first
        made.clear()
        change(model, 0.3)
        assert run(running) == completions(model.merged()) != of_first
        assert len(made) == 2 * (2 * 4 + 1)  # and those of the merged model
