"""Generation on all ranks of a layout, each with its part of the network; all ranks get the whole result.

Data-parallel ranks have different prompts. In a pipeline, the prompts of a rank are decoded in several batches, which
follow each other through the stages: while the last stage samples for one, the others compute for the next. All ranks
of a batch keep the same copy of its completions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from reallm.data.packing import inference_micro_batches
from reallm.generation.sampling import SamplingConfig
from reallm.generation.sequence import Completion, DecodeBatch, ToText, last_hidden
from reallm.model.transformer import Transformer
from reallm.parallel.fsdp import unsharded
from reallm.parallel.mesh import Mesh
from reallm.parallel.pipeline_parallel.forward_only import ForwardOnlyPipeline


def run_distributed(
    model: Transformer,
    completions: Sequence[Completion],
    sampling: SamplingConfig,
    to_text: ToText | None,
    mesh: Mesh,
) -> None:
    """Decode all completions to their ends, in place; called by all ranks of the layout with the same arguments."""
    # the longest that each sequence may become: a bound on its cache memory and its decoding time
    sizes = [len(completion.prompt_ids) + sampling.max_new_tokens for completion in completions]
    groups = inference_micro_batches(sizes, mesh.layout.dp, mesh.layout.pp)[mesh.coordinate.dp]
    with unsharded(model):
        batches = [
            DecodeBatch(model, {index: completions[index] for index in group}, sampling, to_text) for group in groups
        ]
        _decode_round_robin(model, batches, mesh)
    if mesh.layout.dp > 1:
        decoded = [index for group in groups for index in group]
        _all_gather_completions(completions, decoded, mesh, next(model.parameters()).device)


def _decode_round_robin(model: Transformer, batches: Sequence[DecodeBatch], mesh: Mesh) -> None:
    """Decode one token per sequence for each batch in turn, in the same order on all stages, until all have ended."""
    device = next(model.parameters()).device
    broadcast = _TokenBroadcast(mesh, device)
    pipeline = ForwardOnlyPipeline(model, mesh)
    queue: deque[tuple[DecodeBatch, _PendingTokens | None]] = deque((batch, None) for batch in batches)
    while queue:
        batch, pending = queue.popleft()
        if pending is not None:
            batch.append(*pending.wait())
        if not batch.running:
            continue
        tokens, seqs = batch.next_input(device)
        hidden = pipeline.run(tokens, seqs, batch.cache)
        # all ranks of a split head compute logits together, and one of them samples
        logits = None if hidden is None else model.head(last_hidden(hidden, seqs))
        queue.append((batch, broadcast.start(batch, logits)))
    pipeline.finish()


class _PendingTokens:
    """A broadcast of next tokens that is in flight."""

    def __init__(self, values: Tensor, work: dist.Work) -> None:
        self._values, self._work = values, work

    def wait(self) -> tuple[list[int], list[float]]:
        """Wait for the broadcast; returns the next tokens and their log-probabilities."""
        self._work.wait()
        tokens, logprobs = self._values.tolist()
        return [int(token) for token in tokens], logprobs


class _TokenBroadcast:
    """Broadcasts tokens sampled by the first rank of the last stage: logits on others may differ in their last bits."""

    def __init__(self, mesh: Mesh, device: torch.device) -> None:
        layout, dp = mesh.layout, mesh.coordinate.dp
        ranks = [layout.rank_at(dp=dp, pp=pp, tp=tp) for pp in range(layout.pp) for tp in range(layout.tp)]
        self._source = layout.rank_at(dp=dp, pp=layout.pp - 1)
        self._is_source = mesh.rank == self._source
        self._group = mesh.subgroup(ranks)
        self._device = device

    def start(self, batch: DecodeBatch, logits: Tensor | None) -> _PendingTokens:
        """Sample from logits [A, V] on the source rank, and start the broadcast of the next tokens on all ranks.

        The broadcast is waited for only at the batch's next turn, so that ranks can compute while it is in flight.
        """
        # float64 holds token ids and float32 log-probabilities exactly
        values = torch.empty(2, len(batch.running), dtype=torch.float64, device=self._device)
        if self._is_source:
            assert logits is not None
            values[0], values[1] = batch.sample(logits)
        work = dist.broadcast(values, src=self._source, group=self._group, async_op=True)
        assert work is not None
        return _PendingTokens(values, work)


def _all_gather_completions(
    completions: Sequence[Completion], decoded: Sequence[int], mesh: Mesh, device: torch.device
) -> None:
    """Give all data-parallel ranks the completions of all, by all-reduces in which all terms but one are zero.

    Args:
        completions: all completions; the ones that other ranks have decoded are filled in, in place.
        decoded: indices of the completions that this rank has decoded.
        mesh: the layout.
        device: device of the tensors that are communicated.
    """
    ends = torch.zeros(2, len(completions), dtype=torch.int64)
    for index in decoded:
        ends[0, index] = len(completions[index].token_ids)
        ends[1, index] = completions[index].finish_reason == "stop"
    lengths, stopped = _all_reduce_sum(ends, mesh, device).tolist()

    bounds = list(pairwise(accumulate(lengths, initial=0)))
    values = torch.zeros(2, sum(lengths), dtype=torch.float64)
    for index in decoded:
        start, stop = bounds[index]
        values[0, start:stop] = torch.tensor(completions[index].token_ids, dtype=torch.float64)
        values[1, start:stop] = torch.tensor(completions[index].logprobs, dtype=torch.float64)
    tokens, logprobs = _all_reduce_sum(values, mesh, device).tolist()

    for completion, (start, stop), has_stopped in zip(completions, bounds, stopped, strict=True):
        completion.token_ids = [int(token) for token in tokens[start:stop]]
        completion.logprobs = logprobs[start:stop]
        completion.finish_reason = "stop" if has_stopped else "length"


def _all_reduce_sum(values: Tensor, mesh: Mesh, device: torch.device) -> Tensor:
    values = values.to(device)
    dist.all_reduce(values, group=mesh.dp)
    return values.cpu()
