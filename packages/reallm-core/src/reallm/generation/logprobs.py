"""Packed forward passes that give values per token, such as its log-probability, on all ranks of a layout.

Shapes: T packed tokens, S sequences, E hidden, K values of a token, N scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from reallm.arguments import check_count
from reallm.data.packing import inference_micro_batches
from reallm.model.exact import ExactMode
from reallm.model.linear_cross_entropy import next_token_targets
from reallm.model.packed import PackedSequences
from reallm.model.softmax import check_temperature
from reallm.model.transformer import Transformer
from reallm.parallel.fsdp import unsharded
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from reallm.parallel.pipeline_parallel.forward_only import ForwardOnlyPipeline

PerToken = Callable[..., Tensor]
"""`per_token(hidden [T, E], tokens [T], cu_seqlens [S+1] int32) -> [T]`, called with whole
sequences, each of which is independent of the others. With a mask, `mask [T]` is the fourth argument."""


class TokenScores(NamedTuple):
    """Scores of tokens given the tokens before them; 0 and False for those that were not scored."""

    logprobs: Tensor
    """[T] float32, log-probabilities at temperature 1."""
    is_greedy: Tensor
    """[T] bool, whether no other token is more likely."""


@torch.no_grad()
def forward_packed(
    model: Transformer,
    tokens: Tensor,
    cu_seqlens: Tensor,
    per_token: PerToken,
    *,
    mask: Tensor | None = None,
    n_values: int | None = None,
    mesh: Mesh | None = None,
    max_tokens: int | None = None,
) -> Tensor:
    """Compute `per_token` for all tokens of a packed batch, in evaluation mode and without gradients.

        scores = forward_packed(critic, tokens, cu_seqlens, lambda hidden, tokens, cu_seqlens: critic.head(hidden))

    Args:
        model: the whole network, or this rank's part of it.
        tokens: [T] integers, the sequences one after another.
        cu_seqlens: [S+1] integers, bounds of the sequences.
        per_token: called on the last pipeline stage, on micro-batches of whole sequences.
        mask: [T] bool, passed on to `per_token`; None: it takes none.
        n_values: number K of values that `per_token` returns for a token; None: one, without a dim for it.
        mesh: the layout over which the model is parallelized: all its ranks make the same call and get the same result.
            None: this process holds the whole network.
        max_tokens: limit on the tokens of a micro-batch; a longer sequence is a micro-batch of its own. None: one
            micro-batch for each pipeline stage.

    Returns:
        [T] or [T, K] float32, on the device of the parameters.

    Raises:
        DataError: `cu_seqlens` does not bound the tokens.
        ConfigError: `max_tokens` below 1.
    """
    if max_tokens is not None:
        max_tokens = check_count("max_tokens", max_tokens)
    tokens = tokens.to(next(model.parameters()).device)
    lengths = PackedSequences.from_cu_seqlens(cu_seqlens, tokens).lengths
    layout, dp_rank = (Layout(), 0) if mesh is None else (mesh.layout, mesh.coordinate.dp)
    size = (len(tokens),) if n_values is None else (len(tokens), n_values)
    result = torch.zeros(size, dtype=torch.float32, device=tokens.device)
    mask = None if mask is None else mask.to(tokens.device)
    # for each non-empty sequence: its tokens, its mask, and a view of its part of the result
    sequences, masks, outputs = (
        [each for each in whole.split(list(lengths)) if len(each)]
        for whole in (tokens, tokens if mask is None else mask, result)
    )

    pipeline = None if mesh is None else ForwardOnlyPipeline(model, mesh)
    was_training = model.training
    model.eval()
    try:
        with unsharded(model):
            sizes = [len(sequence) for sequence in sequences]
            for indices in inference_micro_batches(sizes, layout.dp, layout.pp, max_tokens)[dp_rank]:
                packed, seqs = _pack([sequences[i] for i in indices])
                hidden = model.forward_hidden(packed, seqs) if pipeline is None else pipeline.run(packed, seqs)
                if hidden is not None:
                    of_batch = () if mask is None else (torch.cat([masks[i] for i in indices]),)
                    values = per_token(hidden, packed, seqs.cu_seqlens, *of_batch).to(result.dtype)
                    for i, value in zip(indices, values.split(list(seqs.lengths)), strict=True):
                        outputs[i].copy_(value)
                del hidden  # the next micro-batch needs its memory
            if pipeline is not None:
                pipeline.finish()
    finally:
        model.train(was_training)
    if mesh is not None and layout.size > 1:
        if mesh.coordinate.tp > 0:  # the same values as on the first tensor-parallel rank
            result.zero_()
        dist.all_reduce(result, group=mesh.all)  # exact: all terms of each sum but one are zero
    return result


def logprobs(
    model: Transformer,
    tokens: Tensor,
    cu_seqlens: Tensor,
    temperature: float = 1.0,
    *,
    mesh: Mesh | None = None,
    max_tokens: int | None = None,
    exact: bool = False,
) -> Tensor:
    """Log-probability [T] float32 of each token given the tokens before it in its sequence; 0 for a first token.

    Without holding logits [T, V].

    Args:
        temperature: divisor of the logits.
        exact: compute those of an exact `GenerationEngine`, bit for bit.

    Other arguments and errors as in `forward_packed`.

    Raises:
        ConfigError: the temperature is not more than 0, or `exact` is not possible.
    """
    check_temperature(temperature)

    def per_token(hidden: Tensor, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
        all_tokens = torch.ones_like(tokens, dtype=torch.bool)
        predicting, targets = next_token_targets(tokens, cu_seqlens, all_tokens)
        logps = torch.zeros(len(tokens), dtype=torch.float32, device=tokens.device)
        logps[predicting + 1] = model.logprobs(hidden[predicting], targets, temperature).float()
        return logps

    with ExactMode(model) if exact else nullcontext():
        return forward_packed(model, tokens, cu_seqlens, per_token, mesh=mesh, max_tokens=max_tokens)


def score_tokens(
    model: Transformer,
    tokens: Tensor,
    cu_seqlens: Tensor,
    scored: Tensor,
    *,
    mesh: Mesh | None = None,
    max_tokens: int | None = None,
) -> TokenScores:
    """Score tokens given the tokens before them in their sequences, without holding logits [T, V].

    Args:
        scored: [T] bool, the tokens to score; a sequence's first token cannot be. The output head is applied only where
            they are predicted.

    Other arguments and errors as in `forward_packed`.
    """

    def per_token(hidden: Tensor, tokens: Tensor, cu_seqlens: Tensor, mask: Tensor) -> Tensor:
        predicting, targets = next_token_targets(tokens, cu_seqlens, mask)
        values = torch.zeros(len(tokens), 2, dtype=torch.float32, device=tokens.device)
        result = model.cross_entropy(hidden[predicting], targets)
        values[predicting + 1, 0] = -result.nll.float()
        values[predicting + 1, 1] = result.correct.float()
        return values

    values = forward_packed(
        model, tokens, cu_seqlens, per_token, mask=scored, n_values=2, mesh=mesh, max_tokens=max_tokens
    )
    return TokenScores(values[:, 0], values[:, 1] > 0)


def _pack(sequences: Sequence[Tensor]) -> tuple[Tensor, PackedSequences]:
    """Concatenate sequences: their tokens [T], and their bounds."""
    lengths = [len(sequence) for sequence in sequences]
    return torch.cat(list(sequences)), PackedSequences.from_lengths(lengths, device=sequences[0].device)
