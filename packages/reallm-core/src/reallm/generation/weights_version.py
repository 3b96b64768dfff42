"""`WeightsVersion`: notices that the weights of a network have changed."""

from __future__ import annotations

import weakref

from torch import nn


class WeightsVersion:
    """The state of a network's parameters: which tensors they are, and how often they were changed in place.

    Noticed are new parameters (`load_state_dict(assign=True)`), and changes by an optimizer, by `load_state_dict` or by
    a reallocation. Not noticed are writes through `parameter.data` or an array that shares the memory, and steps of an
    optimizer that torch does not register (its fused ones; `TrainEngine` does it for them). Moving parameters to host
    memory and back changes nothing.

    Args:
        network: the network.
    """

    def __init__(self, network: nn.Module) -> None:
        # to walk through all modules would take ten times as long as a look at their parameters
        self._parameters = [module._parameters for module in network.modules() if module._parameters]
        self._references, self._seen = self._now()

    def has_changed(self) -> bool:
        """Whether the weights have changed since the last call."""
        references, now = self._now()
        changed = now != self._seen
        self._references, self._seen = references, now
        return changed

    def _now(self) -> tuple[list[weakref.ref[nn.Parameter]], list[tuple[int, int]]]:
        """References to the parameters, and for each the number of its reference and its version.

        While a reference is kept, no other has its number, even if the parameter is gone.
        """
        parameters = [each for of_module in self._parameters for each in of_module.values() if each is not None]
        references = [weakref.ref(each) for each in parameters]
        return references, [
            (id(reference), each._version) for reference, each in zip(references, parameters, strict=True)
        ]
