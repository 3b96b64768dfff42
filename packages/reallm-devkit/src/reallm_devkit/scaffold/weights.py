"""Drafts the weight table of a new family from the names of tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from reallm.hf.standard import GATED_DECODER, QK_NORMS
from reallm.hf.tables.weights import WeightTable
from reallm_devkit.scaffold.code import bracketed, call, fits, literal, quoted_tuple
from reallm_devkit.scaffold.names import BLOCK_MODULES, INTERLEAVED_QKV, NORMS, OUTER_MODULES
from reallm_devkit.scaffold.tiny import TinyModel

Ours = tuple[str, ...]

ORDER = (
    "attn_norm", "attn.q", "attn.k", "attn.v", "attn.q_norm", "attn.k_norm", "attn.o", "attn_post_norm", "mlp_norm",
    "mlp.router", "mlp.gate", "mlp.up", "mlp.down", "mlp.experts.gate", "mlp.experts.up", "mlp.experts.down",
    "mlp_post_norm",
)  # fmt: skip
"""Our modules of a block, in the order of computation."""


@dataclass(frozen=True)
class MatchedModules:
    """Modules of an architecture, matched with ours by name.

    Attributes:
        outer: our modules outside of blocks -> theirs.
        block: our modules of a block, several if their tensors are fused -> theirs, with `{}` for the block's number.
        norms: the placement of norms in blocks, a name in `names.NORMS`; empty if none matches.
        unmatched: names of tensors without a module of ours.
    """

    outer: Mapping[str, str] = field(default_factory=dict)
    block: Mapping[Ours, str] = field(default_factory=dict)
    norms: str = ""
    unmatched: tuple[str, ...] = ()

    def ours(self, tensor: str) -> Ours:
        """Our modules of a tensor; empty if it is unmatched."""
        module = module_of(tensor)
        for key, theirs in (*self.block.items(), *(((key,), theirs) for key, theirs in self.outer.items())):
            if theirs == module:
                return key
        return ()

    def has(self, module: str) -> bool:
        """Whether a module of ours is matched."""
        return module in self.outer or any(module in key for key in self.block)


def match_modules(tensors: Iterable[str]) -> MatchedModules:
    """Match the tensors of a checkpoint with our modules by name."""
    names = list(dict.fromkeys(tensors))
    modules = list(dict.fromkeys(map(module_of, names)))
    outer = {module: theirs for theirs in modules if (module := _outer_module(theirs))}
    block: dict[Ours, str] = {}
    for theirs in modules:
        ours = _block_module(theirs)
        if ours and not any(set(ours) & set(key) for key in block):
            block[ours] = theirs
    norms, norm_modules = _norms([theirs for theirs in modules if re.fullmatch(r"[^{}]*\.\{\}\.\w+", theirs)])
    block = dict(sorted({**block, **norm_modules}.items(), key=lambda item: _order(item[0])))
    known = {*outer.values(), *block.values()}
    unmatched = [_without_numbers(name) for name in names if module_of(name) not in known]
    return MatchedModules(outer, block, norms, tuple(dict.fromkeys(unmatched)))


def weight_table(found: MatchedModules, tiny: TinyModel, *, has_critic: bool) -> str:
    """The source of the table: `GATED_DECODER` with changes, or written out."""
    entries = {ours: _entry_value(theirs, ours, tiny) for ours, theirs in found.block.items()}
    common = _as_source(GATED_DECODER.block)
    if any(entries.get(ours) == theirs for ours, theirs in common.items()) and _has_standard_ends(found, GATED_DECODER):
        return _updated_standard(entries, common)
    block = [f"{quoted_tuple(ours)}: {value}" for ours, value in entries.items()]
    head = {ours: theirs for ours, theirs in found.outer.items() if ours in GATED_DECODER.head}
    embedding = {ours: theirs for ours, theirs in found.outer.items() if ours not in GATED_DECODER.head}
    arguments = [
        f"embedding={_dict_source(embedding)}",
        f"block={bracketed('{', block, '}', 8, before=len('block='))}",
        f"head={_dict_source(head)}",
        *(['critic_head={"out": "score"}'] if has_critic else []),
    ]
    return call("WeightTable", arguments, 4, before=len("weights="))


def module_of(tensor: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `model.layers.{}.mlp.up_proj`; a second number becomes `{each}`."""
    return re.sub(r"\.(weight|bias)$", "", _without_numbers(tensor))


def _without_numbers(tensor: str) -> str:
    return re.sub(r"\.\d+(?=\.)", ".{each}", re.sub(r"\.\d+(?=\.)", ".{}", tensor, count=1))


def _outer_module(theirs: str) -> str:
    if "{}" in theirs:
        return ""
    return next((ours for ours, names in OUTER_MODULES.items() if theirs.rpartition(".")[2] in names), "")


def _block_module(theirs: str) -> Ours:
    """Our modules of a block by the longest known end of the name."""
    ends = [
        (len(end), ours)
        for ours, names in BLOCK_MODULES.items()
        for end in names
        if theirs.endswith(f".{end}") and ("{}" in theirs) and ("{each}" in theirs) == ("{each}" in end)
    ]
    return max(ends, default=(0, ()))[1]


def _norms(modules: list[str]) -> tuple[str, dict[Ours, str]]:
    """Where the norms stand, if the modules directly in a block are the norms of one of the kinds that are known."""
    ends = {theirs.rpartition(".")[2]: theirs for theirs in modules if not _block_module(theirs)}
    for kind, wanted in NORMS:
        found = {ours: end for ours, names in wanted.items() for end in names if end in ends}
        if len(found) == len(wanted) == len(ends):
            return kind, {(ours,): ends[end] for ours, end in found.items()}
    return "", {}


def _order(ours: Ours) -> int:
    """The sort key of a block's module."""
    return ORDER.index(ours[0])


def _entry_value(theirs: str, ours: Ours, tiny: TinyModel) -> str:
    """The source of an entry's value: a name, or an arrangement of the tensor."""
    is_transposed = any(module_of(f"{name}.weight") == theirs for name in tiny.transposed)
    if len(ours) == 1:
        return f"transposed({literal(theirs)})" if is_transposed else literal(theirs)
    arguments = [literal(theirs)]
    if theirs.rpartition(".")[2] in INTERLEAVED_QKV:
        arguments.append('groups="n_kv_heads"')
    if is_transposed:
        arguments.append("transposed=True")
    # on a line with its key, in `block={...}` of an argument of the family
    return call("fused", arguments, 12, before=len(f"{quoted_tuple(ours)}: "))


def _as_source(part: Mapping[Any, Any]) -> dict[Ours, str]:
    """Entries of a table that are plain names, as keys and source."""
    return {(ours,): literal(theirs) for ours, theirs in part.items()}


def _has_standard_ends(found: MatchedModules, table: WeightTable) -> bool:
    return dict(found.outer) in (
        {**table.embedding, **table.head},
        {**table.embedding, "norm": table.head["norm"]},  # a tied head
    )


def _updated_standard(entries: Mapping[Ours, str], common: Mapping[Ours, str]) -> str:
    changes = {ours: value for ours, value in entries.items() if common.get(ours) != value}
    items = []
    qk_norms = _as_source(QK_NORMS)
    if qk_norms.items() <= changes.items():
        items.append("**QK_NORMS")
        changes = {ours: value for ours, value in changes.items() if ours not in qk_norms}
    items += [f"{quoted_tuple(ours)}: {value}" for ours, value in changes.items()]
    replaced = {one for ours in entries for one in ours}
    items += [f"{quoted_tuple(ours)}: None" for ours in common if ours[0] not in replaced]
    if not items:
        return "GATED_DECODER"
    if items == ["**QK_NORMS"]:
        return "GATED_DECODER.updated(block=QK_NORMS)"
    line = f"GATED_DECODER.updated(block={{{', '.join(items)}}})"
    if "\n" not in line and fits(f"    weights={line},"):
        return line
    block = bracketed("{", items, "}", 8, before=len("block="))
    return f"GATED_DECODER.updated(\n        block={block}\n    )"


def _dict_source(modules: Mapping[str, str]) -> str:
    items = [f"{literal(ours)}: {literal(theirs)}" for ours, theirs in modules.items()]
    return bracketed("{", items, "}", 8, before=len("embedding="))
