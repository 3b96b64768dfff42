"""A model whose layers are in host memory, and come to their device as the forward pass reaches them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reallm.model.parameter_names import block_layers, layer_number
from reallm.model.transformer import Transformer
from reallm.offload.tensors import Offload
from reallm.parallel.fsdp import is_fsdp, local_tensors


class ModelOffload:
    """The parameters of a model on their way to host memory, there, or on their way back.

    Embedding and head stay when they have come back, because a head is used after its layer's forward pass and may have
    the embedding's table.

    Args:
        model: at least one layer of it is here.
        stream: have at most two blocks on the device at a time, which are let go as soon as they were used. For models
            that are not trained.

    Raises:
        DataError: the host has no room.
    """

    def __init__(self, model: Transformer, *, stream: bool = False) -> None:
        # parameters themselves where they can be: those of a mapped checkpoint get other memory
        tensors = local_tensors(model) if is_fsdp(model) else dict[str, Tensor](model.named_parameters())
        numbers = sorted(map(int, model.layers))
        groups = [[tensor for name, tensor in tensors.items() if layer_number(name) == n] for n in numbers]
        device = next(iter(tensors.values())).device
        stay = [place for place, number in enumerate(numbers) if number not in block_layers(model.config)]
        self._offload = Offload(groups, device, stream=stream, stay=stay)
        self._undo: list[Callable[[], None]] = []
        if is_fsdp(model) or model.is_compiled:  # these use layers otherwise than by calling them one by one
            self._reload_first(model)
        else:
            for place, number in enumerate(numbers):
                self._follow(model.layers[str(number)], place, is_last=place == len(numbers) - 1)

    @property
    def is_leaving(self) -> bool:
        """Whether `wait` is still to be called; until then the model can be used, and must not change."""
        return self._offload.is_leaving

    @property
    def is_over(self) -> bool:
        """Whether the whole model is back for good."""
        return self._offload.is_over

    @property
    def bytes_here(self) -> int:
        """Bytes of parameters that are on their device or coming."""
        return self._offload.bytes_here

    def wait(self) -> None:
        """Return when the parameters are in host memory and no longer on their device."""
        self._offload.wait()

    def reload(self) -> None:
        """Return when the whole model is back, for good."""
        self._offload.reload()
        self._end()

    def _follow(self, layer: nn.Module, place: int, *, is_last: bool) -> None:
        """Have a layer come before its forward pass, and go after it where that is wanted."""

        def after(*_: object) -> None:
            self._offload.after(place)
            if is_last and self._offload.is_over:
                self._end()

        before = partial(self._before, place)
        self._undo.append(layer.register_forward_pre_hook(before, prepend=True).remove)
        self._undo.append(layer.register_forward_hook(after).remove)

    def _before(self, place: int, *_: object) -> None:
        self._offload.before(place)

    def _reload_first(self, model: Transformer) -> None:
        forward_hidden = model.forward_hidden

        def after_reloading(*args: Any, **options: Any) -> torch.Tensor:
            self.reload()
            return forward_hidden(*args, **options)

        model.forward_hidden = after_reloading  # type: ignore[method-assign]
        self._undo.append(lambda: setattr(model, "forward_hidden", forward_hidden))

    def _end(self) -> None:
        for undo in self._undo:
            undo()
        self._undo.clear()
