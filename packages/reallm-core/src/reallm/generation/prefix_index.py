"""`PrefixIndex`: finds the sequences that begin with the same blocks of tokens. Imports no torch.

The hash of a block covers all tokens before it too: `hash(parent, tokens of the block)`, and the hash before the first
block is the version of the weights. A sequence of 600 tokens in blocks of 256 has two hashes.
"""

from __future__ import annotations

from collections.abc import Iterator

from reallm.generation.sequence import SequenceState

BLOCK_SIZE = 256
"""Number of tokens of a block."""


class PrefixIndex:
    """Which sequences have a block of tokens in the cache, by the hash of the block and of all before it.

    Args:
        longest_shareable: number of tokens up to which the keys of a sequence do not depend on its length; longer ones
            share nothing. None: they never depend on it.
    """

    def __init__(self, longest_shareable: int | None = None) -> None:
        self._version = 0
        self._longest_shareable = longest_shareable
        self._holders: dict[int, dict[int, None]] = {}

    def shareable(self, sequence: SequenceState) -> bool:
        """Whether the keys of a sequence are those of every other sequence that begins alike."""
        return self._longest_shareable is None or len(sequence.tokens) <= self._longest_shareable

    def hashes(self, sequence: SequenceState, n_blocks: int) -> list[int]:
        """Hashes of the first `n_blocks` blocks of a sequence, kept with it."""
        root, known, tokens = hash((self._version,)), sequence.block_hashes, sequence.tokens
        if not known or known[0] != root:
            known[:] = [root]
        for block in range(len(known) - 1, n_blocks):
            known.append(hash((known[block], *tokens[block * BLOCK_SIZE : (block + 1) * BLOCK_SIZE])))
        return known[1 : n_blocks + 1]

    def add(self, block_hash: int, sequence_id: int) -> None:
        """Note that a sequence has a block, or will have it soon."""
        self._holders.setdefault(block_hash, {})[sequence_id] = None

    def remove(self, block_hash: int, sequence_id: int) -> None:
        """Note that a sequence no longer has a block."""
        holders = self._holders[block_hash]
        del holders[sequence_id]
        if not holders:
            del self._holders[block_hash]

    def candidates(self, sequence: SequenceState) -> Iterator[tuple[int, int]]:
        """Pairs (number of tokens, id) of sequences that probably begin with as many tokens, the most tokens first.

        The last token is not counted: it has to be computed, so that the one after it can be sampled. A hash proves
        nothing: the caller compares tokens.
        """
        if not self.shareable(sequence):
            return
        n_blocks = (len(sequence.tokens) - 1) // BLOCK_SIZE
        for block, block_hash in reversed([*enumerate(self.hashes(sequence, n_blocks), 1)]):
            for sequence_id in self._holders.get(block_hash, ()):
                yield block * BLOCK_SIZE, sequence_id

    def forget(self) -> None:
        """Forget all blocks, and begin the hashes of the next version of the weights."""
        self._version += 1
        self._holders.clear()
