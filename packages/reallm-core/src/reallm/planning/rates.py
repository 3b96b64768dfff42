"""`Rates`: how long the pieces of a call take on one rank, stated or measured. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

Piece = Literal["embedding", "block", "head"]
"""A part of the network whose time is known: the embedding, one block, the output head with its loss or scores."""

Division = Literal["", "pp", "fsdp"]
"""How ranks divide a network, besides tensor parallelism: not at all, into stages, or FSDP shards its parameters."""


class Rates(Protocol):
    """Times in seconds of the pieces of one model on one rank, and of messages between ranks.

    With tensor parallelism a rank computes its shard of a piece; collectives are counted apart, by `all_reduce`.
    """

    @property
    def source(self) -> str:
        """Where the numbers come from: `stated`, or the file of measurements."""
        ...

    def when_busy(self, n_ranks: int) -> Rates:
        """The rates while so many ranks of a node compute, which may share its caches and the way to its memory."""
        ...

    def forward(self, piece: Piece, lengths: Sequence[int], tp: int = 1) -> float:
        """A forward pass over packed sequences of these lengths, as in a prefill or in training."""
        ...

    def backward(self, piece: Piece, lengths: Sequence[int], tp: int = 1) -> float:
        """The backward pass that follows a forward pass, without recomputation."""
        ...

    def decode(self, piece: Piece, n_sequences: int, context: float, tp: int = 1, division: Division = "") -> float:
        """A pass over one new token of each sequence.

        Args:
            piece: the piece.
            n_sequences: sequences that are still running on the rank.
            context: the mean number of tokens before the new one.
            tp: number of ranks that split each layer.
            division: how ranks divide the network besides: faster ways to decode may ask for a whole one.
        """
        ...

    def generation_start(self, n_parameters: int) -> float:
        """What is done once before a model of so many parameters on the rank generates, such as packing its weights."""
        ...

    def optimizer(self, n_parameters: int) -> float:
        """An optimizer step for so many parameters on the rank."""
        ...

    def all_reduce(self, n_bytes: int, ranks: Sequence[int]) -> float:
        """A sum over ranks, in place, of so many bytes on each; 0 for one rank."""
        ...

    def all_gather(self, n_bytes: int, ranks: Sequence[int]) -> float:
        """A gather of equal parts from all ranks to all ranks, of so many bytes together; 0 for one rank."""
        ...

    def reduce_scatter(self, n_bytes: int, ranks: Sequence[int]) -> float:
        """A sum over ranks of so many bytes on each, of which each rank gets a part; 0 for one rank."""
        ...

    def point_to_point(self, n_bytes: int, ranks: Sequence[int]) -> float:
        """A message from the first of two ranks to the second."""
        ...

    def host_copy(self, n_bytes: int) -> float:
        """A copy from the device to host memory, or back."""
        ...
