"""`Replica`: the ranks that hold one copy of the network between them, by tensor and pipeline parallelism.

All of them run the same engine on the same requests. Its decisions depend on nothing that differs between them: limits
that follow from a rank's memory or layers are agreed when the engine is made, and tokens are sampled by one rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from reallm.generation.call_log import CallLog
from reallm.generation.partial_completion import PartialCompletion, SampledToken, sampled_tokens
from reallm.generation.sampling import Sampled, sample
from reallm.generation.token_broadcast import TokenBroadcast
from reallm.model.attention.kv_cache import ForwardCache
from reallm.model.packed import PackedSequences
from reallm.model.transformer import Transformer
from reallm.parallel.mesh import Mesh
from reallm.parallel.pipeline_parallel.forward_only import ForwardOnlyPipeline

PendingTokens = Callable[[], Sequence[SampledToken]]
"""Waits for the next tokens of some sequences, and returns them."""


class Replica(Protocol):
    """One copy of the network, as an engine uses it."""

    n_stages: int
    """Number of steps that are computed at the same time: the stages of a pipeline."""

    def forward_hidden(self, tokens: Tensor, seqs: PackedSequences, cache: ForwardCache) -> Tensor | None:
        """Hidden states [T, E] of a batch; None on a stage that is not the last. See `Transformer.forward_hidden`."""

    def sample(self, logits: Tensor | None, samples: Sequence[PartialCompletion]) -> PendingTokens:
        """Sample the next token of each of `samples` from logits [A, V], which are there on the last stage."""

    def finish(self) -> None:
        """Wait until what was sent has been received, once no step is in flight."""

    def note(self, call: object) -> None:
        """Note a request or a cancellation, which all ranks must have."""

    def compare_calls(self) -> None:
        """Compare what was noted.

        Raises:
            DataError: ranks have noted different calls.
        """


class LocalReplica:
    """A process that holds the whole network."""

    n_stages = 1

    def __init__(self, network: Transformer) -> None:
        self._network = network

    def forward_hidden(self, tokens: Tensor, seqs: PackedSequences, cache: ForwardCache) -> Tensor:
        """The forward pass of the network."""
        return self._network.forward_hidden(tokens, seqs, cache)

    def sample(self, logits: Tensor | None, samples: Sequence[PartialCompletion]) -> PendingTokens:
        """Sample from logits [A, V]."""
        assert logits is not None
        tokens = [*sampled_tokens(_sample(logits, samples))]
        return lambda: tokens

    def finish(self) -> None:
        """Nothing was sent."""

    def note(self, call: object) -> None:
        """There is nobody to compare with."""

    def compare_calls(self) -> None:
        """There is nobody to compare with."""


class MeshReplica:
    """This rank's part of a network that is divided between several ranks.

    Args:
        network: its layers.
        mesh: the layout.
    """

    def __init__(self, network: Transformer, mesh: Mesh) -> None:
        self._pipeline = ForwardOnlyPipeline(network, mesh)
        source = mesh.layout.rank_at(dp=mesh.coordinate.dp, pp=mesh.layout.pp - 1)
        self._group = mesh.replica
        self._broadcast = TokenBroadcast(self._group, source, next(network.parameters()).device)
        self._calls = CallLog()
        self.n_stages = mesh.layout.pp

    def forward_hidden(self, tokens: Tensor, seqs: PackedSequences, cache: ForwardCache) -> Tensor | None:
        """The forward pass of this rank's stage, between those of its neighbours."""
        return self._pipeline.run(tokens, seqs, cache)

    def sample(self, logits: Tensor | None, samples: Sequence[PartialCompletion]) -> PendingTokens:
        """Sample on the first rank of the last stage, and broadcast."""

        def sample_on_source() -> Sampled:
            assert logits is not None
            return _sample(logits, samples)

        return self._broadcast.start(sample_on_source, [each.config for each in samples])

    def finish(self) -> None:
        """Wait until the next stage has received everything."""
        self._pipeline.finish()

    def note(self, call: object) -> None:
        """Add a call to the log."""
        self._calls.note(call)

    def compare_calls(self) -> None:
        """Compare calls with those of the other ranks, if there were any."""
        self._calls.compare(self._group)


def make_replica(network: Transformer, mesh: Mesh | None) -> Replica:
    """The replica that this rank is in."""
    is_divided = mesh is not None and mesh.layout.tp * mesh.layout.pp > 1
    return MeshReplica(network, mesh) if mesh is not None and is_divided else LocalReplica(network)


def minimum(mesh: Mesh | None, *values: int) -> list[int]:
    """The minimum over all ranks of the layout of each value; all of them call it."""
    if mesh is None or mesh.layout.size == 1:
        return [*values]
    tensor = torch.tensor(values)
    dist.all_reduce(tensor, dist.ReduceOp.MIN, group=mesh.all)
    return tensor.tolist()


def _sample(logits: Tensor, samples: Sequence[PartialCompletion]) -> Sampled:
    return sample(
        logits,
        [each.config for each in samples],
        [each.stream for each in samples],
        banned=[each.banned for each in samples],
    )
