"""Data-parallel ranks share requests: who has finished early computes more of them."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from reallm.errors import DataError, PeerError, ReallmError
from reallm.generation.config import GenerationConfig
from reallm.generation.data_parallel import STEPS_BETWEEN_EXCHANGES
from reallm.generation.request import Completion, Request
from reallm.parallel.mesh import Mesh
from tests.generation.test_distributed import BASE, GREEDY, PROMPTS, assert_same, completed, made
from tests.helpers.ranks import on_ranks

UNEQUAL = [
    Request((1, index), GenerationConfig(40 if index == 0 else 4, temperature=1.0, seed=1), key=index)
    for index in range(14)
]


def share(rank: int, layout: str, requests: list[Request], **options: int) -> tuple[list[Completion], int]:
    """All completions, and how many prompts this rank has computed."""
    model = made(BASE, Mesh.of(layout) if layout else None)
    n_prompts, inner = [], model.network.forward_hidden

    def forward_hidden(tokens, seqs, cache=None):
        n_prompts.append(seqs.cached_lengths.count(0))
        return inner(tokens, seqs, cache)

    model.network.forward_hidden = forward_hidden
    return completed(model, requests, **options), sum(n_prompts)


def test_a_rank_that_has_finished_takes_requests_that_wait():
    expected, _ = share(0, "", UNEQUAL)
    (one, n_one), (other, n_other) = on_ranks(2, partial(share, max_batch_sequences=1), "dp2", UNEQUAL)
    assert one == other
    assert_same(one, expected)
    # while the first rank computes 40 tokens, and has taken one more, the second one computes 4 tokens of each other
    assert n_one + n_other == len(UNEQUAL)
    assert n_one <= 5
    again = on_ranks(2, partial(share, max_batch_sequences=1), "dp2", UNEQUAL)
    assert again == [(one, n_one), (other, n_other)]  # who takes what does not depend on how fast they are


def test_samples_of_few_prompts_are_divided():
    requests = [Request((1, 2, 3), GenerationConfig(max_new_tokens=3, n=6, seed=2), key="one")]
    expected, _ = share(0, "", requests)
    by_rank = on_ranks(4, share, "dp4", requests)
    for completions, n_prompts in by_rank:
        assert_same(completions, expected)
        assert n_prompts == 1


def events_by_step(rank: int, layout: str) -> list[int]:
    """The number of events of each step of a request of 10 tokens, and of one that comes after it has ended."""
    n_events = []
    with made(BASE, Mesh.of(layout)).generation_engine() as engine:
        for n_tokens in (10, 1):
            engine.add(Request((1,), GenerationConfig(max_new_tokens=n_tokens)))
            while engine.has_work:
                n_events.append(len(engine.step()))
    return n_events


def test_events_are_told_every_few_steps():
    n = STEPS_BETWEEN_EXCHANGES
    first = [0] * n + [n] + [0] * (n - 1) + [10 - n + 1]
    assert on_ranks(2, events_by_step, "dp2") == [first + [0] * n + [2]] * 2


class BrokenError(Exception):
    """An error that no user can fix."""


def broken(rank: int, error: Exception) -> tuple[str, str, int]:
    """The class and the message of what a rank raises when the other one fails in its third pass; then all is well."""
    model = made(BASE, Mesh.of("dp2"))
    n_passes, inner = [], model.network.forward_hidden

    def forward_hidden(tokens, seqs, cache=None):
        n_passes.append(1)
        if rank == 1 and len(n_passes) == 3:
            raise error
        return inner(tokens, seqs, cache)

    model.network.forward_hidden = forward_hidden
    with pytest.raises((ReallmError, BrokenError)) as caught:
        model.generate(PROMPTS, GREEDY)
    return type(caught.value).__name__, str(caught.value), len(model.generate(PROMPTS, GREEDY))


def test_an_error_of_one_rank_ends_the_call_on_all():
    assert on_ranks(2, broken, DataError("this cannot be")) == [(DataError.__name__, "rank 1: this cannot be", 5)] * 2
    assert on_ranks(2, broken, BrokenError("surprise")) == [
        (PeerError.__name__, "rank 1 failed: BrokenError: surprise", 5),
        (BrokenError.__name__, "surprise", 5),
    ]


def trained_between(rank: int, layout: str) -> tuple[bool, bool, list[Completion], list[Completion]]:
    """Whether generation leaves split parameters as they were, and usable for training; with weights before and after.

    The engine is used directly: nobody gathers the parameters for it.
    """
    model = made(BASE, Mesh.of(layout))
    before = {name: part.clone() for name, part in model.local_tensors().items()}
    first = completed(model, UNEQUAL[1:4])
    sharded = all(hasattr(parameter, "to_local") for parameter in model.parameters())
    after = model.local_tensors()
    unchanged = all(after[name].shape == part.shape and after[name].equal(part) for name, part in before.items())
    model(torch.tensor([1, 2, 3]), torch.tensor([0, 3])).logsumexp(-1).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= parameter.grad
    return sharded, unchanged, first, completed(model, UNEQUAL[1:4])


@pytest.mark.parametrize("layout", ["fsdp2", "fsdp2pp2"])
def test_parameters_that_fsdp_splits_are_split_again_afterwards(layout):
    by_rank = on_ranks(2, trained_between, "fsdp2")
    for sharded, unchanged, first, after in by_rank:
        assert sharded
        assert unchanged
        assert first == by_rank[0][2] != after == by_rank[0][3]
