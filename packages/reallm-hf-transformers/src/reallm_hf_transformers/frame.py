"""`Frame`: the part of a model of transformers that is around its layers.

It says with which arguments the layers are called, such as the cosines and sines of RoPE. They are recorded by running
the forward method of transformers' model, with a recorder in place of each layer.

Shapes: T packed tokens, E hidden.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from reallm.model.config import ReaLModelConfig
from reallm.model.packed import PackedSequences
from reallm_hf_transformers.constants import Constants
from reallm_hf_transformers.structure import structure


@dataclass(frozen=True)
class LayerArguments:
    """The arguments of a layer beside the hidden states."""

    positional: tuple[Any, ...]
    named: dict[str, Any]

    def call(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The hidden states [1, T, E] that a layer makes of `x` [1, T, E]."""
        out = layer(x, *self.positional, **self.named)
        found = out if isinstance(out, Tensor) else out[0]
        assert isinstance(found, Tensor)
        return found


class _Recorder(nn.Module):
    """Stands for a layer: keeps what it is called with, and returns its input."""

    def __init__(self) -> None:
        super().__init__()
        self.called_with: tuple[Tensor, LayerArguments] | None = None

    def forward(self, hidden_states: Tensor, *positional: Any, **named: Any) -> Tensor:
        self.called_with = hidden_states, LayerArguments(positional, named)
        return hidden_states

    def take(self) -> tuple[Tensor, LayerArguments]:
        """The hidden states and the other arguments of the last call, which are then forgotten."""
        assert self.called_with is not None, "transformers' model has left out a layer"
        taken, self.called_with = self.called_with, None
        return taken


class Frame:
    """The model without parameters, in which recorders stand for the layers."""

    def __init__(self, config: ReaLModelConfig) -> None:
        parts = structure(config)
        base = copy.deepcopy(parts.base)
        setattr(base, parts.layers_name, nn.ModuleList(_Recorder() for _ in range(config.n_layers)))
        if parts.norm_name is not None:
            setattr(base, parts.norm_name, nn.Identity())
        base.set_input_embeddings(nn.Identity())  # type: ignore[operator]
        self._constants = Constants.of(base, parts.model._init_weights)
        self._model, self._hidden_size = base, config.hidden_size
        self._recorders: Iterable[_Recorder] = getattr(base, parts.layers_name)
        self._last: _PassArguments | None = None

    def arguments(self, block: int, seqs: PackedSequences, like: Tensor) -> LayerArguments:
        """The arguments of a layer, numbered from 0, for hidden states with the dtype and device of `like`.

        All layers of a pass ask for them one after another, so those of the last pass are kept.
        """
        if self._last is None or not self._last.are_of(seqs, like):
            embedded = torch.zeros((), dtype=like.dtype, device=like.device).expand(seqs.n_tokens, self._hidden_size)
            with torch.no_grad():
                calls = self._run(embedded, seqs, training=False)
            self._last = _PassArguments(
                seqs, like.dtype, like.device, torch.is_inference_mode_enabled(), [arguments for _, arguments in calls]
            )
        return self._last.of_layers[block]

    def enter(self, x: Tensor, seqs: PackedSequences, *, training: bool) -> Tensor:
        """The hidden states [T, E] with which the first layer is called, for the embeddings `x` [T, E] of tokens."""
        hidden, _ = self._run(x, seqs, training=training)[0]
        return hidden[0]

    def _run(self, x: Tensor, seqs: PackedSequences, *, training: bool) -> list[tuple[Tensor, LayerArguments]]:
        """The hidden states and the other arguments with which each layer is called."""
        self._constants.place(x)
        self._model.train(training)
        self._model(inputs_embeds=x[None], position_ids=seqs.positions.to(x.device)[None], use_cache=False)
        return [recorder.take() for recorder in self._recorders]


@dataclass(frozen=True, eq=False)
class _PassArguments:
    """The arguments of the layers in a forward pass."""

    seqs: PackedSequences
    dtype: torch.dtype
    device: torch.device
    is_inference: bool
    """Whether they were made in inference mode, whose tensors training cannot use."""
    of_layers: list[LayerArguments]

    def are_of(self, seqs: PackedSequences, like: Tensor) -> bool:
        return (
            seqs is self.seqs
            and (like.dtype, like.device) == (self.dtype, self.device)
            and self.is_inference == torch.is_inference_mode_enabled()
        )


@lru_cache(maxsize=8)
def frame(config: ReaLModelConfig) -> Frame:
    """The frame that all blocks of networks of a configuration share."""
    return Frame(config)
