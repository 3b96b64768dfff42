"""Offloading of a network, whose layers are loaded again when the forward pass reaches them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from reallm.model.parameter_names import block_layers, layer_number
from reallm.model.transformer import Transformer
from reallm.offload.tensors import Offload
from reallm.parallel.fsdp import is_fsdp, local_tensors


class ModelOffload:
    """Moves the local parameters of a network to host memory, and back in the next forward pass or by `reload`.

    Embedding and head stay on the device once they are loaded, because a head is used after its layer's forward pass
    and may share the embedding's table.

    Args:
        network: a network with at least one layer.
        stream: keep at most two blocks on the device at a time, each freed after its use. Only for models that are not
            trained.

    Raises:
        DataError: the host has no room.
    """

    def __init__(self, network: Transformer, *, stream: bool = False) -> None:
        # the parameters themselves if possible: parameters of a mapped checkpoint get another storage
        tensors = local_tensors(network) if is_fsdp(network) else dict[str, Tensor](network.named_parameters())
        numbers = sorted(map(int, network.layers))
        groups = [[tensor for name, tensor in tensors.items() if layer_number(name) == n] for n in numbers]
        device = next(iter(tensors.values())).device
        keep = [index for index, number in enumerate(numbers) if number not in block_layers(network.config)]
        self._offload = Offload(groups, device, stream=stream, keep=keep)
        self._undo: list[Callable[[], None]] = []
        if is_fsdp(network) or network.is_compiled:  # their layers are not run by calling them one by one
            self._reload_before_use(network)
        else:
            for index, number in enumerate(numbers):
                self._load_in_turn(network.layers[str(number)], index, is_last=index == len(numbers) - 1)

    @property
    def offloaded_bytes(self) -> int:
        """Bytes of the parameters if any is in host memory, or on its way there or back; 0 if none is."""
        return self._offload.offloaded_bytes

    def start_reload(self) -> None:
        """Start to load all layers in the background."""
        self._offload.start_reload()

    def wait(self) -> None:
        """Wait until the parameters are in host memory, and free their memory on the device."""
        self._offload.wait()

    def reload(self) -> None:
        """Load all layers, for good."""
        self._offload.reload()
        self._remove_hooks()

    def _load_in_turn(self, layer: nn.Module, index: int, *, is_last: bool) -> None:
        """Register hooks that load a layer before its forward pass and, when streaming, free it afterwards."""

        def after(*_: object) -> None:
            self._offload.after_use(index)
            if is_last and self._offload.finished:
                self._remove_hooks()

        before = partial(self._before, index)
        self._undo.append(layer.register_forward_pre_hook(before, prepend=True).remove)
        self._undo.append(layer.register_forward_hook(after).remove)

    def _before(self, index: int, *_: object) -> None:
        self._offload.before_use(index)

    def _reload_before_use(self, network: Transformer) -> None:
        """Have a network load all layers before its forward pass, and before FSDP gathers parameters for several."""
        for name in ("forward_hidden", *(["unshard"] if is_fsdp(network) else [])):
            use = getattr(network, name)
            setattr(network, name, partial(self._after_reloading, use))
            self._undo.append(partial(setattr, network, name, use))

    def _after_reloading(self, use: Callable[..., Any], *args: Any, **options: Any) -> Any:
        self.reload()
        return use(*args, **options)

    def _remove_hooks(self) -> None:
        for undo in self._undo:
            undo()
        self._undo.clear()
