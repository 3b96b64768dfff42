"""Inference: something of each token of a packed batch, forward only, by all ranks of a layout together.

Shapes: T packed tokens, S sequences, E hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from reallm.data.packing import inference_micro_batches
from reallm.errors import ConfigError
from reallm.model.linear_cross_entropy import next_token_targets
from reallm.model.packed import PackedSequences
from reallm.model.transformer import Transformer
from reallm.parallel.fsdp import unsharded
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from reallm.parallel.pipeline_parallel.forward_only import ForwardOnlyPipeline

PerToken = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`per_token(hidden [T, E], tokens [T], cu_seqlens [S+1] int32) -> [T]`: of whole sequences, each by itself."""


@torch.no_grad()
def forward_packed(
    model: Transformer,
    tokens: Tensor,
    cu_seqlens: Tensor,
    per_token: PerToken,
    *,
    mesh: Mesh | None = None,
    max_tokens: int | None = None,
) -> Tensor:
    """What `per_token` gives for each token, [T] float32 where the parameters lie; without dropout.

        scores = infer(critic, tokens, cu_seqlens, lambda hidden, tokens, cu_seqlens: critic.head(hidden))

    Args:
        model: the whole network, or this rank's part of it.
        tokens: [T] integers, the sequences one after another.
        cu_seqlens: [S+1] integers, bounds of the sequences.
        per_token: called where the last hidden states are, for some of the sequences at a time.
        mesh: the layout over which the model is spread: all its ranks make the same call and have the same result.
            None: this process has the whole network.
        max_tokens: how many go through the network at once, a longer sequence apart; None: all that a rank has, or a
            part for each stage of a pipeline.

    Raises:
        DataError: `cu_seqlens` does not bound the tokens.
        ConfigError: `max_tokens` below 1.
    """
    if max_tokens is not None and max_tokens < 1:
        raise ConfigError(f"max_tokens={max_tokens} must be at least 1")
    tokens = tokens.to(next(model.parameters()).device)
    lengths = PackedSequences.from_cu_seqlens(cu_seqlens, tokens).lengths
    layout, dp_rank = (Layout(), 0) if mesh is None else (mesh.layout, mesh.coordinate.dp)
    result = torch.zeros(len(tokens), dtype=torch.float32, device=tokens.device)
    # of each sequence that has tokens, these and its part of the result (a view)
    pieces, parts = ([part for part in whole.split(list(lengths)) if len(part)] for whole in (tokens, result))

    relay = None if mesh is None else ForwardOnlyPipeline(model, mesh)
    was_training = model.training
    model.eval()
    try:
        with unsharded(model):
            lengths_per_piece = [len(piece) for piece in pieces]
            for chosen in inference_micro_batches(lengths_per_piece, layout.dp, layout.pp, max_tokens)[dp_rank]:
                pack, seqs = _packed(pieces, chosen)
                hidden = model.forward_hidden(pack, seqs) if relay is None else relay.run(pack, seqs)
                if hidden is not None:
                    values = per_token(hidden, pack, seqs.cu_seqlens).to(result.dtype)
                    for i, part in zip(chosen, values.split(list(seqs.lengths)), strict=True):
                        parts[i].copy_(part)
            if relay is not None:
                relay.finish()
    finally:
        model.train(was_training)
    if mesh is not None and layout.size > 1:
        if mesh.coordinate.tp > 0:  # these have the same as the first of them
            result.zero_()
        dist.all_reduce(result, group=mesh.all)  # of all terms of a sum one is not zero
    return result


def logprobs(
    model: Transformer,
    tokens: Tensor,
    cu_seqlens: Tensor,
    *,
    mesh: Mesh | None = None,
    max_tokens: int | None = None,
) -> Tensor:
    """Log-probability [T] float32 of each token after those before it in its sequence; 0 for the first of each.

    Arguments and errors as in `infer`. They are those of the model at temperature 1; whole logits are never held.
    """

    def of_tokens(hidden: Tensor, tokens: Tensor, cu_seqlens: Tensor) -> Tensor:
        everything = torch.ones_like(tokens, dtype=torch.bool)
        before, targets = next_token_targets(tokens, cu_seqlens, everything)
        logps = torch.zeros(len(tokens), dtype=torch.float32, device=tokens.device)
        logps[before + 1] = -model.cross_entropy(hidden[before], targets).nll.float()
        return logps

    return forward_packed(model, tokens, cu_seqlens, of_tokens, mesh=mesh, max_tokens=max_tokens)


def _packed(pieces: Sequence[Tensor], chosen: Sequence[int]) -> tuple[Tensor, PackedSequences]:
    """Some of the sequences, one after another."""
    some = [pieces[i] for i in chosen]
    return torch.cat(some), PackedSequences.from_lengths([len(piece) for piece in some], device=some[0].device)
