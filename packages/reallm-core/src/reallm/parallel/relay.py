"""Hidden states on their way down a pipeline, forward only: each stage gives what it computes to the next one."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from reallm.model.sequences import Sequences
from reallm.model.cache import KVCache
from reallm.model.transformer import Transformer
from reallm.parallel.mesh import Mesh


@dataclass
class Relay:
    """This rank's stage of a pipeline, run on one packed batch after another, in the same order on all stages.

    Sizes are not sent: every stage is given the sequences of every batch. Up to `pp` results are on their way to the
    next stage at a time, so that a stage does not wait for the next one to take what it gives.
    """

    model: Transformer
    """The layers of this stage."""
    mesh: Mesh
    _sent: deque[tuple[dist.Work, Tensor]] = field(default_factory=deque, init=False)

    @property
    def _ranks(self) -> list[int]:
        return self.mesh.layout.pp_ranks(self.mesh.here)

    def run(self, tokens: Tensor, seqs: Sequences, cache: KVCache | None = None) -> Tensor | None:
        """Hidden states [T, E] of a batch on the last stage; None on the others, which hand theirs on.

        Args:
            tokens: [T], which only the first stage reads.
            seqs: where its sequences lie.
            cache: keys and values of this stage's blocks.
        """
        if self.mesh.is_first_stage:
            x = self.model.layers["0"](tokens, seqs)
        else:
            x = self._receive(seqs.n_tokens)
        x = self.model.run_from(x, seqs, cache)
        if self.mesh.is_last_stage:
            return x
        self._send(x)
        return None

    def finish(self) -> None:
        """Wait until everything has been taken."""
        while self._sent:
            self._sent.popleft()[0].wait()

    def _receive(self, n_tokens: int) -> Tensor:
        parameter = next(self.model.parameters())
        x = torch.empty(n_tokens, self.model.config.hidden_size, dtype=parameter.dtype, device=parameter.device)
        stage = self.mesh.here.pp
        work = dist.irecv(x, self._ranks[stage - 1], group=self.mesh.downward(stage - 1))
        assert work is not None
        work.wait()
        return x

    def _send(self, x: Tensor) -> None:
        if len(self._sent) == self.mesh.layout.pp:
            self._sent.popleft()[0].wait()
        x = x.contiguous()
        stage = self.mesh.here.pp
        work = dist.isend(x, self._ranks[stage + 1], group=self.mesh.downward(stage))
        assert work is not None
        self._sent.append((work, x))
