"""What makes a network that has only some layers a stage of a pipeline: pseudo layers at its ends.

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
from reallm.model.parameter_names import EMBEDDING_WEIGHT, head_layer
from reallm.model.transformer import Transformer
from reallm.parallel.mesh import Mesh
from reallm.parallel.sharding import stage_parameters, tp_box


class RecvHidden(nn.Module):
    """Layer 0 of a stage that is not the first: gives what the stage before has computed, [T, E].

    With a tied head it has the embedding's table, which the head finds here under its usual name.
    """

    def __init__(self, tokens: TokenEmbedding | None = None) -> None:
        super().__init__()
        if tokens is not None:
            self.tokens = tokens
        self.receive: Callable[[int], Tensor] | None = None
        """Gives the hidden states of so many tokens; None while no pipeline runs."""

    def forward(self, tokens: Tensor, seqs: PackedSequences) -> Tensor:
        """As that of the embedding.

        Raises:
            ConfigError: no pipeline runs.
        """
        if self.receive is None:
            raise ConfigError(
                "this process has a later stage of a pipeline, which cannot be called by itself; call token_logprobs, "
                "scores or generate, train with TrainEngine, or use a layout without pp"
            )
        return self.receive(len(tokens))


class StageOutput(BaseException):
    """Carries the output of a stage out of a forward pass whose rest takes place on the last stage.

    No `Exception`, so that code on the way that catches those broadly lets it through.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__("the stage of a pipeline has computed its part")
        self.x = x


def make_stage(model: Transformer, mesh: Mesh) -> None:
    """Put pseudo layers where a network lacks its first or its last layer, so that it can be called as a whole one.

    Parameters are then those of `placement`. The table of a tied head is new on the last stage, and without numbers.

    Args:
        model: has the layers of this rank's stage, split for tensor parallelism already.
        mesh: of a layout with that stage.
    """
    layers, last = dict(model.layers.items()), str(head_layer(model.config))
    if "0" not in layers:
        has_tied_head = model.config.head_is_tied and last in layers
        layers = {"0": RecvHidden(_table_of_head(model, mesh) if has_tied_head else None), **layers}
    if last not in layers:
        layers[last] = nn.Identity()
    model.layers = nn.ModuleDict(layers)


@contextmanager
def left_after_hidden(model: Transformer) -> Iterator[None]:
    """In the block, `model.hidden(...)` raises `Left` with what it would have given.

    It wraps whatever `hidden` is when the block begins: others that wrap it, or `run`, see an ordinary return.
    """
    inner, was = model.hidden, vars(model).get("hidden")

    def hidden(*args: Any, **options: Any) -> Tensor:
        raise StageOutput(inner(*args, **options))

    model.hidden = hidden  # type: ignore[method-assign]
    try:
        yield
    finally:
        if vars(model).get("hidden") is hidden:  # otherwise somebody below has put it back already
            del model.hidden
            if was is not None:
                model.hidden = was  # type: ignore[method-assign]


def _table_of_head(model: Transformer, mesh: Mesh) -> TokenEmbedding:
    layout, like = mesh.layout, next(model.parameters())
    (info,) = (
        info for info in stage_parameters(model.config, layout.pp, layout.pp - 1) if info.name == EMBEDDING_WEIGHT
    )
    with torch.device("meta"):
        table = TokenEmbedding(model.config)
    shape = tp_box(info, layout.tp, mesh.here.tp).shape
    table.weight = nn.Parameter(torch.empty(shape, dtype=like.dtype, device=like.device))
    return table
