"""A trained model and its optimizer leave memory between steps, and go on bit for bit."""

from __future__ import annotations

import pytest
import torch

from reallm.algorithms.sft.interface import SFTInterface
from reallm.training.engine import TrainEngine
from tests.helpers.ranks import on_ranks
from tests.training.train_cases import BATCHES, Case, Run


def memory_of(engine: TrainEngine) -> int:
    """Bytes of parameters and of what the optimizer keeps, now."""
    state = [*engine._optimizer.state_tensors(), *engine._optimizer.weights().values()]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in state}
    return sum(storage.nbytes() for storage in storages.values())


def trained(case: Case, offloads: bool) -> Run:
    engine, interface, metrics, evaluations = case.engine(), SFTInterface(), [], []
    for number, batch in enumerate([*BATCHES, *BATCHES]):
        if offloads:
            engine.async_offload()
            if number != 2:  # once, the next step comes before they have left
                engine.wait_for_offload()
                assert memory_of(engine) == 0
        if number == 3:
            evaluations.append(interface.metrics(engine.evaluate(BATCHES, interface)))
        metrics.append(engine.train_batch(batch, interface))
        assert memory_of(engine) > 0
    if offloads:
        engine.async_offload()
        engine.wait_for_offload()
    state = engine.state()
    tensors = {**engine.model.local_tensors(), **state.moments, **state.weights}
    return Run(metrics, evaluations, {name: tensor.clone() for name, tensor in tensors.items()})


def with_and_without(rank: int, cases: list[Case]) -> None:
    torch.set_num_threads(1)
    for case in cases:
        plain, offloaded = trained(case, offloads=False), trained(case, offloads=True)
        assert (plain.metrics, plain.evaluations) == (offloaded.metrics, offloaded.evaluations), case
        assert plain.parameters.keys() == offloaded.parameters.keys()
        for name, tensor in plain.parameters.items():
            assert torch.equal(tensor, offloaded.parameters[name]), (case, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_one_process(dtype, checkpointing):
    with_and_without(0, [Case(None, "tied", dtype=dtype, checkpointing=checkpointing)])


def test_two_ranks():
    on_ranks(
        2,
        with_and_without,
        [
            *(Case(layout, "tied") for layout in ("dp2", "tp2", "pp2")),
            *(Case("fsdp2", "tied", zero=zero) for zero in (1, 3)),
            Case("fsdp2", "mixtral", dtype=torch.bfloat16),
        ],
    )


def answers(rank: int, case: Case, offloads: bool) -> object:
    """What a model generates, and the log-probabilities of that, after a training step."""
    engine, prompts = case.engine(), [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
    engine.train_batch(BATCHES[0], SFTInterface())
    found: list[object] = []
    for compute in (
        lambda: engine.model.generate(prompts, max_new_tokens=6, temperature=0.0),
        lambda: engine.model.token_logprobs(torch.arange(9), torch.tensor([0, 4, 9], dtype=torch.int32)).tolist(),
    ):
        if offloads:
            engine.async_offload()
            engine.wait_for_offload()
        found.append(repr(compute()))
    return found


@pytest.mark.parametrize("zero", [1, 3])
def test_an_offloaded_model_whose_parameters_are_gathered_generates_as_one_that_stays(zero: int) -> None:
    case = Case("fsdp2", zero=zero)
    assert on_ranks(2, answers, case, True) == on_ranks(2, answers, case, False)


def test_who_reads_the_state_is_waited_for():
    engine = Case(None).engine()
    engine.train_batch(BATCHES[0], SFTInterface())
    seen: list[int] = []
    engine.before_optimizer_step = lambda: seen.append(memory_of(engine))
    whole = memory_of(engine)
    engine.async_offload()
    assert seen == [], "what leaves can still be read"
    engine.wait_for_offload()
    assert seen == [whole]
    assert memory_of(engine) == 0
