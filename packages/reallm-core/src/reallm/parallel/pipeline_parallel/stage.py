"""Turns a network that lacks its first or last layers into a pipeline stage that is called like a whole network.

- Layer 0 of a later stage is `RecvHidden`, which returns the hidden states of the previous stage.
- The missing head of an earlier stage is an identity.
- In training, the exception `StageOutput` leaves the caller's loss once the stage has computed its hidden states.

Shapes: T packed tokens, E hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reallm.errors import ConfigError
from reallm.model.layers import TokenEmbedding
from reallm.model.packed import PackedSequences
from reallm.model.parameter_names import EMBEDDING_LAYER, EMBEDDING_WEIGHT, head_layer, is_trained
from reallm.model.transformer import Transformer
from reallm.parallel.mesh import Mesh
from reallm.parallel.sharding import tp_boxes


class RecvHidden(nn.Module):
    """Layer 0 of a later stage: returns hidden states [T, E] received from the previous stage.

    With a tied head it holds the token embedding, so that the head finds it under its usual name.
    """

    def __init__(self, tokens: TokenEmbedding | None = None) -> None:
        super().__init__()
        if tokens is not None:
            self.tokens = tokens
        self.receive: Callable[[int], Tensor] | None = None
        """Number of tokens -> their hidden states [T, E]; None outside of `receiving`."""

    def forward(self, tokens: Tensor, seqs: PackedSequences) -> Tensor:
        """Receive hidden states; the arguments are the same as an embedding layer's.

        Raises:
            ConfigError: no pipeline is running.
        """
        if self.receive is None:
            raise ConfigError(
                "this process holds a later stage of a pipeline, which cannot be called on its own; call "
                "token_logprobs, scores or generate, train with TrainEngine, or use a layout without pp"
            )
        return self.receive(len(tokens))


class StageOutput(BaseException):
    """Carries a stage's output out of the caller's loss, whose remaining code runs on the last stage only.

    It is not an `Exception`, so that callers which catch `Exception` let it pass.
    """

    def __init__(self, hidden: Tensor) -> None:
        super().__init__("the stage of a pipeline has computed its hidden states")
        self.hidden = hidden


def make_stage(model: Transformer, mesh: Mesh) -> None:
    """Add the layers that a stage lacks at its ends, in place; its parameters are then those in `local_boxes`.

    The tied embedding that is added to the last stage has no values yet.

    Args:
        model: the layers of this rank's stage, after tensor parallelism.
        mesh: the layout.
    """
    layers, first, last = dict(model.layers.items()), str(EMBEDDING_LAYER), str(head_layer(model.config))
    if first not in layers:
        has_tied_head = model.config.head_is_tied and last in layers
        layers = {first: RecvHidden(_tied_embedding(model, mesh) if has_tied_head else None), **layers}
    if last not in layers:
        layers[last] = nn.Identity()
    model.layers = nn.ModuleDict(layers)


@contextmanager
def receiving(model: Transformer, receive: Callable[[int], Tensor]) -> Iterator[None]:
    """Context in which layer 0 calls `receive` for its hidden states; no effect on the first stage's embedding."""
    layer = model.layers[str(EMBEDDING_LAYER)]
    if not isinstance(layer, RecvHidden):
        yield
        return
    layer.receive = receive
    try:
        yield
    finally:
        layer.receive = None


@contextmanager
def raising_stage_output(model: Transformer) -> Iterator[None]:
    """Context in which `model.hidden(...)` raises `StageOutput` with its result.

    It wraps only `hidden`: wrappers of `forward_hidden` or of layers, such as FSDP's, see an ordinary return.
    """
    attributes = vars(model)
    inner, patched_before = model.hidden, attributes.get("hidden")

    def hidden(*args: Any, **options: Any) -> Tensor:
        raise StageOutput(inner(*args, **options))

    model.hidden = hidden  # type: ignore[method-assign]
    try:
        yield
    finally:
        if attributes.get("hidden") is hidden:  # otherwise code in the block has already restored it
            del model.hidden
            if patched_before is not None:
                model.hidden = patched_before  # type: ignore[method-assign]


def _tied_embedding(model: Transformer, mesh: Mesh) -> TokenEmbedding:
    like = next(model.parameters())
    boxes = tp_boxes(model.config, mesh.layout, stage=mesh.layout.pp - 1)
    shape = boxes[mesh.coordinate.tp][EMBEDDING_WEIGHT].shape
    with torch.device("meta"):
        embedding = TokenEmbedding(model.config)
    values = torch.empty(shape, dtype=like.dtype, device=like.device)
    embedding.weight = nn.Parameter(values, requires_grad=is_trained(EMBEDDING_WEIGHT, model.config))
    return embedding
