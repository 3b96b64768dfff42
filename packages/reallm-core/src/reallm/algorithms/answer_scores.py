"""Log-probabilities of answers, computed by a model that is not trained in the same pass.

Shapes: T packed tokens, S sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reallm.data.batching import cu_seqlens
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.generation.logprobs import forward_packed
from reallm.model.inputs import as_tokens
from reallm.model.linear_cross_entropy import next_token_targets
from reallm.training.sequence_scores import answer_mask, sum_answers


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
    network = model.network

    def per_token(hidden: Tensor, tokens: Tensor, bounds: Tensor, mask: Tensor) -> Tensor:
        predicting, targets = next_token_targets(tokens, bounds, mask)
        values = torch.zeros(len(tokens), dtype=torch.float32, device=tokens.device)
        values[predicting + 1] = network.logprobs(hidden[predicting], targets).float()
        return values

    mask = answer_mask(batch)
    tokens, bounds = as_tokens(batch["input_ids"], model.config.vocab_size), cu_seqlens(batch, "input_ids")
    values = forward_packed(network, tokens, bounds, per_token, mask=mask, mesh=model.mesh, max_tokens=max_tokens).cpu()
    n_sequences = [len(sample) for sample in batch.metadata["seqlens"]["input_ids"]]
    sums = NamedArray(**{name: sum_answers(values, bounds.diff().long())})
    return sums.with_metadata(seqlens={name: [(1,) * n for n in n_sequences]})
