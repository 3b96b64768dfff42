"""Weights in the order in which oneDNN reads them, kept while they do not change.

A product with few rows, as in decoding, spends much of its time on reordering the weight; with a prepacked one it takes
two thirds of the time. In training, where products have many rows and weights change at each step, it gains nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from reallm.model.products.onednn import prepack

FEW_ROWS = 256
"""Number of rows up to which a prepacked weight is faster."""


class PrepackedWeight:
    """The prepacked form of one weight, made when it is first needed and again when the weight has changed.

    Changes are noticed by the weight's memory and by its version, which counts changes in place. These do not count:
    writes through `parameter.data` or a NumPy array, and steps of an optimizer that torch does not register (its fused
    ones; `TrainEngine` does it for them). After such a change, call `drop`.
    """

    def __init__(self) -> None:
        self._key: tuple[object, ...] | None = None
        self._prepacked: Tensor | None = None

    def of(self, weight: Tensor) -> Tensor:
        """The prepacked form of `weight` [N, K] as it is now."""
        # the weak reference does not keep the memory, but while it exists no other storage is taken for this one
        key = (
            StorageWeakRef(weight.untyped_storage()),
            weight.data_ptr(),
            weight._version,
            weight.shape,
            weight.stride(),
        )
        if self._prepacked is None or key != self._key:
            self._prepacked = None  # never two at a time
            self._prepacked, self._key = prepack(weight.detach()), key
        return self._prepacked

    def drop(self) -> None:
        """Free the memory; the form is made anew when it is needed."""
        self._key = self._prepacked = None

    @property
    def nbytes(self) -> int:
        """Bytes that the prepacked form takes now."""
        return 0 if self._prepacked is None else self._prepacked.nbytes


@contextmanager
def prepacked_weights(owners: list[nn.Module]) -> Iterator[list[PrepackedWeight]]:
    """Context in which modules may use a prepacked form of their weight, through their attribute `prepacked`.

    The forms are made as they are needed, and their memory is given back at the end.
    """
    forms = [PrepackedWeight() for _ in owners]
    try:
        for owner, form in zip(owners, forms, strict=True):
            owner.prepacked = form  # type: ignore[assignment] # modules declare nothing but tensors and modules
        yield forms
    finally:
        for owner in owners:
            owner.prepacked = None  # type: ignore[assignment]
