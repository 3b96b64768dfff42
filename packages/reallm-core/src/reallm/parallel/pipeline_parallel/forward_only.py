"""Hidden states on their way down a pipeline, forward only: each stage gives what it computes to the next one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from reallm.model.attention.kv_cache import KVCache
from reallm.model.packed import PackedSequences
from reallm.model.transformer import Transformer
from reallm.parallel.mesh import Mesh
from reallm.parallel.pipeline_parallel.p2p import P2PPeer, RecvQueue, SendQueue, buffer_for
from reallm.parallel.pipeline_parallel.stage import RecvHidden


class ForwardOnlyPipeline:
    """This rank's stage of a pipeline, run on one packed batch after another, in the same order on all stages.

    With a single stage that is the whole network. Sizes are not sent: every stage is given the sequences of every
    batch. All stages make theirs at the same time.

    Args:
        model: the layers of this stage.
        mesh: the layout.
    """

    def __init__(self, model: Transformer, mesh: Mesh) -> None:
        stage = mesh.here.pp
        self.model = model
        self._inbox = None if mesh.is_first_stage else RecvQueue(P2PPeer.to(mesh, stage - 1, "hidden states"))
        self._outbox = None if mesh.is_last_stage else SendQueue(P2PPeer.to(mesh, stage + 1, "hidden states"))
        self._n_batches = 0

    def run(self, tokens: Tensor, seqs: PackedSequences, cache: KVCache | None = None) -> Tensor | None:
        """Hidden states [T, E] of a batch on the last stage; None on the others, which hand theirs on.

        Args:
            tokens: [T], which only the first stage reads.
            seqs: where its sequences lie.
            cache: keys and values of this stage's blocks.

        Raises:
            PeerError: a neighbouring stage has ended or is stuck.
        """
        with self._receiving():
            x = self.model.forward_hidden(tokens, seqs, cache)
        number, self._n_batches = self._n_batches, self._n_batches + 1
        if self._outbox is None:
            return x
        self._outbox.send(number, x)
        return None

    def finish(self) -> None:
        """Wait until the next stage has taken everything.

        Raises:
            PeerError: it has ended or is stuck.
        """
        if self._outbox is not None:
            self._outbox.finish()

    @contextmanager
    def _receiving(self) -> Iterator[None]:
        """Layer 0 takes what comes from the stage before, in the block."""
        entrance = self.model.layers["0"]
        if not isinstance(entrance, RecvHidden):
            yield
            return
        entrance.receive = self._receive
        try:
            yield
        finally:
            entrance.receive = None

    def _receive(self, n_tokens: int) -> Tensor:
        assert self._inbox is not None
        shape = n_tokens, self.model.config.hidden_size
        self._inbox.expect(self._n_batches, buffer_for(shape, next(self.model.parameters())))
        (x,) = self._inbox.take(self._n_batches)
        return x
