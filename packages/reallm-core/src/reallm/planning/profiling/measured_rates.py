"""`MeasuredRates`: times of the pieces of a model, interpolated between what was measured. Imports no torch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import groupby

from reallm.planning.profiling.profile import DecodeTimes, LinkProfile, ModelProfile, PassTimes
from reallm.planning.rates import Division, Piece, Rates

Points = Sequence[tuple[float, float]]


class MeasuredRates:
    """Times of the pieces of one model, as measured; see `Rates`.

    Between measured points they are linear in tokens and bytes, and bilinear in the width and the context of decoding;
    beyond the last point they grow as between the last two. What was not measured, such as other numbers of
    tensor-parallel ranks, takes the stated time, scaled by what measuring found for one rank.

    Args:
        model: the measured times of the model, by the number of ranks of a node that computed at the same time. The
            times are those of as many as were measured at most; see `when_busy`.
        links: those of messages and copies.
        stated: rates for what was not measured.
        source: where the measurements come from, such as the path of a file.
    """

    def __init__(self, model: Mapping[int, ModelProfile], links: LinkProfile, stated: Rates, source: str) -> None:
        self._levels = dict(sorted(model.items())) or {1: ModelProfile()}
        self._model, self._links, self._stated, self._source = [*self._levels.values()][-1], links, stated, source
        self._when_busy: dict[int, MeasuredRates] = {}
        self._interpolated_pass = lru_cache(maxsize=None)(self._uncached_pass)
        self._interpolated_decode = lru_cache(maxsize=None)(self._uncached_decode)

    @property
    def source(self) -> str:
        """The file of measurements, and what it lacks."""
        missing = ", ".join(self.unmeasured)
        return f"{self._source} ({missing} stated)" if missing else self._source

    @cached_property
    def unmeasured(self) -> tuple[str, ...]:
        """What is stated since it was not measured."""
        parts = {
            "passes": self._model.passes,
            "backward passes": any(each.backward_block for each in self._model.passes),
            "decoding": self._model.decoding,
            "optimizer": self._model.optimizer,
            "collectives": self._links.all_reduce and self._links.all_gather and self._links.reduce_scatter,
            "point-to-point": self._links.point_to_point,
            "host copies": self._links.host_copy,
        }
        return tuple(name for name, measured in parts.items() if not measured)

    def when_busy(self, n_ranks: int) -> MeasuredRates:
        """The rates while so many ranks of a node compute: linear between the numbers that were measured."""
        first, *_, last = [*self._levels, *self._levels]
        n_ranks = max(first, min(last, n_ranks))
        if n_ranks == last:
            return self
        if n_ranks not in self._when_busy:
            below = max(n for n in self._levels if n <= n_ranks)
            above = min(n for n in self._levels if n > n_ranks)
            share = (n_ranks - below) / (above - below)
            model = self._levels[below].towards(self._levels[above], share)
            self._when_busy[n_ranks] = MeasuredRates({n_ranks: model}, self._links, self._stated, self._source)
        return self._when_busy[n_ranks]

    # ------------------------------------------------------------------ pieces

    def forward(self, piece: Piece, lengths: Sequence[int], tp: int = 1) -> float:
        """A forward pass over packed sequences of these lengths; the head has what is done once for a pass."""
        return self._pass("forward", piece, lengths, tp)

    def backward(self, piece: Piece, lengths: Sequence[int], tp: int = 1) -> float:
        """The backward pass that follows a forward pass."""
        return self._pass("backward", piece, lengths, tp)

    def decode(self, piece: Piece, n_sequences: int, context: float, tp: int = 1, division: Division = "") -> float:
        """A pass over one new token of each sequence; the head has what is done once for a step."""
        if piece == "embedding":
            return 0.0  # counted with the head, with which it was measured
        for known_division in (division, ""):
            measured = self._interpolated_decode(piece, n_sequences, context, tp, known_division)
            if measured is not None:
                return measured
        stated = self._stated.decode(piece, n_sequences, context, tp)
        known = self._interpolated_decode(piece, n_sequences, context, 1, "")
        return stated if known is None else known * stated / self._stated.decode(piece, n_sequences, context, 1)

    def generation_start(self, n_parameters: int) -> float:
        """What is done once before a model of so many parameters on the rank generates."""
        if not self._model.starts:
            return self._stated.generation_start(n_parameters)
        return interpolate(self._model.starts, n_parameters)

    def optimizer(self, n_parameters: int) -> float:
        """An optimizer step for so many parameters on the rank."""
        if not self._model.optimizer:
            return self._stated.optimizer(n_parameters)
        return interpolate(self._model.optimizer, n_parameters)

    # ------------------------------------------------------------------ links

    def all_reduce(self, n_bytes: int, ranks: Sequence[int]) -> float:
        """A sum over ranks; over more ranks than were measured it is stated."""
        return self._collective(self._links.all_reduce, n_bytes, ranks, self._stated.all_reduce)

    def all_gather(self, n_bytes: int, ranks: Sequence[int]) -> float:
        """A gather of so many bytes together; over more ranks than were measured it is stated."""
        return self._collective(self._links.all_gather, n_bytes, ranks, self._stated.all_gather)

    def reduce_scatter(self, n_bytes: int, ranks: Sequence[int]) -> float:
        """A sum of which each rank gets a part; over more ranks than were measured it is stated."""
        return self._collective(self._links.reduce_scatter, n_bytes, ranks, self._stated.reduce_scatter)

    def point_to_point(self, n_bytes: int, ranks: Sequence[int]) -> float:
        """A message from the first of two ranks to the second."""
        points = self._links.point_to_point
        return interpolate(points, n_bytes) if points else self._stated.point_to_point(n_bytes, ranks)

    def host_copy(self, n_bytes: int) -> float:
        """A copy from the device to host memory, or back."""
        points = self._links.host_copy
        return interpolate(points, n_bytes) if points else self._stated.host_copy(n_bytes)

    # ------------------------------------------------------------------ private helpers

    def _collective(
        self,
        measured: Mapping[int, Points],
        n_bytes: int,
        ranks: Sequence[int],
        stated: Callable[[int, Sequence[int]], float],
    ) -> float:
        points = measured.get(len(ranks))
        return interpolate(points, n_bytes) if points else stated(n_bytes, ranks)

    def _pass(self, direction: str, piece: Piece, lengths: Sequence[int], tp: int) -> float:
        if piece == "embedding":
            return 0.0  # counted with the head, with which it was measured
        counted = len(lengths), sum(lengths), sum(length * length for length in lengths)
        measured = self._interpolated_pass(direction, piece, *counted, tp)
        if measured is not None:
            return measured
        compute = self._stated.forward if direction == "forward" else self._stated.backward
        stated = compute(piece, lengths, tp)
        known = self._interpolated_pass(direction, piece, *counted, 1)
        return stated if known is None else known * stated / compute(piece, lengths, 1)

    def _uncached_pass(
        self, direction: str, piece: Piece, n_sequences: int, n_tokens: int, n_squares: int, tp: int
    ) -> float | None:
        """Linear in tokens along the length that has the most points, plus what attention adds for other lengths."""
        name = f"{direction}_{'block' if piece == 'block' else 'ends'}"
        points = [each for each in self._model.passes if each.tp == tp]
        if not points or (direction == "backward" and "backward passes" in self.unmeasured):
            return None
        line = _main_line(points)
        length = line[0].length
        seconds = interpolate([(each.n_tokens, getattr(each, name)) for each in line], n_tokens)
        if piece != "block":
            return seconds
        return max(0.0, seconds + self._per_pair(name, tp) * (n_squares - n_tokens * length))

    def _per_pair(self, name: str, tp: int) -> float:
        """Seconds that a block takes longer for each pair of tokens of one sequence, in excess of the main line."""
        points = [each for each in self._model.passes if each.tp == tp]
        line = _main_line(points)
        tokens = [(each.n_tokens, getattr(each, name)) for each in line]
        excess = pairs = 0.0
        for each in points:
            if each.length > line[0].length:
                excess += getattr(each, name) - interpolate(tokens, each.n_tokens)
                pairs += each.n_tokens * (each.length - line[0].length)
        return max(0.0, excess / pairs) if pairs else 0.0

    def _uncached_decode(
        self, piece: Piece, n_sequences: int, context: float, tp: int, division: Division
    ) -> float | None:
        """Linear in the width at each context, then linear in the context."""
        found = (each for each in self._model.decoding if (each.tp, each.division) == (tp, division))
        points = sorted(found, key=_context)
        name = "block" if piece == "block" else "ends"
        at_contexts = [
            (of_context, interpolate([(each.n_sequences, getattr(each, name)) for each in group], n_sequences))
            for of_context, group in groupby(points, key=_context)
        ]
        return interpolate(at_contexts, context) if at_contexts else None


def _context(each: DecodeTimes) -> int:
    return each.context


def _main_line(points: Sequence[PassTimes]) -> list[PassTimes]:
    """The points of the length at which most numbers of tokens were measured; of several, the shortest."""
    lengths = sorted({each.length for each in points})
    length = max(lengths, key=lambda length: (sum(each.length == length for each in points), -length))
    return [each for each in points if each.length == length]


def interpolate(points: Points, x: float) -> float:
    """Piecewise linear between points, and beyond the last as between the last two; at least the first point's value
    below it, and never negative.

    A single point is taken as proportional to `x`.
    """
    points = sorted(points)
    if len(points) == 1:
        return points[0][1] * x / points[0][0] if points[0][0] else points[0][1]
    if x <= points[0][0]:
        return points[0][1]
    after = min(bisect_left(points, (x, 0.0)), len(points) - 1)
    (x0, y0), (x1, y1) = points[after - 1], points[after]
    return max(0.0, y0 + (y1 - y0) * (x - x0) / (x1 - x0))
