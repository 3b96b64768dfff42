"""Pipeline parallelism: micro-batches of any size on their way through the stages of a network.

    pipeline = Pipeline(model, mesh)  # a model after `make_stage`
    losses = pipeline.run(len(parts), lambda i: objective.loss(model, parts[i]).loss_sum / weight, train=True)

Every stage makes the same call with the same micro-batches. The caller's `forward` is run as it is: on the last stage
`model.hidden` gives the hidden states of the whole network, on the others `forward` is left there.

Shapes: T packed tokens, E hidden, M numbers in a stage's notes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from reallm.errors import PeerError, PluginError
from reallm.model.transformer import Transformer
from reallm.parallel.mesh import Mesh
from reallm.parallel.pipeline_parallel.p2p import StageP2P, buffer_for
from reallm.parallel.pipeline_parallel.schedule import Op, forward_only, one_f_one_b
from reallm.parallel.pipeline_parallel.stage import RecvHidden, StageOutput, left_after_hidden, make_stage

__all__ = ["PipelineRunner", "StageReduction", "make_stage"]

Forward = Callable[[int], Tensor]


@dataclass(frozen=True)
class StageReduction:
    """Numbers that all stages add up for each micro-batch, and a loss that each stage makes of the sums.

    For losses that bind all layers together, such as load balancing among experts: `X * sum_e f_e * p_e` is a product
    of means over all of them. With sums of counts `C_e` and probabilities `P_e` over all stages, the part of its
    gradient that is due to this stage's probabilities `q_e` is that of `X / N**2 * sum_e C_e * q_e`:

        def own(i):  # after the forward pass of micro-batch i
            routing[i] = notes.close()
            return torch.stack([sum(each.counts for each in routing[i]), sum(each.prob_sums for each in routing[i])])

        def loss(i, total):  # before its backward pass
            counts, _ = total
            return coef * len(counts) / n_tokens**2 * (counts * sum(each.prob_sums for each in routing.pop(i))).sum()

    The value of the whole loss, `X / N**2 * sum_e C_e * P_e`, can be had from `total` alone.
    """

    shape: tuple[int, ...]
    """Of what `own` gives."""
    own: Callable[[int], Tensor]
    """The numbers of this stage for a micro-batch, float32, after its forward pass; gradients do not flow through."""
    loss: Callable[[int, Tensor], Tensor | None]
    """What is added to the loss on this stage, given the sums over all stages; 0-dim, or None for nothing."""


@dataclass
class _InFlight:
    """What a stage keeps of a micro-batch."""

    x: Tensor | None = None
    """[T, E], what came in; a leaf."""
    end: Tensor | GradientEdge | None = None
    """Where the backward pass begins: the loss, or the place in the graph of what went out, which itself is let go."""
    shape_out: torch.Size | None = None
    """[T, E], of what went out."""
    notes: Tensor | None = None
    """[M]: the sum of the stages before, then with those of this one, on the last stage of all."""


@dataclass(frozen=True)
class _Run:
    """The arguments of a run, and what is under way in it."""

    forward: Forward
    train: bool
    on_backward: Callable[[int], None] | None
    notes: StageReduction | None
    sizes: Sequence[int] | None
    in_flight: dict[int, _InFlight] = field(default_factory=dict)


class PipelineRunner:
    """This rank's stage of a pipeline, at work. With a single stage it is a plain loop.

    In training the order is 1F1B: a stage holds the activations of at most as many micro-batches as there are stages
    from it to the last. Sizes are planned, not sent: a stage knows them from the micro-batches, which all stages are
    given. Messages travel while stages compute: each is expected before the operation that precedes its use.

    Args:
        model: this rank's stage, after `make_stage`. Whatever wraps its methods may do so before or after.
        mesh: the layout. All ranks of it make their pipelines at the same time.

    Raises:
        PeerError: a neighbouring stage has ended, or does not come in time.
    """

    def __init__(self, model: Transformer, mesh: Mesh) -> None:
        self.model, self.mesh = model, mesh
        self._channels = StageP2P.of(mesh, next(model.parameters()).device)
        self._is_broken = False

    def run(
        self,
        n: int,
        forward: Forward,
        *,
        train: bool,
        on_backward: Callable[[int], None] | None = None,
        notes: StageReduction | None = None,
        sizes: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Forward passes of `n` micro-batches, with `train` also their backward passes, which add up gradients.

        Args:
            n: how many; the same on all stages. 0 does nothing.
            forward: `forward(i)` computes the loss (in evaluation: any tensor) of micro-batch `i`. It calls
                `model.hidden(tokens, cu_seqlens)` once, and what it does then takes place on the last stage only.
            train: with gradients, backward passes and `notes`; otherwise everything runs without gradients.
            on_backward: called with `i` right before the backward pass of micro-batch `i`; they come in order.
            notes: see there.
            sizes: the tokens T of each micro-batch, if they are known: hidden states can then be received earlier.

        Returns:
            What `forward` gave for each micro-batch, without graph, on the last stage; nothing on the others.

        Raises:
            PeerError: another stage has ended or is stuck; or an earlier run was broken off by an error.
            PluginError: `forward` calls `model.hidden` not once, or with other sizes than `sizes`.
        """
        if self._is_broken:
            raise PeerError(
                f"rank {self.mesh.rank} ({self.mesh.layout}): an earlier error has left the pipeline in the middle of "
                "a batch; start the job again"
            )
        stage, pp = self.mesh.here.pp, self.mesh.layout.pp
        ops = one_f_one_b(stage, pp, n) if train else forward_only(n)
        run = _Run(forward, train, on_backward, notes if train else None, sizes)
        results = []
        self._is_broken = pp > 1
        with torch.set_grad_enabled(train):
            self._expect(ops[0] if ops else None, run)
            for op, following in zip_longest(ops, ops[1:]):
                self._expect(following, run)
                if op.kind == "B":
                    self._backward(op.micro_batch, run)
                elif (result := self._forward(op.micro_batch, run)) is not None:
                    results.append(result)
        self._channels.finish()
        self._is_broken = False
        return results

    # ------------------------------------------------------------------ receiving

    def _expect(self, op: Op | None, run: _Run) -> None:
        """Have what an operation needs come in while the one before it computes, if its size is known by then."""
        if op is None:
            return
        i = op.micro_batch
        if op.kind == "F":
            if run.sizes is not None:
                self._expect_states(i, run.sizes[i], run)
        elif i in run.in_flight:
            self._expect_gradients(i, run)

    def _expect_states(self, i: int, n_tokens: int, run: _Run) -> None:
        inbox = self._channels.states_in
        if inbox is not None and not inbox.expects(i):
            like = next(self.model.parameters())
            x = buffer_for((n_tokens, self.model.config.hidden_size), like)
            inbox.expect(i, *self._notes_buffers(run), x)

    def _expect_gradients(self, i: int, run: _Run) -> None:
        inbox, shape = self._channels.grads_in, run.in_flight[i].shape_out
        if inbox is not None and not inbox.expects(i):
            assert shape is not None
            inbox.expect(i, *self._notes_buffers(run), buffer_for(shape, next(self.model.parameters())))

    def _notes_buffers(self, run: _Run) -> list[Tensor]:
        if run.notes is None:
            return []
        return [torch.empty(run.notes.shape, device=next(self.model.parameters()).device)]

    def _receive(self, i: int, run: _Run, n_tokens: int) -> Tensor:
        """Hidden states [T, E] of a micro-batch, in training a leaf."""
        inbox, flight = self._channels.states_in, run.in_flight[i]
        assert inbox is not None
        if flight.x is not None:
            raise PluginError(f"the loss calls model.hidden twice for micro-batch {i}; pack all its sequences together")
        planned = n_tokens if run.sizes is None else run.sizes[i]
        if planned != n_tokens:
            raise PluginError(
                f"the loss puts {n_tokens} tokens of micro-batch {i} through the model, but its sizes say {planned}"
            )
        self._expect_states(i, n_tokens, run)
        *notes, x = inbox.take(i)
        flight.notes = notes[0] if notes else None
        flight.x = x.requires_grad_(run.train)
        return flight.x

    # ------------------------------------------------------------------ computing

    def _forward(self, i: int, run: _Run) -> Tensor | None:
        """A forward pass; what came of it on the last stage."""
        flight = run.in_flight[i] = _InFlight()
        with self._receiving(i, run):
            result = run.forward(i) if self.mesh.is_last_stage else self._output(i, run.forward)
        if self._channels.states_in is not None and flight.x is None:
            raise _never_called(i)
        notes = self._noted(i, flight.notes, run)
        if run.train:
            flight.notes, flight.shape_out = notes, result.shape
            if result.requires_grad:  # whatever is frozen has no backward pass
                flight.end = result if self.mesh.is_last_stage else get_gradient_edge(result)
        else:
            del run.in_flight[i]
        if self._channels.states_out is None:
            return result.detach()
        self._channels.states_out.send(i, *([] if notes is None else [notes]), result.detach().contiguous())
        return None

    def _output(self, i: int, forward: Forward) -> Tensor:
        """What this stage gives to the next one."""
        with left_after_hidden(self.model):
            try:
                forward(i)
            except StageOutput as left:
                return left.x
        raise _never_called(i)

    @contextmanager
    def _receiving(self, i: int, run: _Run) -> Iterator[None]:
        """Layer 0 takes what comes from the stage before, in the block."""
        entrance = self.model.layers["0"]
        if not isinstance(entrance, RecvHidden):
            yield
            return
        entrance.receive = lambda n_tokens: self._receive(i, run, n_tokens)
        try:
            yield
        finally:
            entrance.receive = None

    def _noted(self, i: int, so_far: Tensor | None, run: _Run) -> Tensor | None:
        """The notes of the stages before and of this one."""
        if run.notes is None:
            return None
        own = run.notes.own(i).detach()
        assert (own.shape, own.dtype) == (run.notes.shape, torch.float32), f"notes are {own.dtype} {own.shape}"
        return own.clone() if so_far is None else so_far + own

    def _backward(self, i: int, run: _Run) -> None:
        """A backward pass."""
        grad, total = None, run.in_flight[i].notes
        if self._channels.grads_in is not None:
            self._expect_gradients(i, run)
            *notes, grad = self._channels.grads_in.take(i)
            total = notes[0] if notes else None
        flight = run.in_flight.pop(i)
        roots: list[tuple[Tensor | GradientEdge, Tensor | None]] = []
        if flight.end is not None:
            roots.append((flight.end, grad))
        if run.notes is not None and total is not None and (loss := run.notes.loss(i, total)) is not None:
            roots.append((loss, None))
        if run.on_backward is not None:
            run.on_backward(i)
        if roots:
            ends, grads = zip(*roots, strict=True)
            torch.autograd.backward(ends, grads)
        if self._channels.grads_out is not None:
            assert flight.x is not None
            grad = torch.zeros_like(flight.x) if flight.x.grad is None else flight.x.grad.contiguous()
            self._channels.grads_out.send(i, *([] if total is None else [total]), grad)


def _never_called(i: int) -> PluginError:
    return PluginError(
        f"the loss does not call model.hidden for micro-batch {i}, by which it would get what earlier stages of the "
        "pipeline compute; let it, or use a layout without pp"
    )
