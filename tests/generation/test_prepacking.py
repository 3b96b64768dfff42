"""Decoding with prepacked weights: the same completions, only where there is room, and memory given back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch

from reallm.engine.real_model import ReaLModel
from reallm.generation import engine, prepacking
from reallm.generation.config import GenerationConfig
from reallm.generation.engine import GenerationEngine
from reallm.generation.generate import generate_tokens
from reallm.generation.prepacking import FEW_STEPS, prepacked_bytes, prepacked_for_decoding
from reallm.generation.request import Completion, Request
from reallm.model.products import linear as products
from reallm.model.products import onednn
from reallm.training.memory import estimate
from tests.helpers.tiny_config import TINY

PROMPTS = [[5, 9, 2, 7], [3], [1, 8, 4]]
SAMPLING = GenerationConfig(max_new_tokens=FEW_STEPS, seed=3)


@pytest.fixture(autouse=True)
def _by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := onednn.why_unavailable():
        pytest.skip(f"needs oneDNN in torch: {reason}")
    monkeypatch.setattr(products, "linear_backend", lambda: "onednn")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The weights that have been prepacked."""
    weights: list[torch.Tensor] = []
    monkeypatch.setattr("reallm.model.products.prepacked.prepack", lambda w: weights.append(w) or onednn.prepack(w))
    return weights


def test_completions_are_the_same_and_each_weight_is_prepacked_once(
    made: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ReaLModel(TINY, seed=3)
    completions = generate_tokens(model.network, PROMPTS, SAMPLING)
    assert len(made) == 2 * 4 + 1
    assert model.network.prepacked is None
    monkeypatch.setattr(engine, "prepacked_for_decoding", lambda *_: nullcontext([]))
    assert generate_tokens(model.network, PROMPTS, SAMPLING) == completions or onednn.why_not_batch_invariant()
    assert len(made) == 2 * 4 + 1


def test_an_update_between_two_calls_is_seen_whatever_its_way(made: list[torch.Tensor]) -> None:
    model, other = ReaLModel(TINY, seed=3), ReaLModel(TINY, seed=4)
    generate_tokens(model.network, PROMPTS, SAMPLING)
    for parameter, value in zip(model.parameters(), other.parameters(), strict=True):
        parameter.data.copy_(value)  # counted by no version
    assert generate_tokens(model.network, PROMPTS, SAMPLING) == generate_tokens(other.network, PROMPTS, SAMPLING)


def _optimizer_step(model: ReaLModel, engine: GenerationEngine) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def _load(model: ReaLModel, engine: GenerationEngine) -> None:
    model.network.load_state_dict(ReaLModel(TINY, seed=4).network.state_dict())


def _unnoticed(model: ReaLModel, engine: GenerationEngine) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(1.5)  # counted by no version
    engine.weights_changed()


@pytest.mark.parametrize("change", [_optimizer_step, _load, _unnoticed], ids=["optimizer", "load", "unnoticed"])
def test_an_engine_keeps_prepacked_weights_while_it_lives_and_makes_them_anew_after_a_change(
    made: list[torch.Tensor], change: Callable[[ReaLModel, GenerationEngine], None]
) -> None:
    model = ReaLModel(TINY, seed=3)

    def run(engine: GenerationEngine) -> list[Completion]:
        for key, prompt in enumerate(PROMPTS):
            engine.add(Request(tuple(prompt), SAMPLING, key=key))
        return engine.run()

    with model.generation_engine() as engine:
        assert run(engine) == run(engine)
        assert len(made) == 2 * 4 + 1
        change(model, engine)
        after = run(engine)
        assert len(made) == 2 * (2 * 4 + 1)
        with model.generation_engine(prefix_sharing=False) as other:
            assert other._network.prepacked is engine._network.prepacked
        assert len(made) == 2 * (2 * 4 + 1)
    assert model.network.prepacked is None
    assert after == generate_tokens(model.network, PROMPTS, SAMPLING)


@pytest.mark.usefixtures("made")
def test_an_engine_does_not_trust_weights_that_another_has_prepacked() -> None:
    model, other = ReaLModel(TINY, seed=3), ReaLModel(TINY, seed=4)
    with model.generation_engine() as engine:
        engine.add(Request(tuple(PROMPTS[0]), SAMPLING))
        engine.run()
        model.network.load_state_dict(other.network.state_dict())
        assert generate_tokens(model.network, PROMPTS, SAMPLING) == generate_tokens(other.network, PROMPTS, SAMPLING)


@pytest.mark.parametrize("tied", [False, True])
def test_the_bytes_of_prepacked_weights_are_those_that_are_made(made: list[torch.Tensor], tied: bool) -> None:
    model = ReaLModel(TINY.replace(tied_embeddings=tied), seed=3)
    generate_tokens(model.network, PROMPTS, SAMPLING)
    assert prepacked_bytes(model.network) == sum(weight.nbytes for weight in made)


def test_not_for_a_few_tokens(made: list[torch.Tensor]) -> None:
    generate_tokens(ReaLModel(TINY, seed=3).network, PROMPTS, GenerationConfig(max_new_tokens=FEW_STEPS - 1, seed=3))
    assert not made


def test_not_without_room_for_them(made: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    model = ReaLModel(TINY, seed=3)
    n_bytes = prepacked_bytes(model.network)
    monkeypatch.setattr(prepacking, "available_memory", lambda device: 2 * n_bytes - 1)
    generate_tokens(model.network, PROMPTS, SAMPLING)
    assert not made
    monkeypatch.setattr(prepacking, "available_memory", lambda device: 2 * n_bytes)
    generate_tokens(model.network, PROMPTS, SAMPLING)
    assert made


def test_not_for_parameters_that_are_offloaded(made: list[torch.Tensor]) -> None:
    model = ReaLModel(TINY, seed=3)
    expected = generate_tokens(model.network, PROMPTS, SAMPLING)
    made.clear()
    model.async_offload(stream=True)
    model.wait_for_offload()
    assert generate_tokens(model.network, PROMPTS, SAMPLING) == expected or onednn.why_not_batch_invariant()
    assert not made


def test_they_take_no_more_than_the_gradients_that_the_memory_estimate_counts() -> None:
    model = ReaLModel(TINY, seed=3)
    with torch.no_grad(), model.network.prepacked_weights() as forms:
        model(torch.tensor([1, 2, 3]), torch.tensor([0, 3]))
        taken = sum(form.nbytes for form in forms)
    assert 0 < taken <= estimate(TINY, torch.float32, torch.device("cpu"), [8]).gradients


def test_nothing_happens_where_another_library_computes(
    made: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "linear_backend", lambda: "torch")
    model = ReaLModel(TINY, seed=3)
    with prepacked_for_decoding(model.network) as forms:
        assert forms == []
    generate_tokens(model.network, PROMPTS, SAMPLING)
    assert not made
