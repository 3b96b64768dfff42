"""Forward passes through a pipeline without gradients: each stage sends its hidden states to the next one."""

from __future__ import annotations

from torch import Tensor

from reallm.model.attention.kv_cache import ForwardCache
from reallm.model.packed import PackedSequences
from reallm.model.transformer import Transformer
from reallm.parallel.mesh import Mesh
from reallm.parallel.pipeline_parallel.p2p import P2PPeer, RecvQueue, SendQueue, buffer_for
from reallm.parallel.pipeline_parallel.stage import receiving


class ForwardOnlyPipeline:
    """This rank's stage of a pipeline, run on one packed batch after another, in the same order on all stages.

    A single stage is the whole network. Sizes are not sent: every stage gets the sequences of every batch. All stages
    create this object at the same time.

    Args:
        model: the layers of this stage.
        mesh: the layout.
    """

    def __init__(self, model: Transformer, mesh: Mesh) -> None:
        stage = mesh.coordinate.pp
        self.model = model
        self._recv = None if mesh.is_first_stage else RecvQueue(P2PPeer.of(mesh, stage - 1, "hidden states"))
        self._send = None if mesh.is_last_stage else SendQueue(P2PPeer.of(mesh, stage + 1, "hidden states"))
        self._n_batches = 0

    def run(self, tokens: Tensor, seqs: PackedSequences, cache: ForwardCache | None = None) -> Tensor | None:
        """Hidden states [T, E] of a batch on the last stage; None on other stages, which send theirs to the next stage.

        Args:
            tokens: [T]; only the first stage reads them.
            seqs: the sequences of the batch.
            cache: keys and values of this stage's blocks.

        Raises:
            PeerError: a neighbouring stage has ended or is stuck.
        """
        with receiving(self.model, self._receive):
            hidden = self.model.forward_hidden(tokens, seqs, cache)
        number, self._n_batches = self._n_batches, self._n_batches + 1
        if self._send is None:
            return hidden
        self._send.send(number, hidden)
        return None

    def finish(self) -> None:
        """Wait until the next stage has received everything.

        Raises:
            PeerError: the next stage has ended or is stuck.
        """
        if self._send is not None:
            self._send.wait_all()

    def _receive(self, n_tokens: int) -> Tensor:
        assert self._recv is not None
        shape = n_tokens, self.model.config.hidden_size
        self._recv.post(self._n_batches, buffer_for(shape, next(self.model.parameters())))
        (hidden,) = self._recv.wait(self._n_batches)
        return hidden
