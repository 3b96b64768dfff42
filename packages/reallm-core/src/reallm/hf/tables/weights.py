"""`WeightTable`: the places of our parameters in a family's checkpoints. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from reallm.errors import ConfigError, one_line
from reallm.hf.tables.arrangements import Source
from reallm.model.config import ReaLModelConfig

ModuleKey = str | tuple[str, ...]
"""Path of a module or parameter of ours within its layer, or several that share a tensor."""

Entry = str | Source | Callable[[ReaLModelConfig], str | Source]
"""Name of a module or tensor of the checkpoint, alone or with the arrangement of our parameters in it; or a function
that returns one of these for a configuration."""

Entries = Mapping[ModuleKey, Entry]
Changes = Mapping[Any, Entry | None]
"""Entries to add, to replace or (None) to remove. Keys are `ModuleKey`; Any, because `Mapping` is invariant in keys."""


@dataclass(frozen=True)
class WeightTable:
    """Our modules -> the checkpoint's modules; `{}` stands for the number of the block, from 0.

    Keys are relative to the layer: `{"attn.q": "model.layers.{}.self_attn.q_proj"}` says that `layers.3.attn.q.weight`
    is `model.layers.2.self_attn.q_proj.weight`, and likewise for biases. A key may also be one whole parameter,
    `"attn.sinks"` or `"mlp.experts.gate.weight"`; its value is then the whole name of the tensor.

    Modules of ours that are stored in one tensor share a key: `{("attn.q", "attn.k", "attn.v"): fused("...")}`.
    `transposed("...")` is a weight stored as [in, out]. A name with `{each}` means several tensors, one for each item
    along dim 0 of our parameter: `"mlp.experts.up": "model.layers.{}.mlp.experts.{each}.up_proj"`. Where a name in
    `block` depends on the configuration, its entry is a function:
    `"attn_norm": lambda config: "h.{}.norm" if config.shared_norm else "h.{}.norm_1"`.

    Tensors are written in the order of the table. `critic_head` replaces entries of `head` for a scalar head. `ignored`
    are glob patterns of tensors without effect. `optional_prefix` is a prefix of names that published checkpoints may
    lack; it is always written. Of a family without one, names that lack their first part are read with a notice.

    Raises:
        ConfigError: a key or a name is in the table twice, a name has a wrong number of `{}`, or an entry outside of
            `block` is a function.
    """

    embedding: Entries
    block: Entries
    head: Entries
    critic_head: Entries = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    optional_prefix: str = ""

    def __post_init__(self) -> None:
        for entries, n_braces in ((self.embedding, 0), (self.block, 1), (self.head, 0), (self.critic_head, 0)):
            modules = [name for key in entries for name in names_in(key)]
            for module in modules:
                if modules.count(module) > 1:
                    raise ConfigError(f"weight table: '{module}' is in two rows; remove one")
            for key, entry in entries.items():
                if callable(entry):
                    if n_braces == 0:
                        raise ConfigError(f"weight table: '{_shown(key)}': only entries of block may be functions")
                    continue
                name = as_source(entry).name
                if name.count("{}") != n_braces:
                    raise ConfigError(f"weight table: '{_shown(key)}': '{name}' must have {{}} {n_braces} times")
                if isinstance(key, tuple) and isinstance(entry, str):
                    raise ConfigError(
                        f"weight table: '{_shown(key)}': '{name}' must say how one tensor holds several parameters, "
                        f"such as fused('{name}')"
                    )
        for is_critic in (False, True):
            seen: dict[str, ModuleKey] = {}
            for entries in (self.embedding, self.block, self.head_entries(is_critic=is_critic)):
                for key, entry in entries.items():
                    if callable(entry):  # known for a configuration only
                        continue
                    name = as_source(entry).name
                    if name in seen:
                        raise ConfigError(f"weight table: {_no_inverse(name, seen[name], key)}")
                    seen[name] = key

    def updated(
        self,
        *,
        embedding: Changes | None = None,
        block: Changes | None = None,
        head: Changes | None = None,
        ignored: tuple[str, ...] = (),
    ) -> WeightTable:
        """A copy with entries added, replaced or (None) removed.

        A new entry replaces every entry with one of its modules: `("attn.q", "attn.k", "attn.v")` replaces all three.
        """
        return dataclasses.replace(
            self,
            embedding=_updated(self.embedding, embedding or {}),
            block=_updated(self.block, block or {}),
            head=_updated(self.head, head or {}),
            ignored=self.ignored + ignored,
        )

    def of_config(self, config: ReaLModelConfig) -> WeightTable:
        """The table of a configuration, without functions.

        Raises:
            ConfigError: a function raises an exception, or the table is not allowed with what it returns.
        """
        return dataclasses.replace(
            self, block={key: _of_config(key, entry, config) for key, entry in self.block.items()}
        )

    def head_entries(self, *, is_critic: bool) -> Entries:
        """The entries of the head; for a critic, with the entries of `critic_head` in place of a language model's."""
        return {**self.head, **self.critic_head} if is_critic else self.head

    def entries(self, layer: int, n_layers: int, *, is_critic: bool = False) -> Entries:
        """The entries of a layer: 0 is the embedding, n+1 the head."""
        if layer == 0:
            return self.embedding
        return self.block if layer <= n_layers else self.head_entries(is_critic=is_critic)

    def is_ignored(self, hf_name: str) -> bool:
        """Whether a tensor of the checkpoint has no effect."""
        return any(fnmatchcase(hf_name, pattern) for pattern in self.ignored)


def names_in(key: ModuleKey) -> tuple[str, ...]:
    """The modules in a key of the table."""
    return (key,) if isinstance(key, str) else key


def as_source(entry: Entry) -> Source:
    """An entry as a `Source`; a plain name has the arrangement `Same`."""
    assert not callable(entry), "it depends on the configuration: see `WeightTable.of_config`"
    return Source(entry) if isinstance(entry, str) else entry


def _of_config(key: ModuleKey, entry: Entry, config: ReaLModelConfig) -> str | Source:
    if not callable(entry):
        return entry
    try:
        return entry(config)
    except Exception as error:  # it is the plugin's
        raise ConfigError(f"'{_shown(key)}': the function raised {type(error).__name__}: {one_line(error)}") from error


def _updated(entries: Entries, changes: Changes) -> Entries:
    changed = {name for key in changes for name in names_in(key)}
    kept = {key: entry for key, entry in entries.items() if key in changes or not changed & set(names_in(key))}
    return {key: entry for key, entry in {**kept, **changes}.items() if entry is not None}


def _no_inverse(name: str, one: ModuleKey, other: ModuleKey) -> str:
    both = f"'{_shown(one)}' and '{_shown(other)}'"
    hint = ""
    if {one, other} == {"attn_norm", "mlp_norm"}:
        hint = "; a norm that attention and MLP share is shared_norm=True, with an entry for 'attn_norm' alone"
    return f"'{name}' is the name of two modules, {both}; the table has no inverse{hint}"


def _shown(key: ModuleKey) -> str:
    return ", ".join(names_in(key))
