"""`PrefixIndex`: finds sequences that begin with the same blocks of tokens. Imports no torch.

The hash of a block covers all tokens before it too: `hash((hash of the block before, tokens of the block))`; before the
first block is the version of the weights. A sequence of 600 tokens in blocks of 256 has two hashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from reallm.generation.sequence import SequenceState

BLOCK_SIZE = 256
"""Number of tokens of a block."""

KeysAreStale = Callable[[int, int], bool]
"""`keys_are_stale(n_cached, n_tokens)`: whether the keys of the first `n_cached` tokens of a sequence, computed when it
had no more, are useless once it has `n_tokens`, because their rotation depends on its length (dynamic RoPE)."""


class PrefixIndex:
    """The sequences that have a block of tokens in the cache or will have it soon, by the hash of the block.

    A hash proves nothing: whoever finds a sequence here compares tokens.

    Args:
        block_size: number of tokens of a block.
        keys_are_stale: whether keys depend on the length of a sequence. Sequences share nothing once theirs do. None:
            they never do.
    """

    def __init__(self, block_size: int = BLOCK_SIZE, keys_are_stale: KeysAreStale | None = None) -> None:
        self.block_size = block_size
        self._keys_are_stale = keys_are_stale
        self._version = 0
        self._holders: dict[tuple[int, int], dict[int, None]] = {}  # number and hash of a block -> ids of sequences

    def is_shareable(self, sequence: SequenceState) -> bool:
        """Whether the keys of a sequence are those of any other that begins alike."""
        return self._keys_are_stale is None or not self._keys_are_stale(1, len(sequence.tokens))

    def n_from_parent(
        self, sequence: SequenceState, parent: SequenceState, n_computed: int, *, per_token: bool = True
    ) -> int:
        """Number of the first tokens of a sequence that it can have from its parent, which has `n_computed`.

        Tokens that the parent has had computed since its prompt are in the way unless all that layers keep is
        `per_token`, and stays as it is when a sequence gets longer.
        """
        n_tokens = min(n_computed, sequence.n_shared)
        if n_tokens < n_computed and not (per_token and self.is_shareable(parent)):
            return 0
        is_stale = self._keys_are_stale is not None and self._keys_are_stale(n_tokens, len(sequence.tokens))
        return 0 if is_stale else n_tokens

    def hashes(self, sequence: SequenceState, n_blocks: int) -> list[int]:
        """Hashes of the first `n_blocks` blocks of a sequence; each is computed once and kept with the sequence."""
        root, known, size = hash((self._version,)), sequence.block_hashes, self.block_size
        if not known or known[0] != root:
            known[:] = [root]
        for block in range(len(known) - 1, n_blocks):
            known.append(hash((known[block], *sequence.tokens[block * size : (block + 1) * size])))
        return known[1 : n_blocks + 1]

    def add(self, sequence: SequenceState, blocks: range) -> None:
        """List a sequence under blocks, given by their numbers from 0."""
        hashes = self.hashes(sequence, blocks.stop)
        for block in blocks:
            self._holders.setdefault((block, hashes[block]), {})[sequence.id] = None

    def remove(self, sequence: SequenceState, blocks: range) -> None:
        """List a sequence no longer under blocks under which it is listed."""
        hashes = self.hashes(sequence, blocks.stop)
        for block in blocks:
            holders = self._holders[block, hashes[block]]
            del holders[sequence.id]
            if not holders:
                del self._holders[block, hashes[block]]

    def candidates(self, sequence: SequenceState) -> Iterator[tuple[int, int]]:
        """Pairs (n_tokens, id) of sequences that seem to begin with the same `n_tokens`, the most first.

        The last token does not count: it has to be computed, so that the next one can be sampled.
        """
        if not self._holders or not self.is_shareable(sequence):
            return
        hashes = self.hashes(sequence, (len(sequence.tokens) - 1) // self.block_size)
        for block in reversed(range(len(hashes))):
            for sequence_id in self._holders.get((block, hashes[block]), ()):
                if sequence_id != sequence.id:
                    yield (block + 1) * self.block_size, sequence_id

    def forget(self) -> None:
        """Forget all sequences; blocks have other hashes from now on."""
        self._version += 1
        self._holders.clear()
