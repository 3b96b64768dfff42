"""Generation by all ranks of a layout together: each has its part of the network, and all have the whole result.

Prompts are dealt out over data parallelism. With a pipeline, those of a rank are in groups that go through the stages
one after another, so that all stages are busy: while the last one draws for the first group, the others compute for
those that follow. All ranks that work on a group keep its texts in step.
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
from reallm.generation.sequence import Completion, DecodeBatch, ToText, last_rows
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
    """Continue all prompts to their ends; called by all ranks of the layout with the same arguments."""
    # what may become of a prompt: it bounds the cache as well as the time
    sizes = [len(completion.prompt_ids) + sampling.max_new_tokens for completion in completions]
    groups = inference_micro_batches(sizes, mesh.layout.dp, mesh.layout.pp)[mesh.coordinate.dp]
    with unsharded(model):
        batches = [
            DecodeBatch(model, {place: completions[place] for place in group}, sampling, to_text) for group in groups
        ]
        _continue_in_turn(model, batches, mesh)
    if mesh.layout.dp > 1:
        own = [place for group in groups for place in group]
        _exchange(completions, own, mesh, next(model.parameters()).device)


def _continue_in_turn(model: Transformer, batches: Sequence[DecodeBatch], mesh: Mesh) -> None:
    """A token for each batch in turn, in the same order on all stages, until all have ended."""
    device = next(model.parameters()).device
    agreement = _TokenBroadcast(mesh, device)
    relay = ForwardOnlyPipeline(model, mesh)
    turns: deque[tuple[DecodeBatch, _PendingTokens | None]] = deque((batch, None) for batch in batches)
    while turns:
        batch, drawn = turns.popleft()
        if drawn is not None:
            batch.extend(*drawn.result())
        if not batch.running:
            continue
        tokens, seqs = batch.next_input(device)
        hidden = relay.run(tokens, seqs, batch.cache)
        # all ranks of a split head give logits, and one draws
        logits = None if hidden is None else model.head(last_rows(hidden, seqs))
        turns.append((batch, agreement.on_next_tokens(batch, logits)))
    relay.finish()


class _PendingTokens:
    """Tokens that are on their way from the rank that draws them."""

    def __init__(self, values: Tensor, work: dist.Work) -> None:
        self._values, self._work = values, work

    def result(self) -> tuple[list[int], list[float]]:
        """The next tokens and their log-probabilities."""
        self._work.wait()
        tokens, logprobs = self._values.tolist()
        return [int(token) for token in tokens], logprobs


class _TokenBroadcast:
    """One rank draws, the first of the last stage, so that logits which differ in their last bits split nobody."""

    def __init__(self, mesh: Mesh, device: torch.device) -> None:
        layout, here = mesh.layout, mesh.coordinate
        ranks = [layout.rank_at(dp=here.dp, pp=pp, tp=tp) for pp in range(layout.pp) for tp in range(layout.tp)]
        self._source = layout.rank_at(dp=here.dp, pp=layout.pp - 1)
        self._draws = mesh.rank == self._source
        self._group = mesh.subgroup(ranks)
        self._device = device

    def on_next_tokens(self, batch: DecodeBatch, logits: Tensor | None) -> _PendingTokens:
        """The next tokens of a batch, drawn from logits [A, V] where this is the rank that draws.

        The broadcast is posted at once on all ranks and waited for when the batch has its next turn: ranks that hand
        it on to others do so while they compute.
        """
        # float64 holds tokens and float32 log-probabilities without a rounding
        values = torch.empty(2, len(batch.running), dtype=torch.float64, device=self._device)
        if self._draws:
            assert logits is not None
            values[0], values[1] = batch.draw(logits)
        work = dist.broadcast(values, src=self._source, group=self._group, async_op=True)
        assert work is not None
        return _PendingTokens(values, work)


def _exchange(completions: Sequence[Completion], own: Sequence[int], mesh: Mesh, device: torch.device) -> None:
    """Give all data-parallel ranks what each has of the completions: sums of which all terms but one are zero."""
    ends = torch.zeros(2, len(completions), dtype=torch.int64)
    for place in own:
        ends[0, place] = len(completions[place].token_ids)
        ends[1, place] = completions[place].finish_reason == "stop"
    lengths, stopped = _summed(ends, mesh, device).tolist()

    bounds = list(pairwise(accumulate(lengths, initial=0)))
    values = torch.zeros(2, sum(lengths), dtype=torch.float64)
    for place in own:
        start, stop = bounds[place]
        values[0, start:stop] = torch.tensor(completions[place].token_ids, dtype=torch.float64)
        values[1, start:stop] = torch.tensor(completions[place].logprobs, dtype=torch.float64)
    tokens, logprobs = _summed(values, mesh, device).tolist()

    for completion, (start, stop), stop_token in zip(completions, bounds, stopped, strict=True):
        completion.token_ids = [int(token) for token in tokens[start:stop]]
        completion.logprobs = logprobs[start:stop]
        completion.finish_reason = "stop" if stop_token else "length"


def _summed(values: Tensor, mesh: Mesh, device: torch.device) -> Tensor:
    values = values.to(device)
    dist.all_reduce(values, group=mesh.dp)
    return values.cpu()
