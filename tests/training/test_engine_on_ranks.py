"""What an engine on each of several ranks does beside plain steps: errors, states, random numbers, half precision."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from reallm.algorithms.sft.interface import SFTInterface
from reallm.data.namedarray import NamedArray
from reallm.errors import NonFiniteError, PeerError
from reallm.model.transformer import Transformer
from reallm.parallel.fsdp import unsharded
from reallm.training.engine import TrainEngine
from reallm.training.objective import LossOutput
from tests.helpers.ranks import on_ranks
from tests.training.train_cases import BATCHES, OPTIMIZER, Case, batch_of, trained

LAYOUTS = ["dp2", "fsdp2", "pp2"]


def snapshot(engine: TrainEngine) -> dict[str, torch.Tensor]:
    state = engine.state()
    return {name: tensor.clone() for name, tensor in {**state.weights, **state.moments}.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


class Poisoned(SFTInterface):
    """The loss of micro-batches that have a sample of 40 tokens is not finite, or only its gradient."""

    def __init__(self, *, only_gradient: bool = False) -> None:
        self.only_gradient = only_gradient

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        output = super().loss(network, batch)
        if [40] not in map(list, batch.metadata["seqlens"]["input_ids"]):
            return output
        loss = output.loss_sum * (1.0 if self.only_gradient else math.nan)
        if self.only_gradient and loss.requires_grad:
            loss.register_hook(lambda gradient: gradient * math.nan)
        return LossOutput(loss, output.stats)


def poisoned(rank: int, case: Case) -> list[str]:
    engine, interface, texts = case.engine(), SFTInterface(), []
    engine.train_batch(BATCHES[1], interface)
    before = snapshot(engine)
    for objective in (Poisoned(), Poisoned(only_gradient=True)):
        with pytest.raises(NonFiniteError) as error:
            engine.train_batch(BATCHES[0], objective)
        texts.append(str(error.value))
        assert engine.step == 1
        assert same(snapshot(engine), before)
    # nothing of the bad step is left: the next one is what it would have been
    clean = case.engine()
    clean.train_batch(BATCHES[1], interface)
    assert engine.train_batch(BATCHES[0], interface) == clean.train_batch(BATCHES[0], interface)

    skipping = case.engine(replace(OPTIMIZER, on_nonfinite="skip"))
    before = snapshot(skipping)
    metrics = skipping.train_batch(BATCHES[0], Poisoned())
    assert metrics["skipped_steps"] == 1
    assert not math.isfinite(metrics["grad_norm"])
    assert same(snapshot(skipping), before)
    assert skipping.train_batch(BATCHES[0], interface)["skipped_steps"] == 1
    return texts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_that_is_not_finite_is_refused_by_all_ranks_with_the_same_line(layout: str) -> None:
    one, other = on_ranks(2, poisoned, Case(layout))
    assert one == other
    loss, gradients = one
    assert "step 2: the loss of 'row-5' is not finite (nan)" in loss  # alone in its micro-batch, which is full
    assert "the gradients are not finite (norm nan); samples of the step: 'row-0'" in gradients
    assert set(re.findall(r"row-\d", gradients)) == {f"row-{row}" for row in range(6)}


def resumed(rank: int, case: Case) -> bool:
    interface = SFTInterface()
    engine = case.engine()
    engine.train_batch(BATCHES[0], interface)
    engine.train_batch(BATCHES[1], interface)
    state = copy.deepcopy(engine.state())
    expected = engine.train_batch(BATCHES[2], interface)
    again = case.engine()
    again.load_state(state)
    assert again.step == 2
    assert again.train_batch(BATCHES[2], interface) == expected
    assert {name.split("/")[-1] for name in state.moments} == {"exp_avg", "exp_avg_sq", "step"}
    return same(snapshot(again), snapshot(engine))


@pytest.mark.parametrize("case", [Case("fsdp3"), Case("fsdp2", dtype=torch.bfloat16), Case("pp2")], ids=str)
def test_an_engine_goes_on_from_its_state_as_if_it_had_never_stopped(case: Case) -> None:
    n = int(str(case.layout)[-1])
    assert on_ranks(n, resumed, case) == [True] * n


class Drawing(SFTInterface):
    """Notes what the global generator gives in each forward pass."""

    def __init__(self) -> None:
        self.drawn: list[float] = []

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        self.drawn.append(torch.rand(()).item())
        return super().loss(network, batch)


def drawn(rank: int, case: Case) -> list[float]:
    state = torch.get_rng_state()
    drawing, again = Drawing(), Drawing()
    case.engine(seed=5).train_batch(BATCHES[0], drawing)
    case.engine(seed=5).train_batch(BATCHES[0], again)
    assert drawing.drawn == again.drawn
    assert torch.equal(torch.get_rng_state(), state)
    return drawing.drawn


@pytest.mark.parametrize("layout", ["fsdp2", "pp2"])
def test_ranks_with_other_data_or_layers_draw_other_random_numbers(layout: str) -> None:
    first, second = on_ranks(2, drawn, Case(layout, dropout=0.5))
    assert len(first) == len(second) >= 2
    assert not set(first) & set(second)


def in_bfloat16(rank: int, case: Case) -> tuple[Any, ...]:
    engine = case.engine()
    run = [engine.train_batch(batch, SFTInterface()) for batch in BATCHES]
    state = engine.state()
    return (
        run,
        engine.has_masters,
        {tensor.dtype for tensor in state.weights.values()},
        {tensor.dtype for tensor in engine.model.local_tensors().values()},
    )


@pytest.mark.parametrize("layout", ["dp2", "fsdp2"])
def test_bfloat16_is_stepped_in_float32(layout: str) -> None:
    whole = trained(Case(None, dtype=torch.bfloat16)).metrics
    for run, has_masters, masters, parameters in on_ranks(2, in_bfloat16, Case(layout, dtype=torch.bfloat16)):
        assert has_masters
        assert (masters, parameters) == ({torch.float32}, {torch.bfloat16})
        for one, other in zip(run, whole, strict=True):
            assert one["loss"] == pytest.approx(other["loss"], rel=1e-2)  # bfloat16 has three digits
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=5e-2)


class Strict(SFTInterface):
    """Refuses what carries no loss, of which a mean would be 0 / 0."""

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        assert self.loss_weight(batch) > 0
        return super().loss(network, batch)


def weightless(rank: int, case: Case) -> list[dict[str, float]]:
    engine = case.engine()
    before = snapshot(engine)
    nothing = engine.train_batch(batch_of((8, 8), (3, 3), (1, 0)), Strict())
    assert same(snapshot(engine), before)
    return [nothing, engine.train_batch(batch_of((30, 30), (8, 2), (29, 29)), Strict())]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_samples_without_loss_are_not_asked_for_one(layout: str) -> None:
    for nothing, little in on_ranks(2, weightless, Case(layout)):
        assert (nothing["loss_tokens"], nothing["grad_norm"], nothing["tokens"]) == (0, 0, 0)
        assert (little["loss_tokens"], little["tokens"]) == (6, 8)


class Failing(SFTInterface):
    """Fails on all ranks, in a pipeline before stages without the head have left the loss."""

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        if len(network.layers) == network.config.n_layers + 2:
            super().loss(network, batch)
        raise KeyError("in the middle")


def broken_off(rank: int, case: Case) -> str:
    engine, clean = case.engine(), case.engine()
    with pytest.raises(KeyError, match="in the middle"):
        engine.train_batch(BATCHES[0], Failing())
    try:
        metrics = engine.train_batch(BATCHES[0], SFTInterface())
    except PeerError as error:
        for use in (engine.model.local_tensors, lambda: engine.model.generate([[1]]), lambda: engine.model.network):
            with pytest.raises(PeerError, match=re.escape(str(error))):
                use()
        with pytest.raises(PeerError, match=re.escape(str(error))):
            clean.model.reallocate(clean.model.layout, into=engine.model)
        return str(error)
    assert metrics == clean.train_batch(BATCHES[0], SFTInterface())
    return "goes on"


def test_an_error_in_the_middle_of_a_pass_leaves_copies_whole_and_nothing_uncertain() -> None:
    assert set(on_ranks(2, broken_off, Case("dp2"))) == {"goes on"}
    for layout in ("fsdp2", "pp2"):
        (line,) = set(on_ranks(2, broken_off, Case(layout)))
        assert line == "an earlier error has left the model in the middle of a batch; start the job again"


def whole_forward(rank: int, case: Case) -> float:
    model, whole = case.model().eval(), replace(case, layout=None).model().eval()
    engine = TrainEngine(model, OPTIMIZER, 10, 30)
    tokens, bounds = torch.arange(10), torch.tensor([0, 4, 10])
    with torch.no_grad(), unsharded(model.network):
        for _ in range(1 + 2 * rank):  # ranks need not call as often
            found = model(tokens, bounds)
        assert all(parameter.shape == whole.get_parameter(name).shape for name, parameter in model.named_parameters())
        assert not any(hasattr(parameter, "to_local") for parameter in model.parameters())
    difference = (found - whole(tokens, bounds)).abs().max().item()
    engine.train_batch(BATCHES[0], SFTInterface())  # and training goes on
    assert all(hasattr(parameter, "to_local") for parameter in model.parameters())
    return difference


@pytest.mark.parametrize("zero", [1, 3])
def test_split_parameters_are_whole_in_a_block_of_forward_passes(zero: int) -> None:
    assert on_ranks(2, whole_forward, Case("fsdp2", zero=zero)) == [0.0, 0.0]
