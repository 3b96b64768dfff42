"""From what is seen of an architecture to the source of the tables that a new family begins with.

What is certain becomes a row, a constant or an entry. What is not becomes a comment, so that nothing is dropped without
a word: a wrong guess would cost its author more than a gap.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from reallm.hf import standard, tables
from reallm_devkit.scaffold.architecture import Architecture
from reallm_devkit.scaffold.code import enclosed, imported
from reallm_devkit.scaffold.constants import constants
from reallm_devkit.scaffold.rows import LAST_LAYERS_SLIDE, config_rows
from reallm_devkit.scaffold.switches import switches
from reallm_devkit.scaffold.weights import Placed, placed, weight_table


@dataclass(frozen=True)
class Draft:
    """The tables of a family as source, and what they leave open.

    Attributes:
        imports: lines that import what the tables are written with.
        slides: whether the tables use the helper `last_layers_slide`.
        rows: of the config table, a tuple.
        constants: of the config table, a dict.
        weights: the weight table.
        keys: of `config.json` that have no row yet, with their defaults.
        tensors: names that have no entry yet.
        seen: whether there was a model to look at.
    """

    imports: str
    slides: bool
    rows: str
    constants: str
    weights: str
    keys: tuple[str, ...]
    tensors: tuple[str, ...]
    seen: bool


def drafted(architecture: Architecture) -> Draft:
    """The tables of an architecture, as far as they can be told."""
    tiny = architecture.tiny
    known = {} if tiny is None else switches(tiny)
    modules = Placed() if tiny is None else placed(tiny.tensors)
    rows_made, keys = config_rows(architecture, modules, known)
    everything, weights = modules, "GATED_DECODER"
    if tiny is not None:
        of_switches = (name for key, one in known.items() if key in architecture.defaults for name in one.tensors)
        everything = placed([*tiny.tensors, *of_switches])
        weights = weight_table(everything, tiny, has_critic=bool(architecture.critic))
    rows = _tuple([*rows_made, *(f"# no row yet: {key}" for key in keys)])
    of_table = enclosed("{", constants(architecture, modules, known), "}", 8, before=len("constants="))
    slides = LAST_LAYERS_SLIDE in rows
    return Draft(
        imports=_imports("\n".join([rows, of_table, weights]), slides=slides),
        slides=slides,
        rows=rows,
        constants=of_table,
        weights=weights,
        keys=tuple(keys),
        tensors=everything.unplaced,
        seen=tiny is not None,
    )


def _tuple(items: Sequence[str]) -> str:
    """A tuple of rows."""
    closing = ",)" if len(items) == 1 else ")"
    return enclosed("(", items, closing, 8, before=len("rows="))


def _imports(source: str, *, slides: bool) -> str:
    """The lines that import what some source names."""
    code = re.sub(r'#.*|"[^"]*"', "", source)
    names = set(re.findall(r"\b[A-Za-z_]\w*", code))
    ours = {"HFFamily", "hookimpl", *({"MoEConfig"} & names)}
    of_tables = {name for name in tables.__all__ if name in names} | {"ConfigTable"}
    of_standard = {name for name in vars(standard) if name in names} - of_tables
    lines = [imported("reallm", ours), imported("reallm.hf.standard", of_standard)]
    lines.append(imported("reallm.hf.tables", of_tables))
    typing = ["from collections.abc import Mapping", "from typing import Any", ""] if slides else []
    return "\n".join([*typing, *filter(None, lines)])
