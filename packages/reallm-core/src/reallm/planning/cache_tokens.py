"""`cache_tokens`: for how many tokens a rank has memory for keys and values, while it generates."""

from __future__ import annotations

import math
from typing import NamedTuple

from reallm.generation.row_manager import row_capacity
from reallm.generation.row_slabs import SLAB_TOKENS, slab_tokens
from reallm.planning.workload import Workload


class CacheTokens(NamedTuple):
    """Tokens for whose keys and values there is memory."""

    prompts: int
    """While prompts are computed that nothing precedes."""
    most: int
    """The most at any time."""


def cache_tokens(workload: Workload, n_sequences: int, *, in_rows: bool) -> CacheTokens:
    """What the cache of a rank holds if all of its answers are as long as the longest.

    Args:
        workload: prompts and answers.
        n_sequences: answers that the rank generates at the same time.
        in_rows: whether each has a row of its own, as on a CPU; otherwise they share the pages of their prompt.
    """
    prompt, longest = workload.prompts.longest, workload.prompts.longest + workload.answers.longest
    if not in_rows:
        most = math.ceil(n_sequences * (prompt / workload.n_answers + workload.answers.longest))
        return CacheTokens(most, most)
    capacity, shortest = (
        row_capacity(max(1, longest - 1)),
        row_capacity(workload.prompts.values[0]),
    )  # nothing follows the last token
    most = slab_tokens(capacity, n_sequences)
    if shortest < capacity:  # as long as some have not outgrown it, the slab of the next smaller rows is there
        most += min(SLAB_TOKENS, slab_tokens(capacity // 2, n_sequences))
    return CacheTokens(slab_tokens(row_capacity(prompt), math.ceil(n_sequences / workload.n_answers)), most)
