"""Runs micro-batches of any size through the stages of a pipeline, in training and evaluation.

    pipeline = PipelineRunner(model, mesh)  # a model after `make_stage`
    losses = pipeline.run(len(batches), lambda i: objective.loss(model, batches[i]).loss_sum / weight, train=True)

Every stage makes the same call with the same micro-batches. The caller's `forward` runs on every stage: on the last one
`model.hidden` returns the hidden states of the whole network, on the others it ends `forward`.

Shapes: T packed tokens, E hidden, R values of a stage reduction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from reallm.parallel.pipeline_parallel.stage import StageOutput, raising_stage_output, receiving

Forward = Callable[[int], Tensor]


@dataclass(frozen=True)
class StageReduction:
    """Values that are summed over all stages for each micro-batch, and a loss that each stage computes from the sums.

    For losses that depend on all layers together, such as load balancing of experts: `X * sum_e f_e * p_e` is a product
    of means over all layers. With sums of counts `C_e` and probabilities `P_e` over all stages, the gradient of this
    stage's probabilities `q_e` is that of `X / N**2 * sum_e C_e * q_e`:

        def local(i):  # after the forward pass of micro-batch i
            routing[i] = log.close()
            return torch.stack([sum(each.counts for each in routing[i]), sum(each.prob_sums for each in routing[i])])

        def loss(i, total):  # before its backward pass
            counts, _ = total
            return coef * len(counts) / n_tokens**2 * (counts * sum(each.prob_sums for each in routing.pop(i))).sum()

    The value of the whole loss, `X / N**2 * sum_e C_e * P_e`, follows from `total` alone.

    The sums are sent with the messages of the pipeline: stage by stage with hidden states, and back with gradients.
    """

    shape: tuple[int, ...]
    """Shape of the values."""
    local: Callable[[int], Tensor]
    """This stage's values for a micro-batch, float32, after its forward pass; gradients do not flow through them."""
    loss: Callable[[int, Tensor], Tensor | None]
    """Micro-batch, sums over all stages -> this stage's contribution to the loss, 0-dim; None if it has none."""


@dataclass
class _InFlight:
    """A micro-batch between its forward and its backward pass."""

    hidden_in: Tensor | None = None
    """Received hidden states [T, E]; a leaf of the graph."""
    root: Tensor | GradientEdge | None = None
    """Start of the backward pass: the loss, or the graph's edge to the output, whose memory is freed."""
    output_shape: torch.Size | None = None
    """Shape [T, E] of the hidden states that were sent."""
    reduced: Tensor | None = None
    """Values [R] summed over the stages up to this one; on the last stage, over all stages."""


@dataclass(frozen=True)
class _Run:
    """The arguments of one `PipelineRunner.run`, and its micro-batches in flight."""

    forward: Forward
    train: bool
    on_backward: Callable[[int], None] | None
    reduction: StageReduction | None
    n_tokens: Sequence[int] | None
    in_flight: dict[int, _InFlight] = field(default_factory=dict)


class PipelineRunner:
    """Runs this rank's stage of a pipeline; a single stage runs a plain loop over the micro-batches.

    Training follows 1F1B: a stage holds the activations of at most as many micro-batches as there are stages from it to
    the last. Sizes are not sent: all stages get the same micro-batches. Communication overlaps computation: each
    receive is posted one operation before its result is used.

    Args:
        model: this rank's stage, after `make_stage`. Its methods may be wrapped before or after.
        mesh: the layout. All its ranks create their runners at the same time.

    Raises:
        PeerError: a neighbouring stage has ended, or does not join in time.
    """

    def __init__(self, model: Transformer, mesh: Mesh) -> None:
        self.model, self.mesh = model, mesh
        self._p2p = StageP2P.connect(mesh, next(model.parameters()).device)
        self._is_broken = False

    def run(
        self,
        n: int,
        forward: Forward,
        *,
        train: bool,
        on_backward: Callable[[int], None] | None = None,
        reduction: StageReduction | None = None,
        n_tokens: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Run forward passes of `n` micro-batches, with `train` also their backward passes, which accumulate gradients.

        Args:
            n: number of micro-batches, the same on all stages. 0 does nothing.
            forward: `forward(i)` computes the loss (in evaluation: any tensor) of micro-batch `i`. It calls
                `model.hidden(tokens, cu_seqlens)` once; the code after that call runs on the last stage only.
            train: run backward passes and `reduction`; otherwise everything runs without gradients.
            on_backward: called with `i` right before the backward pass of micro-batch `i`, in order.
            reduction: values to sum over the stages.
            n_tokens: T of each micro-batch, if known: hidden states can then be received earlier.

        Returns:
            On the last stage the results of `forward`, detached, one per micro-batch; on other stages an empty list.

        Raises:
            PeerError: another stage has ended or is stuck; or an earlier run ended with an error.
            PluginError: `forward` does not call `model.hidden` exactly once, or with another number of tokens.
        """
        if self._is_broken:
            raise PeerError(
                f"rank {self.mesh.rank} ({self.mesh.layout}): an earlier error has left the pipeline in the middle of "
                "a batch; start the job again"
            )
        stage, pp = self.mesh.coordinate.pp, self.mesh.layout.pp
        ops = one_f_one_b(stage, pp, n) if train else forward_only(n)
        run = _Run(forward, train, on_backward, reduction if train else None, n_tokens)
        results = []
        self._is_broken = pp > 1
        with torch.set_grad_enabled(train):
            self._post_receives(ops[0] if ops else None, run)
            for op, next_op in zip_longest(ops, ops[1:]):
                self._post_receives(next_op, run)
                if op.kind == "B":
                    self._backward(op.micro_batch, run)
                elif (result := self._forward(op.micro_batch, run)) is not None:
                    results.append(result)
        self._p2p.wait_all()
        self._is_broken = False
        return results

    # ------------------------------------------------------------------ receiving

    def _post_receives(self, op: Op | None, run: _Run) -> None:
        """Post the receives of an operation before the previous one computes, if their sizes are known by then."""
        if op is None:
            return
        i = op.micro_batch
        if op.kind == "F":
            if run.n_tokens is not None:
                self._post_hidden(i, run.n_tokens[i], run)
        elif i in run.in_flight:
            self._post_grad(i, run)

    def _post_hidden(self, i: int, n_tokens: int, run: _Run) -> None:
        queue = self._p2p.recv_hidden
        if queue is not None and not queue.is_posted(i):
            hidden = buffer_for((n_tokens, self.model.config.hidden_size), next(self.model.parameters()))
            queue.post(i, *self._reduction_buffers(run), hidden)

    def _post_grad(self, i: int, run: _Run) -> None:
        queue, shape = self._p2p.recv_grad, run.in_flight[i].output_shape
        if queue is not None and not queue.is_posted(i):
            assert shape is not None
            queue.post(i, *self._reduction_buffers(run), buffer_for(shape, next(self.model.parameters())))

    def _reduction_buffers(self, run: _Run) -> list[Tensor]:
        if run.reduction is None:
            return []
        return [torch.empty(run.reduction.shape, device=next(self.model.parameters()).device)]

    def _receive_hidden(self, i: int, run: _Run, n_tokens: int) -> Tensor:
        """Receive the hidden states [T, E] of a micro-batch; in training they are a leaf."""
        queue, state = self._p2p.recv_hidden, run.in_flight[i]
        assert queue is not None
        if state.hidden_in is not None:
            raise PluginError(f"the loss calls model.hidden twice for micro-batch {i}; pack all its sequences together")
        expected = n_tokens if run.n_tokens is None else run.n_tokens[i]
        if expected != n_tokens:
            raise PluginError(
                f"the loss puts {n_tokens} tokens of micro-batch {i} through the model, but its sizes say {expected}"
            )
        self._post_hidden(i, n_tokens, run)
        *reduced, hidden = queue.wait(i)
        state.reduced = reduced[0] if reduced else None
        state.hidden_in = hidden.requires_grad_(run.train)
        return state.hidden_in

    # ------------------------------------------------------------------ computing

    def _forward(self, i: int, run: _Run) -> Tensor | None:
        """Run a forward pass; returns its result on the last stage."""
        state = run.in_flight[i] = _InFlight()
        with receiving(self.model, lambda n_tokens: self._receive_hidden(i, run, n_tokens)):
            result = run.forward(i) if self.mesh.is_last_stage else self._stage_output(i, run.forward)
        if self._p2p.recv_hidden is not None and state.hidden_in is None:
            raise _hidden_not_called(i)
        reduced = self._add_local_values(i, state.reduced, run)
        if run.train:
            state.reduced, state.output_shape = reduced, result.shape
            if result.requires_grad:  # a completely frozen stage has no backward pass
                state.root = result if self.mesh.is_last_stage else get_gradient_edge(result)
        else:
            del run.in_flight[i]
        if self._p2p.send_hidden is None:
            return result.detach()
        self._p2p.send_hidden.send(i, *([] if reduced is None else [reduced]), result.detach().contiguous())
        return None

    def _stage_output(self, i: int, forward: Forward) -> Tensor:
        """The hidden states that this stage sends to the next one."""
        with raising_stage_output(self.model):
            try:
                forward(i)
            except StageOutput as output:
                return output.hidden
        raise _hidden_not_called(i)

    def _add_local_values(self, i: int, so_far: Tensor | None, run: _Run) -> Tensor | None:
        """Add this stage's values to the sum over the stages before it."""
        if run.reduction is None:
            return None
        local = run.reduction.local(i).detach()
        assert (local.shape, local.dtype) == (run.reduction.shape, torch.float32), f"{local.dtype} {local.shape}"
        return local.clone() if so_far is None else so_far + local

    def _backward(self, i: int, run: _Run) -> None:
        grad, total = None, run.in_flight[i].reduced
        if self._p2p.recv_grad is not None:
            self._post_grad(i, run)
            *reduced, grad = self._p2p.recv_grad.wait(i)
            total = reduced[0] if reduced else None
        state = run.in_flight.pop(i)
        roots: list[tuple[Tensor | GradientEdge, Tensor | None]] = []
        if state.root is not None:
            roots.append((state.root, grad))
        if run.reduction is not None and total is not None and (loss := run.reduction.loss(i, total)) is not None:
            roots.append((loss, None))
        if run.on_backward is not None:
            run.on_backward(i)
        if roots:
            tensors, grads = zip(*roots, strict=True)
            torch.autograd.backward(tensors, grads)
        if self._p2p.send_grad is not None:
            hidden = state.hidden_in
            assert hidden is not None
            grad = torch.zeros_like(hidden) if hidden.grad is None else hidden.grad.contiguous()
            self._p2p.send_grad.send(i, *([] if total is None else [total]), grad)


def _hidden_not_called(i: int) -> PluginError:
    return PluginError(
        f"the loss does not call model.hidden for micro-batch {i}, by which it would get what earlier stages of the "
        "pipeline compute; let it, or use a layout without pp"
    )
