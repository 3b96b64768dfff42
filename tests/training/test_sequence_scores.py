"""Log-probabilities of answers and scores of last tokens: those of plain logits, and their gradients, in fp64."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.errors import DataError
from reallm.model import linear_cross_entropy
from reallm.model.transformer import Transformer
from reallm.training.sequence_scores import answer_logprobs, answer_mask, last_token_scores, sum_answers
from tests.helpers.tiny_config import TINY

CONFIG = TINY.replace(vocab_size=51)


def batch_of(samples: list[list[tuple[int, int]]], **fields: Any) -> NamedArray:
    """Samples of one or more sequences of (tokens, prompt tokens)."""
    generator = torch.Generator().manual_seed(0)
    lengths = [[n_tokens for n_tokens, _ in sample] for sample in samples]
    batch = NamedArray(
        input_ids=torch.randint(0, CONFIG.vocab_size, (sum(map(sum, lengths)),), generator=generator),
        prompt_lens=torch.tensor([n_prompt for sample in samples for _, n_prompt in sample]),
    )
    return batch.with_metadata(
        seqlens={"input_ids": lengths, "prompt_lens": [[1] * len(sample) for sample in samples]},
    )


UNEVEN = batch_of([[(9, 4), (5, 1)], [(3, 0), (7, 7)], [(12, 2), (6, 9)], [(1, 0)]])
ANSWER_LENGTHS = [5, 4, 2, 0, 10, 0, 0]


def sequences_of(batch: NamedArray) -> list[tuple[int, int]]:
    bounds = [0, *torch.tensor([n for sample in batch.metadata["seqlens"]["input_ids"] for n in sample]).cumsum(0)]
    return list(pairwise(map(int, bounds)))


def plain_logprobs(model: ReaLModel, batch: NamedArray) -> list[Tensor]:
    """The log-probabilities of each answer's tokens, sequence by sequence from plain logits."""
    found = []
    for (start, end), n_prompt in zip(sequences_of(batch), batch["prompt_lens"].tolist(), strict=True):
        tokens = batch["input_ids"][start:end]
        logprobs = model(tokens, torch.tensor([0, len(tokens)]))[:-1].log_softmax(dim=-1)
        found.append(logprobs.gather(1, tokens[1:, None])[max(0, n_prompt - 1) :, 0])
    return found


def gradients(model: ReaLModel, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("tied", [False, True])
def test_answer_logprobs_and_their_gradients_are_those_of_plain_logits(
    monkeypatch: pytest.MonkeyPatch, tied: bool
) -> None:
    monkeypatch.setitem(linear_cross_entropy.LOGIT_CHUNK_BYTES, "cpu", 4 * CONFIG.vocab_size * 5)  # 5 tokens a chunk
    model = ReaLModel(CONFIG.replace(tied_embeddings=tied), dtype=torch.float64, seed=3)
    of_sequences = torch.linspace(-1, 1, len(ANSWER_LENGTHS), dtype=torch.float64)
    of_tokens = torch.linspace(2, -1, sum(ANSWER_LENGTHS), dtype=torch.float64)

    found = answer_logprobs(model.network, UNEVEN)
    expected = plain_logprobs(model, UNEVEN)

    assert found.lengths.tolist() == ANSWER_LENGTHS
    assert found.sequences.tolist() == [i for i, n in enumerate(ANSWER_LENGTHS) for _ in range(n)]
    torch.testing.assert_close(found.of_tokens, torch.cat(expected), rtol=1e-11, atol=1e-12)
    sums = torch.stack([each.sum() for each in expected])
    torch.testing.assert_close(found.sums, sums, rtol=1e-11, atol=1e-12)
    means = torch.stack([each.sum() / max(1, len(each)) for each in expected])
    torch.testing.assert_close(found.means, means, rtol=1e-11, atol=1e-12)
    loss = (found.sums * of_sequences).sum() + (found.of_tokens * of_tokens).sum()
    plain_loss = (sums * of_sequences).sum() + (torch.cat(expected) * of_tokens).sum()
    for mine, theirs in zip(gradients(model, loss), gradients(model, plain_loss), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_sums_are_float32_in_half_precision_and_the_same_wherever_an_answer_stands() -> None:
    model = ReaLModel(CONFIG, dtype=torch.bfloat16, seed=3)
    sums = answer_logprobs(model.network, UNEVEN).sums
    assert sums.dtype == torch.float32
    values = torch.rand(40)
    alone = torch.segment_reduce(values.double(), "sum", lengths=torch.tensor([40])).float()
    for shift in range(1, 9):
        moved = torch.cat([torch.ones(shift), values])
        assert torch.equal(sum_answers(moved, torch.tensor([shift, 40]))[1:], alone)


def test_a_batch_without_answers_has_gradients_of_zero() -> None:
    model = ReaLModel(CONFIG, seed=3)
    found = answer_logprobs(model.network, batch_of([[(4, 4), (3, 5)]]))
    assert found.sums.tolist() == [0.0, 0.0]
    assert all(not gradient.any() for gradient in gradients(model, found.sums.sum()))


def test_a_sequence_is_scored_at_its_last_token_by_its_length() -> None:
    model = ReaLModel(CONFIG.replace(is_critic=True), dtype=torch.float64, seed=3)
    expected = torch.stack(
        [
            model(UNEVEN["input_ids"][start:end], torch.tensor([0, end - start]))[-1]
            for start, end in sequences_of(UNEVEN)
        ]
    )
    found = last_token_scores(model.network, UNEVEN)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    weights = torch.linspace(-1, 1, len(expected), dtype=torch.float64)
    for mine, theirs in zip(
        gradients(model, (found * weights).sum()), gradients(model, (expected * weights).sum()), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_each_calls_the_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, hidden = [], Transformer.hidden

    def counted(network: Transformer, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
        calls.append(len(tokens))
        return hidden(network, tokens, cu_seqlens)

    monkeypatch.setattr(Transformer, "hidden", counted)
    answer_logprobs(ReaLModel(CONFIG, seed=3).network, UNEVEN)
    last_token_scores(ReaLModel(CONFIG.replace(is_critic=True), seed=3).network, UNEVEN)
    assert calls == [43, 43]


def test_bad_fields_are_named() -> None:
    model, critic = ReaLModel(CONFIG, seed=3), ReaLModel(CONFIG.replace(is_critic=True), seed=3)
    too_few = NamedArray(input_ids=UNEVEN["input_ids"], prompt_lens=torch.tensor([1, 2])).with_metadata(
        seqlens={"input_ids": UNEVEN.metadata["seqlens"]["input_ids"]}
    )
    with pytest.raises(DataError, match=re.escape("'prompt_lens' has the shape [2], but there are 7 sequences")):
        answer_mask(too_few)
    floats = UNEVEN.with_fields(prompt_lens=UNEVEN["prompt_lens"].float())
    with pytest.raises(DataError, match=re.escape("field 'prompt_lens' is float32[7]; it must be a tensor of int64")):
        answer_mask(floats)
    unknown = UNEVEN.with_fields(input_ids=UNEVEN["input_ids"] + 40)
    with pytest.raises(DataError, match="but the model has tokens 0 to 50"):
        answer_logprobs(model.network, unknown)
    with pytest.raises(DataError, match="an empty sequence of 'input_ids' has no last token"):
        last_token_scores(critic.network, batch_of([[(4, 1), (0, 0)]]))
