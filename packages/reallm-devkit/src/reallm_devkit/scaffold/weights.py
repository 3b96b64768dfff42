"""From the names of tensors to the weight table that a new family begins with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from reallm.hf.standard import GATED_DECODER, QK_NORMS
from reallm.hf.tables.weights import WeightTable
from reallm_devkit.scaffold.code import call, enclosed, fits, strings, text
from reallm_devkit.scaffold.names import BLOCK_MODULES, DEALT_OUT, NORMS, OUTER_MODULES
from reallm_devkit.scaffold.tiny import Tiny

Ours = tuple[str, ...]

ORDER = (
    "attn_norm", "attn.q", "attn.k", "attn.v", "attn.q_norm", "attn.k_norm", "attn.o", "attn_post_norm", "mlp_norm",
    "mlp.router", "mlp.gate", "mlp.up", "mlp.down", "mlp.experts.gate", "mlp.experts.up", "mlp.experts.down",
    "mlp_post_norm",
)  # fmt: skip
"""Our modules of a block, as it computes."""


@dataclass(frozen=True)
class Placed:
    """Tensors of an architecture by our modules.

    Attributes:
        outer: our modules outside of blocks -> theirs.
        block: our modules of a block -> theirs, with `{}` for its number; of several in one tensor, all of them.
        norms: where the norms of blocks stand, a name in `names.NORMS`; empty if they are called otherwise.
        unplaced: names of tensors that nothing of ours is known to be.
    """

    outer: Mapping[str, str] = field(default_factory=dict)
    block: Mapping[Ours, str] = field(default_factory=dict)
    norms: str = ""
    unplaced: tuple[str, ...] = ()

    def ours(self, tensor: str) -> Ours:
        """The modules of ours that a tensor is of; none if it is of none."""
        module = module_of(tensor)
        for key, theirs in (*self.block.items(), *(((key,), theirs) for key, theirs in self.outer.items())):
            if theirs == module:
                return key
        return ()

    def has(self, module: str) -> bool:
        """Whether a module of ours is placed."""
        return module in self.outer or any(module in key for key in self.block)


def placed(tensors: Iterable[str]) -> Placed:
    """What the tensors of checkpoints are with us, as far as their names tell."""
    names = list(dict.fromkeys(tensors))
    modules = list(dict.fromkeys(map(module_of, names)))
    outer = {module: theirs for theirs in modules if (module := _outer(theirs))}
    block: dict[Ours, str] = {}
    for theirs in modules:
        ours = _inner(theirs)
        if ours and not any(set(ours) & set(key) for key in block):
            block[ours] = theirs
    norms, of_norms = _norms([theirs for theirs in modules if re.fullmatch(r"[^{}]*\.\{\}\.\w+", theirs)])
    block = dict(sorted({**block, **of_norms}.items(), key=lambda item: _place(item[0])))
    known = {*outer.values(), *block.values()}
    unplaced = [_numberless(name) for name in names if module_of(name) not in known]
    return Placed(outer, block, norms, tuple(dict.fromkeys(unplaced)))


def weight_table(found: Placed, tiny: Tiny, *, has_critic: bool) -> str:
    """The table's source: `GATED_DECODER` with what differs, or all of it."""
    entries = {ours: _stored(theirs, ours, tiny) for ours, theirs in found.block.items()}
    common = _plain(GATED_DECODER.block)
    if any(entries.get(ours) == theirs for ours, theirs in common.items()) and _is_outer_of(found, GATED_DECODER):
        return _updated(entries, common)
    block = [f"{strings(ours)}: {value}" for ours, value in entries.items()]
    head = {ours: theirs for ours, theirs in found.outer.items() if ours in GATED_DECODER.head}
    embedding = {ours: theirs for ours, theirs in found.outer.items() if ours not in GATED_DECODER.head}
    arguments = [
        f"embedding={_part(embedding)}",
        f"block={enclosed('{', block, '}', 8, before=len('block='))}",
        f"head={_part(head)}",
        *(['critic_head={"out": "score"}'] if has_critic else []),
    ]
    return call("WeightTable", arguments, 4, before=len("weights="))


def module_of(tensor: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `model.layers.{}.mlp.up_proj`; a second number becomes `{each}`."""
    return re.sub(r"\.(weight|bias)$", "", _numberless(tensor))


def _numberless(tensor: str) -> str:
    return re.sub(r"\.\d+(?=\.)", ".{each}", re.sub(r"\.\d+(?=\.)", ".{}", tensor, count=1))


def _outer(theirs: str) -> str:
    if "{}" in theirs:
        return ""
    return next((ours for ours, names in OUTER_MODULES.items() if theirs.rpartition(".")[2] in names), "")


def _inner(theirs: str) -> Ours:
    """Our modules of a block by the longest end of the name that is known."""
    ends = [
        (len(end), ours)
        for ours, names in BLOCK_MODULES.items()
        for end in names
        if theirs.endswith(f".{end}") and ("{}" in theirs) and ("{each}" in theirs) == ("{each}" in end)
    ]
    return max(ends, default=(0, ()))[1]


def _norms(modules: list[str]) -> tuple[str, dict[Ours, str]]:
    """Where the norms stand, if the modules directly in a block are the norms of one of the kinds that are known."""
    ends = {theirs.rpartition(".")[2]: theirs for theirs in modules if not _inner(theirs)}
    for kind, wanted in NORMS:
        found = {ours: end for ours, names in wanted.items() for end in names if end in ends}
        if len(found) == len(wanted) == len(ends):
            return kind, {(ours,): ends[end] for ours, end in found.items()}
    return "", {}


def _place(ours: Ours) -> int:
    """In the order in which a block computes."""
    return ORDER.index(ours[0])


def _stored(theirs: str, ours: Ours, tiny: Tiny) -> str:
    """The entry's value: a name, or how the tensor holds ours."""
    is_transposed = any(module_of(f"{name}.weight") == theirs for name in tiny.transposed)
    if len(ours) == 1:
        return f"transposed({text(theirs)})" if is_transposed else text(theirs)
    arguments = [text(theirs)]
    if theirs.rpartition(".")[2] in DEALT_OUT:
        arguments.append('groups="n_kv_heads"')
    if is_transposed:
        arguments.append("transposed=True")
    # On a line with its key, in `block={...}` of an argument of the family
    return call("fused", arguments, 12, before=len(f"{strings(ours)}: "))


def _plain(part: Mapping[Any, Any]) -> dict[Ours, str]:
    """Entries of a table that are names, as keys and source."""
    return {(ours,): text(theirs) for ours, theirs in part.items()}


def _is_outer_of(found: Placed, table: WeightTable) -> bool:
    return dict(found.outer) in (
        {**table.embedding, **table.head},
        {**table.embedding, "norm": table.head["norm"]},  # a tied head
    )


def _updated(entries: Mapping[Ours, str], common: Mapping[Ours, str]) -> str:
    changes = {ours: value for ours, value in entries.items() if common.get(ours) != value}
    items = []
    qk_norms = _plain(QK_NORMS)
    if qk_norms.items() <= changes.items():
        items.append("**QK_NORMS")
        changes = {ours: value for ours, value in changes.items() if ours not in qk_norms}
    items += [f"{strings(ours)}: {value}" for ours, value in changes.items()]
    replaced = {one for ours in entries for one in ours}
    items += [f"{strings(ours)}: None" for ours in common if ours[0] not in replaced]
    if not items:
        return "GATED_DECODER"
    if items == ["**QK_NORMS"]:
        return "GATED_DECODER.updated(block=QK_NORMS)"
    line = f"GATED_DECODER.updated(block={{{', '.join(items)}}})"
    if "\n" not in line and fits(f"    weights={line},"):
        return line
    block = enclosed("{", items, "}", 8, before=len("block="))
    return f"GATED_DECODER.updated(\n        block={block}\n    )"


def _part(modules: Mapping[str, str]) -> str:
    items = [f"{text(ours)}: {text(theirs)}" for ours, theirs in modules.items()]
    return enclosed("{", items, "}", 8, before=len("embedding="))
