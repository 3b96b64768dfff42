"""The matrix products of a linear layer by each library that can compute them, for benchmarks and their ceiling."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from reallm.model.products import onednn

Ways = Mapping[str, Callable[[], object]]
"""The same product by several libraries."""
LONG = 1.0
"""Seconds of a try of all ways, of which one is enough."""
TOLERANCE = 1e-4
"""Relative to the largest element, of products that the libraries add up in different orders."""


class Products:
    """`y = x @ w.T` with `x` [m, k] and `w` [n, k], and its gradients to x and w.

    Args:
        n_weights: number of weights of this shape that a call goes through in turn; several come from memory instead of
            a cache, as those of a model's layers do.
    """

    def __init__(
        self, m: int, k: int, n: int, *, n_weights: int = 1, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        make = partial(torch.randn, device=device, dtype=dtype)
        self._x, self._dy, self._ws = make(m, k), make(m, n), [make(n, k) for _ in range(n_weights)]
        y, dx, dw = torch.empty_like(self._dy), torch.empty_like(self._x), torch.empty_like(self._ws[0])
        x, dy = self._x, self._dy
        forward = {"torch": self._each(lambda w: torch.mm(x, w.t(), out=y))}
        input_grad = {"torch": self._each(lambda w: torch.mm(dy, w, out=dx))}
        weight_grad = {"torch": self._each(lambda w: torch.mm(dy.t(), x, out=dw))}
        if device == "cpu" and dtype == torch.float32 and onednn.why_unavailable() is None:
            packs = [onednn.prepack(w) for w in self._ws]
            forward["onednn"] = self._each(lambda w: onednn.product(x, w))
            forward["onednn_prepacked"] = lambda: [
                onednn.product(x, w, None, pack) for w, pack in zip(self._ws, packs, strict=True)
            ][-1]
            input_grad["onednn"] = self._each(lambda w: onednn.product(dy, w.t()))
            weight_grad["onednn"] = self._each(lambda w: onednn.product(dy.t(), x.t()))
        self.kinds: dict[str, dict[str, Callable[[], Tensor]]] = {
            "forward": forward,
            "input_grad": input_grad,
            "weight_grad": weight_grad,
        }
        self.operations = 2.0 * m * k * n * n_weights
        """Operations of one call, of any kind."""

    def _each(self, product: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        return lambda: [product(w) for w in self._ws][-1]

    def check(self) -> None:
        """Stop if the libraries do not compute the same: their speed would mean nothing."""
        for kind, ways in self.kinds.items():
            expected = ways["torch"]().clone()
            for name, way in ways.items():
                difference = float((way() - expected).abs().max() / expected.abs().max())
                if difference > TOLERANCE:
                    raise SystemExit(f"{kind} by {name} differs from torch by {difference:.1e}")


def fastest(ways: Ways, tries: int = 3) -> Callable[[], object]:
    """The fastest of several ways, by the best of a few tries each, or of a single one if they take long."""
    best: dict[str, float] = dict.fromkeys(ways, float("inf"))
    for _ in range(tries):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            best[name] = min(best[name], time.perf_counter() - start)
        if sum(best.values()) > LONG:
            break
    return ways[min(best, key=lambda name: best[name])]
