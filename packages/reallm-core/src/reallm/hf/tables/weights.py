"""The table that says where a family's checkpoints hold our parameters. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from reallm.errors import ConfigError
from reallm.hf.tables.arrangements import Source

Ours = str | tuple[str, ...]
Theirs = str | Source
Part = Mapping[Ours, Theirs]
Changes = Mapping[Any, Theirs | None]
"""Entries to add, to replace or (None) to take out; keys are `Ours`, of which mypy would accept no part."""


@dataclass(frozen=True)
class WeightTable:
    """Modules of ours -> modules of the checkpoint; `{}` stands for the number of the block, from 0.

    Keys are relative to the layer: `{"attn.q": "model.layers.{}.self_attn.q_proj"}` says that `layers.3.attn.q.weight`
    is `model.layers.2.self_attn.q_proj.weight`, and the same for biases. A key may also be one whole parameter,
    `"attn.sinks"` or `"mlp.experts.gate.weight"`; its value is then the whole name of the tensor.

    Several of ours that are stored in one tensor share a key: `{("attn.q", "attn.k", "attn.v"): fused("...")}`.
    `transposed("...")` is a weight stored as [in, out]. A name with `{each}` stands for many tensors, one for each item
    along the first dim of ours: `"mlp.experts.up": "model.layers.{}.mlp.experts.{each}.up_proj"`.

    Tensors are written in the order of the table. `critic_head` replaces entries of `head` for a scalar head. `ignored`
    are patterns (as in a shell) of tensors without effect. `optional_prefix` is a beginning of names that some
    checkpoints lack; it is always written.

    Raises:
        ConfigError: a key or a name that stands in the table twice, or a name with a wrong number of `{}`.
    """

    embedding: Part
    block: Part
    head: Part
    critic_head: Part = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    optional_prefix: str = ""

    def __post_init__(self) -> None:
        for part, numbered in ((self.embedding, 0), (self.block, 1), (self.head, 0), (self.critic_head, 0)):
            ours_all = [name for key in part for name in names_in(key)]
            for name in ours_all:
                if ours_all.count(name) > 1:
                    raise ConfigError(f"weight table: '{name}' stands in two rows; remove one")
            for key, theirs in part.items():
                name = stored(theirs).name
                if name.count("{}") != numbered:
                    raise ConfigError(f"weight table: '{_shown(key)}': '{name}' must have {{}} {numbered} times")
                if isinstance(key, tuple) and isinstance(theirs, str):
                    raise ConfigError(
                        f"weight table: '{_shown(key)}': '{name}' must say how one tensor holds several parameters, "
                        f"such as fused('{name}')"
                    )
        for is_critic in (False, True):
            seen: dict[str, Ours] = {}
            for part in (self.embedding, self.block, self.head_part(is_critic=is_critic)):
                for key, theirs in part.items():
                    name = stored(theirs).name
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
        """A copy with other entries: what is new is added, what is there is replaced, None takes an entry out.

        A new entry replaces every entry of which it has a name: `("attn.q", "attn.k", "attn.v")` those of all three.
        """
        return dataclasses.replace(
            self,
            embedding=_updated(self.embedding, embedding or {}),
            block=_updated(self.block, block or {}),
            head=_updated(self.head, head or {}),
            ignored=self.ignored + ignored,
        )

    def head_part(self, *, is_critic: bool) -> Part:
        """The entries of the head, with a scalar head's own in place."""
        return {**self.head, **self.critic_head} if is_critic else self.head

    def part(self, layer: int, n_layers: int, *, is_critic: bool = False) -> Part:
        """The entries of a layer: 0 is the embedding, n+1 the head."""
        if layer == 0:
            return self.embedding
        return self.block if layer <= n_layers else self.head_part(is_critic=is_critic)

    def is_ignored(self, hf_name: str) -> bool:
        """Whether a tensor of the checkpoint has no effect."""
        return any(fnmatchcase(hf_name, pattern) for pattern in self.ignored)


def names_in(key: Ours) -> tuple[str, ...]:
    """The names in a key of the table."""
    return (key,) if isinstance(key, str) else key


def stored(theirs: Theirs) -> Source:
    """A value of the table, where a plain name means the same tensor."""
    return Source(theirs) if isinstance(theirs, str) else theirs


def _updated(part: Part, changes: Changes) -> Part:
    changed = {name for key in changes for name in names_in(key)}
    kept = {key: value for key, value in part.items() if key in changes or not changed & set(names_in(key))}
    return {key: value for key, value in {**kept, **changes}.items() if value is not None}


def _no_inverse(name: str, one: Ours, other: Ours) -> str:
    both = f"'{_shown(one)}' and '{_shown(other)}'"
    hint = ""
    if {one, other} == {"attn_norm", "mlp_norm"}:
        hint = "; a norm that attention and MLP share is shared_norm=True, with an entry for 'attn_norm' alone"
    return f"'{name}' stands for two modules, {both}; the table has no inverse{hint}"


def _shown(key: Ours) -> str:
    return ", ".join(names_in(key))
