"""Scores of whole sequences inside a loss: log-probabilities of answers, and a critic's scores of last tokens.

A batch has `input_ids` [T] int64 with one or more sequences in each sample and, for log-probabilities, `prompt_lens`
[S] int64: the tokens of a sequence from its prompt's length on are its answer. Each function calls `network.hidden`
once, as a loss must; see `Objective.loss`.

Shapes: T packed tokens, S sequences, N tokens of answers, E hidden.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from reallm.data.array import describe
from reallm.data.batching import cu_seqlens
from reallm.data.namedarray import NamedArray
from reallm.errors import DataError
from reallm.model.linear_cross_entropy import next_token_targets
from reallm.model.transformer import Transformer


class AnswerLogprobs(NamedTuple):
    """Log-probabilities of the answers of S sequences, in nats; differentiable."""

    sums: Tensor
    """[S] float32: the log-probability of each whole answer; 0 for an answer without tokens."""
    lengths: Tensor
    """[S] int64: number of tokens of each answer. Nothing predicts the first token of a sequence, which is in none."""
    of_tokens: Tensor
    """[N] float32: the log-probability of each answer token given all tokens before it."""
    sequences: Tensor
    """[N] int64: index of the sequence of each answer token, ascending."""
    entropies: Tensor | None = None
    """[N] float32: entropy of the distribution of each answer token, in nats; None unless asked for."""

    @property
    def means(self) -> Tensor:
        """[S] float32: mean log-probability of the tokens of each answer; 0 for an answer without tokens."""
        return self.sums / self.lengths.clamp(min=1)


def answer_logprobs(
    network: Transformer, batch: NamedArray, temperature: float = 1.0, *, with_entropies: bool = False
) -> AnswerLogprobs:
    """Log-probabilities of the answers in a batch of `input_ids` and `prompt_lens`.

    The output head is applied only where it predicts an answer's token, and logits exist one chunk of tokens at a time.
    The backward pass computes them once more.

    Args:
        network: the model.
        batch: the sequences.
        temperature: divisor of the logits, as in sampling.
        with_entropies: whether to give the entropy of each distribution too.

    Raises:
        DataError: a field is missing or malformed, or a token is not in the model's vocabulary.
    """
    mask = answer_mask(batch)
    positions, targets = next_token_targets(batch["input_ids"], cu_seqlens(batch, "input_ids"), mask)
    hidden, entropies = hidden_states(network, batch)[positions], None
    if with_entropies:
        logprobs, entropies = network.logprobs_and_entropies(hidden, targets, temperature)
    else:
        logprobs = network.logprobs(hidden, targets, temperature)
    lengths, sequences = answer_lengths(batch), _sequence_of_tokens(batch)[positions]
    return AnswerLogprobs(sum_answers(logprobs, lengths), lengths, logprobs, sequences, entropies)


def answer_lengths(batch: NamedArray) -> Tensor:
    """Number of answer tokens [S] int64 that have a log-probability in each sequence: all but a sequence's first token.

    Raises:
        DataError: `prompt_lens` is not one integer for each sequence of `input_ids`.
    """
    prompt_lens = _prompt_lens(batch)
    lengths = cu_seqlens(batch, "input_ids").diff().to(prompt_lens.device, torch.int64)
    return (lengths - prompt_lens.clamp(min=1)).clamp(min=0)


def answer_mask(batch: NamedArray) -> Tensor:
    """Mask [T] bool of the tokens of answers, where `input_ids` are.

    Raises:
        DataError: `prompt_lens` is not one integer for each sequence of `input_ids`.
    """
    tokens, prompt_lens = _integers(batch, "input_ids"), _prompt_lens(batch)
    answer_starts = cu_seqlens(batch, "input_ids")[:-1].to(tokens.device) + prompt_lens
    return torch.arange(len(tokens), device=tokens.device) >= answer_starts[_sequence_of_tokens(batch)]


def sum_answers(values: Tensor, lengths: Tensor) -> Tensor:
    """Sums [S] of the values [N] of answers of `lengths` [S] int64 that follow one another.

    Summed in float64, so that a sum does not depend on the place of the answer in a batch, and rounded to the dtype of
    the values.
    """
    sums: Tensor = torch.segment_reduce(values.double(), "sum", lengths=lengths, unsafe=True)
    return sums.to(values.dtype)


def last_token_scores(network: Transformer, batch: NamedArray) -> Tensor:
    """A critic's score [S] of each sequence of `input_ids`: that of its last token, found by lengths; differentiable.

    Raises:
        DataError: a sequence is empty, a field is malformed, or a token is not in the model's vocabulary.
    """
    assert network.config.is_critic, "only a critic has scores"
    bounds = cu_seqlens(batch, "input_ids")
    if (bounds.diff() == 0).any():
        raise DataError("an empty sequence of 'input_ids' has no last token to score; leave its sample out")
    hidden = hidden_states(network, batch)
    return network.head(hidden[bounds[1:].to(hidden.device, torch.int64) - 1])


def hidden_states(network: Transformer, batch: NamedArray) -> Tensor:
    """Hidden states [T, E] after the final norm of the sequences of `input_ids`; see `Transformer.hidden`.

    Raises:
        DataError: `input_ids` is malformed, or a token is not in the model's vocabulary.
    """
    tokens = _integers(batch, "input_ids")
    lowest, highest = torch.stack(tokens.aminmax()).tolist()
    last = network.config.vocab_size - 1
    if lowest < 0 or highest > last:
        raise DataError(
            f"the data has token {lowest if lowest < 0 else highest}, but the model has tokens 0 to {last}; take "
            "the tokenizer that belongs to this model or, if tokens were added to it, set model.resize_vocab=true"
        )
    return network.hidden(tokens, cu_seqlens(batch, "input_ids"))


def _integers(batch: NamedArray, key: str) -> Tensor:
    values = batch[key]
    if not isinstance(values, Tensor) or values.dtype not in (torch.int64, torch.int32):
        raise DataError(f"field '{key}' is {describe(values)}; it must be a tensor of int64")
    return values


def _prompt_lens(batch: NamedArray) -> Tensor:
    prompt_lens, n_sequences = _integers(batch, "prompt_lens"), len(cu_seqlens(batch, "input_ids")) - 1
    if prompt_lens.shape != (n_sequences,):
        raise DataError(
            f"field 'prompt_lens' has the shape {list(prompt_lens.shape)}, but there are {n_sequences} sequences of "
            "'input_ids'; give one length for each"
        )
    return prompt_lens


def _sequence_of_tokens(batch: NamedArray) -> Tensor:
    """[T] int64: index of the sequence of each token, where the tokens are."""
    tokens = batch["input_ids"]
    lengths = cu_seqlens(batch, "input_ids").diff().to(tokens.device, torch.int64)
    sequences = torch.arange(len(lengths), device=tokens.device)
    return sequences.repeat_interleave(lengths, output_size=len(tokens))
