"""`SequenceState`: a sequence that is being generated, as the scheduler and the managers of the cache know it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(eq=False)
class SequenceState:
    """The tokens of a sequence, and how many of them the cache holds."""

    id: int
    """Counts up: of two sequences the one with the lower id has come first."""
    tokens: list[int]
    """The prompt and all tokens generated so far."""
    n_cached: int = 0
    """Number of the first tokens whose keys and values are in the cache."""
    awaits_token: bool = False
    """Whether a step is in flight that samples its next token."""
    parent_id: int | None = None
    """Another sample of the same prompt, whose cache has the prompt."""
    n_shared: int = 0
    """Number of the first tokens that are those of the parent."""
    block_hashes: list[int] = field(default_factory=list)
    """Hashes of its full blocks of tokens, as far as they were asked for; see `PrefixIndex`."""

    @property
    def n_uncached(self) -> int:
        """Number of tokens that are still to be computed before the next one can be sampled."""
        return len(self.tokens) - self.n_cached
