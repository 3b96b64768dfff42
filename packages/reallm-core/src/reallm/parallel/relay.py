"""Hidden states on their way down a pipeline, forward only: each stage gives what it computes to the next one."""

from __future__ import annotations

import torch
from torch import Tensor

from reallm.model.cache import KVCache
from reallm.model.sequences import Sequences
from reallm.model.transformer import Transformer
from reallm.parallel.channels import Inbox, Neighbour, Outbox
from reallm.parallel.mesh import Mesh


class Relay:
    """This rank's stage of a pipeline, run on one packed batch after another, in the same order on all stages.

    Sizes are not sent: every stage is given the sequences of every batch. All stages make theirs at the same time.

    Args:
        model: the layers of this stage.
        mesh: the layout.
    """

    def __init__(self, model: Transformer, mesh: Mesh) -> None:
        stage = mesh.here.pp
        self.model = model
        self._inbox = self._outbox = None
        if not mesh.is_first_stage:
            self._inbox = Inbox(Neighbour(mesh, stage - 1, mesh.downward(stage - 1), "hidden states"))
        if not mesh.is_last_stage:
            self._outbox = Outbox(Neighbour(mesh, stage + 1, mesh.downward(stage), "hidden states"))
        self._n_batches = 0

    def run(self, tokens: Tensor, seqs: Sequences, cache: KVCache | None = None) -> Tensor | None:
        """Hidden states [T, E] of a batch on the last stage; None on the others, which hand theirs on.

        Args:
            tokens: [T], which only the first stage reads.
            seqs: where its sequences lie.
            cache: keys and values of this stage's blocks.

        Raises:
            PeerError: a neighbouring stage has ended or is stuck.
        """
        number, self._n_batches = self._n_batches, self._n_batches + 1
        received = None if self._inbox is None else self._received(self._inbox, number, seqs.n_tokens)
        x = self.model.run(tokens, seqs, cache, received)
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

    def _received(self, inbox: Inbox, number: int, n_tokens: int) -> Tensor:
        parameter = next(self.model.parameters())
        x = torch.empty(n_tokens, self.model.config.hidden_size, dtype=parameter.dtype, device=parameter.device)
        inbox.expect(number, x)
        inbox.take(number)
        return x
