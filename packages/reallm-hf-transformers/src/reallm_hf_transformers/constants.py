"""Constants of transformers' modules: buffers that no checkpoint holds, such as the frequencies of RoPE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from reallm.errors import ConfigError


@dataclass(frozen=True)
class Constants:
    """The constants of a module, taken out of its buffers, since the core loads and moves parameters only."""

    values: list[tuple[nn.Module, str, Tensor]]
    """Modules, names in them, and values on the CPU."""
    _moved: dict[torch.device, list[Tensor]] = field(default_factory=dict)
    """The values on other devices."""

    @classmethod
    def of(cls, module: nn.Module, init: Callable[[nn.Module], None]) -> Constants:
        """Compute the constants of a module on the meta device, and replace its buffers by attributes.

        Args:
            module: the module that has them, in itself or in modules within.
            init: transformers' method `_init_weights`, which computes them.

        Raises:
            ConfigError: a module has parameters beside them, which the method would initialize as well.
        """
        names = {each: sorted(each._non_persistent_buffers_set) for each in module.modules()}
        found = []
        for owner, own_names in names.items():
            if not own_names:
                continue
            if any(True for _ in owner.parameters()):
                raise ConfigError(f"{type(owner).__name__} has parameters and constants")
            owner.to_empty(device="cpu")
            with torch.no_grad(), torch.device("cpu"):
                init(owner)
            for name in own_names:
                value = owner._buffers.pop(name)
                if value is not None:
                    found.append((owner, name, value.detach()))
        return cls(found)

    def place(self, x: Tensor) -> None:
        """Give the modules their constants on the device of `x`; without values if `x` is a fake tensor."""
        if not self.values:
            return
        if is_fake(x):
            placed = [x.new_empty(value.shape, dtype=value.dtype) for _, _, value in self.values]
        else:
            if x.device not in self._moved:
                self._moved[x.device] = [value.to(x.device) for _, _, value in self.values]
            placed = self._moved[x.device]
        for (owner, name, _), value in zip(self.values, placed, strict=True):
            setattr(owner, name, value)


def is_fake(tensor: Tensor) -> bool:
    """Whether it is a fake tensor, which has a device but no values; its class is in a module that imports much."""
    return type(tensor) not in (Tensor, nn.Parameter)
