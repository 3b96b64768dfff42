"""Who works on what: sequences dealt out over a layout. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from reallm.data.packing import balanced_partition, micro_batches
from reallm.parallel.layout import Layout


def deal(sizes: Sequence[int], layout: Layout, max_size: int | None = None) -> list[list[list[int]]]:
    """Indices of `sizes` for each data-parallel rank, in groups that go through the stages one after another.

    Ranks have nearly equal sums, and so have the groups of a rank. There are as many groups as stages, which keeps all
    stages busy, or as many as `max_size` asks for; fewer where there are too few samples, none without any.

        >>> deal([8, 7, 6, 5, 4], Layout(dp=2, pp=2))  # 15 and 15
        [[[0], [1]], [[2], [3, 4]]]
    """
    return [_groups(sizes, share, layout.pp, max_size) for share in balanced_partition(sizes, layout.dp)]


def _groups(sizes: Sequence[int], share: Sequence[int], pp: int, max_size: int | None) -> list[list[int]]:
    own = [sizes[i] for i in share]
    n_groups = min(pp, len(share))
    groups = [] if max_size is None else micro_batches(own, max_size)
    if n_groups > len(groups):
        groups = balanced_partition(own, n_groups)
    return [[share[i] for i in group] for group in groups]
