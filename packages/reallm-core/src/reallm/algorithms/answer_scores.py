"""What a model that is not trained in the same pass says of answers: log-probabilities, and values of a critic.

Shapes: T packed tokens, S sequences, N tokens of answers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reallm.data.batching import cu_seqlens
from reallm.data.namedarray import NamedArray, merge
from reallm.engine.real_model import ReaLModel
from reallm.generation.logprobs import forward_packed
from reallm.model.inputs import as_tokens
from reallm.model.linear_cross_entropy import next_token_targets, predicted
from reallm.training.sequence_scores import answer_lengths, answer_mask, sum_answers


def answer_logprobs_field(model: ReaLModel, batch: NamedArray, name: str, max_tokens: int) -> NamedArray:
    """The log-probability [S] float32 of each answer in a batch, as its field `name`, one number for each sequence.

    Those of `training.sequence_scores.answer_logprobs`, without dropout and without gradients, on all ranks.

    Args:
        model: the model.
        batch: `input_ids` [T] int64 and `prompt_lens` [S] int64.
        name: name of the field.
        max_tokens: limit on the tokens of a forward pass; a longer sequence has a pass of its own.

    Raises:
        DataError: a field is missing or malformed, or a token is not in the model's vocabulary.
    """
    values = _scores_of_answers(model, batch, max_tokens, temperature=1.0)[:, 0]
    sums = NamedArray(**{name: sum_answers(values, cu_seqlens(batch, "input_ids").diff().long())})
    return sums.with_metadata(seqlens={name: [(1,) * len(sample) for sample in batch.metadata["seqlens"]["input_ids"]]})


def answer_token_logprobs_field(
    model: ReaLModel,
    batch: NamedArray,
    name: str,
    max_tokens: int,
    temperature: float = 1.0,
    entropies: str | None = None,
) -> NamedArray:
    """The log-probability [N] float32 of each token of the answers in a batch, as its field `name`.

    Args:
        model: the model.
        batch: `input_ids` [T] int64 and `prompt_lens` [S] int64.
        name: name of the field.
        max_tokens: limit on the tokens of a forward pass; a longer sequence has a pass of its own.
        temperature: divisor of the logits, as in sampling.
        entropies: name of a field of the entropies [N] float32 of the distributions, in nats; None: it is left out.

    Raises:
        DataError: a field is missing or malformed, or a token is not in the model's vocabulary.
    """
    values = _scores_of_answers(model, batch, max_tokens, temperature, with_entropies=entropies is not None)
    found = _of_answer_tokens(batch, name, values[:, 0])
    if entropies is None:
        return found
    return merge([found, _of_answer_tokens(batch, entropies, values[:, 1])])


def answer_values_field(
    model: ReaLModel, batch: NamedArray, name: str, max_tokens: int, after: str | None = None
) -> NamedArray:
    """A critic's value [N] float32 of the state before each token of the answers in a batch, as its field `name`.

    Args:
        model: the critic.
        batch: `input_ids` [T] int64 and `prompt_lens` [S] int64.
        name: name of the field.
        max_tokens: limit on the tokens of a forward pass; a longer sequence has a pass of its own.
        after: name of a field of the values [S] float32 of the states after whole answers; None: it is left out.

    Raises:
        DataError: a field is missing or malformed, or a token is not in the model's vocabulary.
    """
    tokens, bounds = batch["input_ids"], cu_seqlens(batch, "input_ids")
    scores = model.scores(tokens, bounds, max_tokens=max_tokens).cpu().float()
    values = _of_answer_tokens(batch, name, scores.roll(1))  # a token's value is the score of the position before it
    if after is None:
        return values
    ones = [(1,) * len(sample) for sample in batch.metadata["seqlens"]["input_ids"]]
    seqlens = {**values.metadata["seqlens"], after: ones}
    return values.with_fields(**{after: scores[bounds[1:].long() - 1]}).with_metadata(seqlens=seqlens)


def _scores_of_answers(
    model: ReaLModel, batch: NamedArray, max_tokens: int, temperature: float, *, with_entropies: bool = False
) -> Tensor:
    """Log-probabilities [T, 1] of the tokens of answers or, with entropies, both [T, 2]; 0 elsewhere."""
    network, n_values = model.network, 1 + with_entropies

    def per_token(hidden: Tensor, tokens: Tensor, bounds: Tensor, mask: Tensor) -> Tensor:
        predicting, targets = next_token_targets(tokens, bounds, mask)
        values = torch.zeros(len(tokens), n_values, dtype=torch.float32, device=tokens.device)
        if with_entropies:
            both = network.logprobs_and_entropies(hidden[predicting], targets, temperature)
            values[predicting + 1] = torch.stack(both, dim=1).float()
        else:
            values[predicting + 1, 0] = network.logprobs(hidden[predicting], targets, temperature).float()
        return values

    mask = answer_mask(batch)
    tokens, bounds = as_tokens(batch["input_ids"], model.config.vocab_size), cu_seqlens(batch, "input_ids")
    return forward_packed(
        network, tokens, bounds, per_token, mask=mask, n_values=n_values, mesh=model.mesh, max_tokens=max_tokens
    ).cpu()


def _of_answer_tokens(batch: NamedArray, name: str, values: Tensor) -> NamedArray:
    """Values [T] of all tokens as a field [N] of the tokens of answers."""
    mask = predicted(answer_mask(batch), cu_seqlens(batch, "input_ids"))
    lengths = iter(answer_lengths(batch).tolist())
    seqlens = [tuple(next(lengths) for _ in sample) for sample in batch.metadata["seqlens"]["input_ids"]]
    return NamedArray(**{name: values[mask.to(values.device)]}).with_metadata(seqlens={name: seqlens})
