"""Rows for what only some blocks have, such as RoPE or experts, and how keys of `config.json` choose these blocks.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from reallm.errors import ConfigError
from reallm.hf.tables.fields import FieldRow, FieldsSoFar, keys_by_field
from reallm.hf.tables.layer_fields import each_block, one_or_each, period

DefaultBlocks = Callable[[Mapping[str, Any], FieldsSoFar], Sequence[bool]]
"""Whether each block is chosen, from the file's content and the fields of earlier rows, among them `n_layers`."""


class Blocks(Protocol):
    """A choice of blocks by keys of `config.json`."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of `config.json`."""

    def read(self, raw: Mapping[str, Any], known: FieldsSoFar) -> Sequence[bool]:
        """Whether each block is chosen; `known` are the fields of earlier rows. Raises ConfigError."""

    def write(self, chosen: Sequence[bool], config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
        """The values of (some of) `keys` that choose these blocks. Raises ConfigError."""


@dataclass(frozen=True)
class ListedBlocks:
    """Blocks that a list with an entry per block marks: `ListedBlocks("no_rope_layers", all_except_every(4))`.

    Args:
        key: the key of the list; entries behind the last block have no effect.
        default: the blocks if the file has no list. transformers computes them from other keys: list these as
            `older_keys`.
        chosen: the entry of chosen blocks; `True` equals 1.
        other: the entry of all others.
        older_keys: keys that only `default` reads.
    """

    key: str
    default: DefaultBlocks
    chosen: Any = 1
    other: Any = 0
    older_keys: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The key of the list, and those that its default reads."""
        return (self.key, *self.older_keys)

    def read(self, raw: Mapping[str, Any], known: FieldsSoFar) -> Sequence[bool]:
        """See `Blocks.read`."""
        entries, n_layers = raw.get(self.key), known["n_layers"]
        if entries is None:
            return self.default(raw, known)
        if not isinstance(entries, Sequence) or len(entries) < n_layers:
            found = f"has {len(entries)} entries" if isinstance(entries, Sequence) else f"is {entries!r}"
            raise ConfigError(f"{self.key} {found} for {n_layers} layers; give a list with one for each layer")
        for entry in entries[:n_layers]:
            if entry not in (self.chosen, self.other):
                raise ConfigError(f"{self.key} has {entry!r}; supported are {self.chosen!r} and {self.other!r}")
        return [entry == self.chosen for entry in entries[:n_layers]]

    def write(self, chosen: Sequence[bool], config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
        """See `Blocks.write`."""
        return {self.key: [self.chosen if one else self.other for one in chosen]}


@dataclass(frozen=True)
class LaterBlocks:
    """All blocks but the first few, whose number a key states: `LaterBlocks("first_k_dense_replace", default=3)`."""

    key: str
    default: int = 0

    @property
    def keys(self) -> tuple[str, ...]:
        """The key."""
        return (self.key,)

    def read(self, raw: Mapping[str, Any], known: FieldsSoFar) -> Sequence[bool]:
        """See `Blocks.read`."""
        first = self.default if raw.get(self.key) is None else raw[self.key]
        if not isinstance(first, int) or isinstance(first, bool):
            raise ConfigError(f"{self.key}={first!r} must be of type int")
        return [block >= first for block in range(known["n_layers"])]

    def write(self, chosen: Sequence[bool], config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
        """See `Blocks.write`."""
        first = list(chosen).index(True) if any(chosen) else len(chosen)
        if not all(chosen[first:]):
            blocks = [block for block, one in enumerate(chosen) if one]
            raise ConfigError(f"blocks {blocks} cannot be expressed; '{self.key}' only leaves out the first")
        return {self.key: first}


@dataclass(frozen=True)
class WindowedBlocks:
    """The blocks with a sliding window, whose row must come before; there is no key.

    `or_all`: in a model without windows, all blocks are chosen rather than none.
    """

    or_all: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """No keys."""
        return ()

    def read(self, raw: Mapping[str, Any], known: FieldsSoFar) -> Sequence[bool]:
        """See `Blocks.read`."""
        return self._blocks(each_block(known["sliding_window"], known["n_layers"]))

    def write(self, chosen: Sequence[bool], config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
        """See `Blocks.write`."""
        if list(chosen) != self._blocks(config.windows):
            blocks = [block for block, one in enumerate(chosen) if one]
            raise ConfigError(f"blocks {blocks} cannot be expressed; they must be those with a sliding window")
        return {}

    def _blocks(self, windows: Sequence[int | None]) -> list[bool]:
        none = all(window is None for window in windows)
        return [window is not None or (none and self.or_all) for window in windows]


def all_except_every(n: int, key: str | None = None) -> DefaultBlocks:
    """A value of `ListedBlocks.default`: all blocks but every `n`-th; `key` may override `n`."""

    def blocks(raw: Mapping[str, Any], known: FieldsSoFar) -> list[bool]:
        every = period(raw, n, key)
        return [(block + 1) % every != 0 for block in range(known["n_layers"])]

    return blocks


@dataclass(frozen=True)
class InBlocks:
    """The row of a field that only some blocks have, None in all others: `InBlocks(RopeRow(), ListedBlocks(...))`.

    `row` is the row of the one value that these blocks share.
    """

    row: FieldRow
    blocks: Blocks

    @property
    def fields(self) -> tuple[str, ...]:
        """The one field."""
        return self.row.fields

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the value, and those that choose the blocks."""
        return (*self.row.keys, *self.blocks.keys)

    def read(self, raw: Mapping[str, Any], known: FieldsSoFar) -> dict[str, Any]:
        """See `FieldRow.read`."""
        ((name, value),) = self.row.read(raw, known).items()
        return {name: one_or_each([value if chosen else None for chosen in self.blocks.read(raw, known)])}

    def write(self, config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
        """See `FieldRow.write`."""
        (name,) = self.fields
        each = each_block(getattr(config, name), config.n_layers)
        values = list(dict.fromkeys(value for value in each if value is not None))
        if len(values) > 1:
            raise ConfigError(f"{name}={getattr(config, name)!r} cannot be expressed; blocks that have it share one")
        written = self.row.write(config.replace(**{name: values[0]}), base) if values else {}
        return {**written, **self.blocks.write([value is not None for value in each], config, base)}

    def keys_by_field(self, raw: Mapping[str, Any]) -> dict[str, str]:
        """See `fields.keys_by_field`."""
        return keys_by_field([self.row], raw)


@dataclass(frozen=True)
class AttentionInBlocks:
    """The row for blocks with another layer in place of attention, or with another attention than the rest.

        AttentionInBlocks("my_package.layers:Conv", ListedBlocks("layer_types", default, "conv", "full_attention"))

    Args:
        kind: what the chosen blocks have, a class `"package.module:Class"`.
        blocks: the blocks that have it.
        other: what all other blocks have.
    """

    kind: str
    blocks: Blocks
    other: str = "standard"

    @property
    def fields(self) -> tuple[str, ...]:
        """The one field."""
        return ("attention",)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that choose the blocks."""
        return self.blocks.keys

    def read(self, raw: Mapping[str, Any], known: FieldsSoFar) -> dict[str, Any]:
        """See `FieldRow.read`."""
        chosen = self.blocks.read(raw, known)
        return {"attention": one_or_each([self.kind if one else self.other for one in chosen])}

    def write(self, config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
        """See `FieldRow.write`."""
        for kind in config.attentions:
            if kind not in (self.kind, self.other):
                raise ConfigError(f"attention={kind!r} cannot be expressed; it must be {self.kind!r} or {self.other!r}")
        return self.blocks.write([kind == self.kind for kind in config.attentions], config, base)


@dataclass(frozen=True)
class ExpertBlocks:
    """The row, in a `Nested` row for `MoEConfig`, for the blocks with experts: `ExpertBlocks(LaterBlocks("dense"))`."""

    blocks: Blocks

    @property
    def fields(self) -> tuple[str, ...]:
        """The one field."""
        return ("layers",)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that choose the blocks."""
        return self.blocks.keys

    def read(self, raw: Mapping[str, Any], known: FieldsSoFar) -> dict[str, Any]:
        """See `FieldRow.read`."""
        chosen = self.blocks.read(raw, known)
        return {"layers": None if all(chosen) else tuple(block for block, one in enumerate(chosen) if one)}

    def write(self, config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
        """See `FieldRow.write`."""
        layers = range(config.n_layers) if config.layers is None else config.layers
        return self.blocks.write([block in layers for block in range(config.n_layers)], config, base)
