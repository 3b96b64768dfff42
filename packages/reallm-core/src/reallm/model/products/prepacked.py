"""Weights in the order in which oneDNN reads them, kept while they do not change.

A product with few rows, as in decoding, spends much of its time on reordering the weight; with a prepacked one it takes
half to two thirds of the time. Weights that multiply the same input can be prepacked together, to multiply it at once.
In training, where weights change at each step, prepacking gains nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from reallm.model.products.onednn import is_watched, prepack


@dataclass(frozen=True)
class DerivedWeight:
    """A weight [N, K] that is computed from several tensors, such as one with the adapter added to it."""

    parts: tuple[Tensor, ...]
    compute: Callable[[], Tensor]


class PrepackedWeight:
    """The prepacked form of a weight, or of several as one, made when it is first needed and again after a change.

    Changes are noticed by the weight's memory and by its version, which counts changes in place. These do not count:
    writes through `parameter.data` or a NumPy array, and steps of an optimizer that torch does not register (its fused
    ones; `TrainEngine` does it for them). After such a change, call `drop`.
    """

    def __init__(self) -> None:
        self.n_users = 0
        """Number of contexts of `prepacked_weights` that use it."""
        self.settled: Tensor | None = None
        """The prepacked form, in a context of `settled_weights`, if there was one."""
        self._states: list[tuple[object, ...]] = []
        self._prepacked: Tensor | None = None

    def settle(self, settled: bool) -> None:
        """Let products read the form that there is without a look at the weights, or not any more."""
        self.settled = self._prepacked if settled else None

    def of(self, weights: Sequence[Tensor | DerivedWeight]) -> Tensor:
        """The prepacked form of weights [N, K] as they are now; of several it is that of all their rows."""
        states = [_state(part) for weight in weights for part in _parts(weight)]
        if self._prepacked is None or states != self._states:
            self.drop()  # never two at a time
            rows = [weight.compute() if isinstance(weight, DerivedWeight) else weight.detach() for weight in weights]
            self._prepacked, self._states = prepack(rows[0] if len(rows) == 1 else torch.cat(rows)), states
        return self._prepacked

    def drop(self) -> None:
        """Free the memory; the form is made anew when it is needed."""
        self._states, self._prepacked, self.settled = [], None, None

    @property
    def nbytes(self) -> int:
        """Bytes that the prepacked form takes now."""
        return 0 if self._prepacked is None else self._prepacked.nbytes


def _parts(weight: Tensor | DerivedWeight) -> tuple[Tensor, ...]:
    return weight.parts if isinstance(weight, DerivedWeight) else (weight,)


def _state(weight: Tensor) -> tuple[object, ...]:
    """A value that changes with the memory of a weight and with its contents."""
    # the weak reference does not keep the memory, but while it exists no other storage is taken for this one
    storage = StorageWeakRef(weight.untyped_storage())
    return storage, weight.data_ptr(), weight._version, weight.shape, weight.stride()


class WeightOwner(Protocol):
    """A module whose weights can be prepacked."""

    prepacked: PrepackedWeight | None


@contextmanager
def prepacked_weights(owners: Sequence[WeightOwner]) -> Iterator[list[PrepackedWeight]]:
    """Context in which modules may use a prepacked form of their weights, through their attribute `prepacked`.

    The forms are made as they are needed, and their memory is given back at the end of the last such context.
    """
    forms = []
    for owner in owners:
        owner.prepacked = owner.prepacked or PrepackedWeight()
        owner.prepacked.n_users += 1
        forms.append(owner.prepacked)
    try:
        yield forms
    finally:
        for owner, form in zip(owners, forms, strict=True):
            form.n_users -= 1
            if not form.n_users:
                # not by nn.Module.__setattr__, which fails if this is only reached when the interpreter exits
                owner.__dict__["prepacked"] = None


@contextmanager
def settled_weights(forms: Sequence[PrepackedWeight]) -> Iterator[None]:
    """Context for one forward pass without gradients, whose weights the caller knows to be those that were prepacked.

    Each product would otherwise look whether its weights have changed and whether oneDNN can be used, which takes as
    long as a small product. Where operators are watched nothing is settled.
    """
    for form in forms:
        form.settle(not is_watched())
    try:
        yield
    finally:
        for form in forms:
            form.settle(False)
