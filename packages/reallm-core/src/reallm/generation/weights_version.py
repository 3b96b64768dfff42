"""`WeightsVersion`: notices that the weights of a network have changed."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from torch import nn

from reallm.model.adapted import AdaptedLayer


class WeightsVersion:
    """The state of a network's parameters: which tensors they are, and how often they were changed in place.

    Noticed are new parameters (`load_state_dict(assign=True)`), changes by an optimizer, by `load_state_dict` or by a
    reallocation, and that adapters are turned off or on. Not noticed are writes through `parameter.data` or an array
    that shares the memory, and steps of an optimizer that torch does not register (its fused ones; `TrainEngine` does
    it for them). Moving parameters to host memory and back changes nothing.

    Args:
        network: the network.
    """

    def __init__(self, network: nn.Module) -> None:
        # to walk through all modules would take ten times as long as a look at their parameters
        self._adapted = [module for module in network.modules() if isinstance(module, AdaptedLayer)]
        self._of_modules = [module._parameters for module in network.modules() if module._parameters]
        self._note(self._parameters())

    def has_changed(self) -> bool:
        """Whether the weights have changed since the last call."""
        parameters = self._parameters()
        is_same = (
            len(parameters) == len(self._references)
            and all(reference() is each for reference, each in zip(self._references, parameters, strict=True))
            and [each._version for each in parameters] == self._versions
            and self._adapters_enabled() == self._were_enabled
        )
        if not is_same:
            self._note(parameters)
        return not is_same

    def _adapters_enabled(self) -> bool:
        return all(layer.enabled for layer in self._adapted)

    def _parameters(self) -> list[nn.Parameter]:
        return [each for of_module in self._of_modules for each in of_module.values() if each is not None]

    def _note(self, parameters: Sequence[nn.Parameter]) -> None:
        self._references = [weakref.ref(each) for each in parameters]
        self._versions = [each._version for each in parameters]
        self._were_enabled = self._adapters_enabled()
