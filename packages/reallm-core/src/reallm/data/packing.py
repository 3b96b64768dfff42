"""Plans the grouping of samples into parts and micro-batches: deterministic, from their lengths alone.

>>> balanced_partition([8, 7, 6, 5, 4], 2)  # 15 and 15 tokens
[[0, 1], [2, 3, 4]]
>>> micro_batches([6, 5, 5, 4, 30], 16)  # 10, 10, and one longer than the budget
[[0, 3], [1, 2], [4]]
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Sequence

from reallm.errors import DataError


def balanced_partition(lengths: Sequence[int], k: int) -> list[list[int]]:
    """Partition the indices of `lengths` into `k` parts with nearly equal sums.

    Longest-first greedy assignment (R. L. Graham, "Bounds on multiprocessing timing anomalies", 1969), then moves
    and swaps between the fullest part and another as long as they bring the two closer together.

    Returns:
        `k` parts in order of their first index, each ascending. No part is empty if there are `k` samples.

    Raises:
        DataError: `k` is below 1 or a length negative.
    """
    _check(lengths, "k", k)
    # (sum, count, part): a part without samples comes before one whose samples are empty.
    heap = [(0, 0, part) for part in range(k)]
    parts: list[list[int]] = [[] for _ in range(k)]
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        total, count, part = heap[0]
        parts[part].append(i)
        heapq.heapreplace(heap, (total + lengths[i], count + 1, part))
    _refine(lengths, parts)
    return _ordered(parts)


def micro_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Partition the indices of `lengths` into micro-batches of at most `max_tokens`.

    Micro-batches are as few as the heuristics find, then as equal as possible. A sample longer than `max_tokens` is a
    micro-batch of its own.

    Returns:
        Micro-batches in order of their first index, each ascending; none for no samples.

    Raises:
        DataError: `max_tokens` is below 1 or a length negative.
    """
    _check(lengths, "max_tokens", max_tokens)
    alone = [[i] for i, length in enumerate(lengths) if length > max_tokens]
    rest = [i for i, length in enumerate(lengths) if length <= max_tokens]
    return _ordered(alone + [[rest[j] for j in part] for part in _fewest_parts([lengths[i] for i in rest], max_tokens)])


def parallel_micro_batches(
    lengths: Sequence[int], max_tokens: int, dp: int, *, at_least: int = 1
) -> list[list[list[int]]]:
    """The micro-batches of each of `dp` ranks, the same number on every rank; each index of `lengths` is in one.

    The n-th micro-batches of all ranks have nearly equal sums, so that ranks which synchronize after each micro-batch
    wait little; so do the totals of all ranks. If there are too few samples, some ranks have empty micro-batches at the
    end.

    >>> parallel_micro_batches([6, 5, 5, 4], 10, 2)  # at most 10 tokens each
    [[[0, 3]], [[1, 2]]]
    >>> parallel_micro_batches([6, 5, 5], 10, 2)
    [[[1, 2]], [[0]]]

    Args:
        lengths: tokens of each sample.
        max_tokens: maximum number of tokens of a micro-batch; a longer sample is a micro-batch of its own.
        dp: number of data-parallel ranks.
        at_least: minimum number of micro-batches for each rank, if there are enough samples; a pipeline needs several.

    Raises:
        DataError: `max_tokens`, `dp` or `at_least` is below 1, or a length negative.
    """
    _check(lengths, "dp", dp)
    _check(lengths, "at_least", at_least)
    parts = micro_batches(lengths, max_tokens)
    fewest = min(at_least, -(-len(lengths) // dp))
    n_parts = max(-(-len(parts) // dp), fewest) * dp
    if dp > 1 or n_parts > len(parts):
        equal = [part for part in balanced_partition(lengths, max(1, n_parts)) if part]
        if all(len(part) == 1 or sum(lengths[i] for i in part) <= max_tokens for part in equal):
            parts = equal
    return _assign_to_ranks(lengths, parts, dp) if dp > 1 else [parts]


def _fewest_parts(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """As few parts within the budget as possible: equal parts if they fit, else the result of best-fit-decreasing.

    Budget 10, lengths 6 6 4 4: the sum asks for 2 parts, and 6+4, 6+4 are equal and fit.
    Budget 10, lengths 6 6 6: the sum asks for 2, but only 3 fit.
    """
    if not lengths:
        return []
    packed = _best_fit(lengths, max_tokens)
    for k in range(max(1, -(-sum(lengths) // max_tokens)), len(packed) + 1):
        parts = balanced_partition(lengths, k)
        if max(sum(lengths[i] for i in part) for part in parts) <= max_tokens:
            return parts
    # Best fit fills the first parts up. The smallest budget that needs no more parts makes them more equal.
    low, high = max(lengths), max_tokens
    while low < high:
        middle = (low + high) // 2
        tighter = _best_fit(lengths, middle)
        if len(tighter) <= len(packed):
            packed, high = tighter, middle
        else:
            low = middle + 1
    return packed


def _assign_to_ranks(lengths: Sequence[int], parts: list[list[int]], dp: int) -> list[list[list[int]]]:
    """Assign parts in rounds of `dp`, fullest first; in each round the rank with the lowest total takes the fullest."""
    sums = [sum(lengths[i] for i in part) for part in parts]
    order = sorted(range(len(parts)), key=lambda part: (-sums[part], parts[part]))
    ranks: list[list[list[int]]] = [[] for _ in range(dp)]
    totals = [0] * dp
    for start in range(0, len(order), dp):
        of_round = order[start : start + dp]
        for i, rank in enumerate(sorted(range(dp), key=lambda rank: (totals[rank], rank))):
            ranks[rank].append(parts[of_round[i]] if i < len(of_round) else [])
            totals[rank] += sums[of_round[i]] if i < len(of_round) else 0
    return ranks


def _best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit-decreasing: longest first, each into the fullest part with room; no length exceeds `capacity`."""
    parts: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, part), ascending
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        position = bisect.bisect_left(rooms, (lengths[i], -1))
        if position < len(rooms):
            room, part = rooms.pop(position)
        else:
            room, part = capacity, len(parts)
            parts.append([])
        parts[part].append(i)
        bisect.insort(rooms, (room - lengths[i], part))
    return parts


def _refine(lengths: Sequence[int], parts: list[list[int]]) -> None:
    """Make the sums of `parts` more equal, in place.

    Fullest 8 5 4 = 17, other 7 6 = 13: swapping 8 for 6 moves 2, half of the gap, and leaves 15 and 15.
    """
    sums = [sum(lengths[i] for i in part) for part in parts]
    while True:
        full = max(range(len(parts)), key=sums.__getitem__)
        for other in sorted(range(len(parts)), key=sums.__getitem__):
            exchange = _best_exchange(lengths, parts[full], parts[other], sums[full] - sums[other])
            if exchange:
                break
        else:
            return
        for i, source, target in zip(exchange, (full, other), (other, full), strict=True):
            if i is not None:
                parts[source].remove(i)
                parts[target].append(i)
                sums[source] -= lengths[i]
                sums[target] += lengths[i]


def _best_exchange(
    lengths: Sequence[int], full: list[int], other: list[int], gap: int
) -> tuple[int, int | None] | None:
    """The index to move from `full` and the one to move back (None: none), which together move about half of `gap`."""
    candidates: list[tuple[int, int | None]] = [(0, None), *sorted((lengths[i], i) for i in other)]
    sizes = [size for size, _ in candidates]
    best = gap  # distance of the gap from twice the amount moved: the smaller, the closer the two sums
    chosen: tuple[int, int | None] | None = None
    for i in full:
        position = bisect.bisect_left(sizes, lengths[i] - gap / 2)
        for size, j in candidates[max(0, position - 1) : position + 1]:
            distance = abs(gap - 2 * (lengths[i] - size))
            if distance < best:
                best, chosen = distance, (i, j)
    return chosen


def _ordered(parts: list[list[int]]) -> list[list[int]]:
    """Sort each part, and parts by their first index, empty ones last."""
    return sorted((sorted(part) for part in parts), key=lambda part: part or [2**63])


def _check(lengths: Sequence[int], name: str, value: int) -> None:
    if value < 1:
        raise DataError(f"{name}={value} must be at least 1")
    if min(lengths, default=0) < 0:
        raise DataError(f"sample {lengths.index(min(lengths))} has a negative length, {min(lengths)}")


def inference_micro_batches(
    lengths: Sequence[int], dp: int, pp: int, max_tokens: int | None = None
) -> list[list[list[int]]]:
    """The micro-batches of each of `dp` ranks for a forward pass through `pp` stages; each index is in one of them.

    Ranks have nearly equal sums, and so do the micro-batches of a rank. Unlike in `parallel_micro_batches`, ranks may
    have different numbers of them: one for each stage, which keeps all stages busy, or more if `max_tokens` requires;
    fewer if there are too few samples.

    >>> inference_micro_batches([8, 7, 6, 5, 4], dp=2, pp=2)  # 15 and 15
    [[[0], [1]], [[2], [3, 4]]]

    Raises:
        DataError: `dp` or `max_tokens` is below 1, or a length negative.
    """
    return [_fill_stages(lengths, indices, pp, max_tokens) for indices in balanced_partition(lengths, dp)]


def _fill_stages(lengths: Sequence[int], indices: Sequence[int], pp: int, max_tokens: int | None) -> list[list[int]]:
    """Split the samples of one rank into at least `pp` micro-batches, if there are that many samples."""
    chosen = [lengths[i] for i in indices]
    n_batches = min(pp, len(indices))
    batches = [] if max_tokens is None else micro_batches(chosen, max_tokens)
    if n_batches > len(batches):
        batches = balanced_partition(chosen, n_batches)
    return [[indices[i] for i in batch] for batch in batches]
