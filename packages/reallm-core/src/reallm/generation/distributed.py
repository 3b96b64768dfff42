"""Generation on all ranks of a layout, each with its part of the network; all ranks get the whole result.

Data-parallel ranks have different prompts. In a pipeline, the prompts of a rank are decoded in several batches, which
follow each other through the stages: while the last stage samples for one, the others compute for the next. All ranks
of a batch keep the same copy of its completions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict

import torch
import torch.distributed as dist
from torch import Tensor

from reallm.data.packing import inference_micro_batches
from reallm.errors import ConfigError
from reallm.generation.partial_completion import PartialCompletion, SampledToken
from reallm.generation.random import hash_key
from reallm.generation.request import Completion, Request
from reallm.generation.sampling import sample
from reallm.generation.text import TokenDecoder
from reallm.model.packed import PackedSequences
from reallm.model.rope import keys_are_stale
from reallm.model.transformer import Transformer
from reallm.parallel.fsdp import unsharded
from reallm.parallel.mesh import Mesh
from reallm.parallel.object_collectives import all_gather_json
from reallm.parallel.pipeline_parallel.forward_only import ForwardOnlyPipeline


@torch.no_grad()
def run_distributed(
    model: Transformer,
    requests: Sequence[Request],
    stop_token_ids: Sequence[int],
    decoder: TokenDecoder | None,
    mesh: Mesh,
) -> list[Completion]:
    """Continue the prompts of requests; called by all ranks of the layout with the same arguments.

    Args:
        model: this rank's part of the network.
        requests: the requests.
        stop_token_ids: tokens that end sequences of requests that name none.
        decoder: decodes tokens; None: completions have no text.
        mesh: the layout.

    Returns:
        The completions by request, then by sample.

    Raises:
        ConfigError: a request asks for `kept_ids` or `top_logprobs`.
    """
    for request in requests:
        for name in ("kept_ids", "top_logprobs"):
            if getattr(request.config, name):
                raise ConfigError(f"{name} is not there in a layout of several processes yet; leave it out")
    samples = [
        PartialCompletion(
            index,
            request,
            sample_index,
            key=hash_key(request.key),
            stop_token_ids=tuple(stop_token_ids if (own := request.config.stop_token_ids) is None else own),
            decoder=decoder,
        )
        for index, request in enumerate(requests)
        for sample_index in range(request.config.n)
    ]
    # the longest that each sequence may become: a bound on its cache memory and its decoding time
    sizes = [len(each.completion.prompt_ids) + each.config.max_new_tokens for each in samples]
    groups = inference_micro_batches(sizes, mesh.layout.dp, mesh.layout.pp)[mesh.coordinate.dp]
    with unsharded(model):
        _decode_round_robin(model, [DecodeBatch(model, [samples[index] for index in group]) for group in groups], mesh)
    local = {index: samples[index].finish().completion for group in groups for index in group}
    if mesh.layout.dp == 1:
        return [local[index] for index in range(len(samples))]
    found = {
        int(index): Completion(**fields)
        for of_rank in all_gather_json({index: asdict(each) for index, each in local.items()}, mesh.all).values()
        for index, fields in of_rank.items()
    }
    return [found[index] for index in range(len(samples))]


class DecodeBatch:
    """Samples that are decoded together, and their KV cache for a model or a stage of one."""

    def __init__(self, model: Transformer, samples: Sequence[PartialCompletion]) -> None:
        self.running = [each for each in samples if not each.has_ended]
        """The samples that have not ended; `A` is their number."""
        sizes = [len(each.completion.prompt_ids) + each.config.max_new_tokens for each in samples]
        self.config = model.config
        self.cache = model.new_cache(len(self.running), max(sizes, default=0))

    def next_input(self, device: torch.device) -> tuple[Tensor, PackedSequences]:
        """The tokens [T] of the running samples that are not in the cache yet, and their bounds."""
        sequences = [[*each.completion.prompt_ids, *each.completion.token_ids] for each in self.running]
        totals = [len(sequence) for sequence in sequences]
        if keys_are_stale(self.config, self.cache.lengths, totals):
            self.cache.lengths = [0] * len(sequences)  # RoPE frequencies depend on the length (dynamic RoPE)
        cached = list(self.cache.lengths)
        new_tokens = [token for sequence, n in zip(sequences, cached, strict=True) for token in sequence[n:]]
        lengths = [total - n for total, n in zip(totals, cached, strict=True)]
        return (
            torch.tensor(new_tokens, device=device),
            PackedSequences.from_lengths(lengths, cached_lengths=cached, device=device),
        )

    def sample(self, logits: Tensor) -> tuple[Tensor | None, ...]:
        """From logits [A, V] the next token [A] of each running sample, and what goes with it as in `Sampled`."""
        sampled = sample(
            logits,
            [each.config for each in self.running],
            [each.stream for each in self.running],
            banned=[each.banned for each in self.running],
        )
        return sampled.token_ids, sampled.logprobs, sampled.model_logprobs, sampled.kept_mass

    def append(self, tokens: Sequence[SampledToken]) -> None:
        """Append the next token to each running sample; those that end with it leave the batch."""
        for each, token in zip(self.running, tokens, strict=True):
            each.append(token)
        unfinished = [row for row, each in enumerate(self.running) if not each.has_ended]
        if len(unfinished) < len(self.running):
            self.cache.keep(unfinished)
            self.running = [self.running[row] for row in unfinished]


def _decode_round_robin(model: Transformer, batches: Sequence[DecodeBatch], mesh: Mesh) -> None:
    """Decode one token per sequence for each batch in turn, in the same order on all stages, until all have ended."""
    device = next(model.parameters()).device
    broadcast = _TokenBroadcast(mesh, device)
    pipeline = ForwardOnlyPipeline(model, mesh)
    queue: deque[tuple[DecodeBatch, _PendingTokens | None]] = deque((batch, None) for batch in batches)
    while queue:
        batch, pending = queue.popleft()
        if pending is not None:
            batch.append(pending.wait())
        if not batch.running:
            continue
        tokens, seqs = batch.next_input(device)
        hidden = pipeline.run(tokens, seqs, batch.cache)
        # all ranks of a split head compute logits together, and one of them samples
        logits = None if hidden is None else model.head(hidden[seqs.cu_seqlens[1:].long() - 1])
        queue.append((batch, broadcast.start(batch, logits)))
    pipeline.finish()


class _PendingTokens:
    """A broadcast of next tokens that is in flight."""

    def __init__(self, values: Tensor, work: dist.Work) -> None:
        self._values, self._work = values, work

    def wait(self) -> list[SampledToken]:
        """Wait for the broadcast; returns the next tokens."""
        self._work.wait()
        return [
            SampledToken(int(token), logprob, model_logprob, kept_mass, None, None)
            for token, logprob, model_logprob, kept_mass in self._values.t().tolist()
        ]


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
        values = torch.zeros(4, len(batch.running), dtype=torch.float64, device=self._device)
        if self._is_source:
            assert logits is not None
            for value, column in zip(values, batch.sample(logits), strict=True):
                if column is not None:
                    value.copy_(column)
        work = dist.broadcast(values, src=self._source, group=self._group, async_op=True)
        assert work is not None
        return _PendingTokens(values, work)
