"""`WeightsVersion`: notices that the weights of a network have changed."""

from __future__ import annotations

import weakref

from torch import nn


class WeightsVersion:
    """The state of a network's parameters: which tensors they are, where they are, and how often they were changed.

    Noticed are new parameters (`load_state_dict(assign=True)`), those that have moved, and changes in place: by an
    optimizer, by `load_state_dict`, by a reallocation. Not noticed are writes through `parameter.data` or an array that
    shares the memory, and steps of an optimizer that torch does not register (its fused ones; `TrainEngine` does it for
    them).

    Args:
        network: the network.
    """

    def __init__(self, network: nn.Module) -> None:
        # walking through all modules takes longer than a look at the parameters of each
        self._parameters = [module._parameters for module in network.modules() if module._parameters]
        self._references, self._seen = self._now()

    def has_changed(self) -> bool:
        """Whether the weights have changed since the last call."""
        references, now = self._now()
        changed = now != self._seen
        self._references, self._seen = references, now
        return changed

    def _now(self) -> tuple[list[weakref.ref[nn.Parameter]], list[tuple[int, int, int]]]:
        """References to the parameters, and for each the number of its reference, its address and its version.

        While a reference is kept, no other has its number, even if the parameter is gone and another one takes its
        address.
        """
        parameters = [each for of_module in self._parameters for each in of_module.values() if each is not None]
        references = [weakref.ref(each) for each in parameters]
        return references, [
            (id(reference), each.data_ptr(), each._version)
            for reference, each in zip(references, parameters, strict=True)
        ]
