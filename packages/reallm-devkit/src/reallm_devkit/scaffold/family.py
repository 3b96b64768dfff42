"""Drafts the source of a new family's tables from an inspected architecture.

What is certain becomes a row, a constant or an entry. Everything else becomes a comment, so that nothing is dropped
silently: a wrong guess would cost the author more than a gap.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from reallm.hf import standard, tables
from reallm_devkit.scaffold.architecture import Architecture
from reallm_devkit.scaffold.code import bracketed, import_line
from reallm_devkit.scaffold.constants import constants
from reallm_devkit.scaffold.rows import LAST_LAYERS_SLIDE, config_rows
from reallm_devkit.scaffold.switches import switches
from reallm_devkit.scaffold.weights import MatchedModules, match_modules, weight_table


@dataclass(frozen=True)
class Draft:
    """The tables of a family as source, and what is still missing in them.

    Attributes:
        imports: the import lines that the tables need.
        needs_last_layers_slide: whether the tables use the helper `last_layers_slide`.
        rows: the rows of the config table, a tuple.
        constants: the constants of the config table, a dict.
        weights: the weight table.
        missing_keys: keys of `config.json` without a row, with their defaults.
        missing_tensors: names of tensors without an entry.
        inspected: whether a tiny model could be built and inspected.
    """

    imports: str
    needs_last_layers_slide: bool
    rows: str
    constants: str
    weights: str
    missing_keys: tuple[str, ...]
    missing_tensors: tuple[str, ...]
    inspected: bool


def draft_tables(architecture: Architecture) -> Draft:
    """Draft the tables of an architecture."""
    tiny = architecture.tiny
    known_switches = {} if tiny is None else switches(tiny)
    modules = MatchedModules() if tiny is None else match_modules(tiny.tensors)
    rows_made, keys = config_rows(architecture, modules, known_switches)
    all_modules, weights = modules, "GATED_DECODER"
    if tiny is not None:
        switch_tensors = (
            name for key, one in known_switches.items() if key in architecture.defaults for name in one.tensors
        )
        all_modules = match_modules([*tiny.tensors, *switch_tensors])
        weights = weight_table(all_modules, tiny, has_critic=bool(architecture.critic))
    rows = _tuple([*rows_made, *(f"# no row yet: {key}" for key in keys)])
    constants_source = bracketed(
        "{", constants(architecture, modules, known_switches), "}", 8, before=len("constants=")
    )
    slides = LAST_LAYERS_SLIDE in rows
    return Draft(
        imports=_imports("\n".join([rows, constants_source, weights]), slides=slides),
        needs_last_layers_slide=slides,
        rows=rows,
        constants=constants_source,
        weights=weights,
        missing_keys=tuple(keys),
        missing_tensors=all_modules.unmatched,
        inspected=tiny is not None,
    )


def _tuple(items: Sequence[str]) -> str:
    """The source of the tuple of rows."""
    closing = ",)" if len(items) == 1 else ")"
    return bracketed("(", items, closing, 8, before=len("rows="))


def _imports(source: str, *, slides: bool) -> str:
    """The import lines for the names that the source uses."""
    code = re.sub(r'#.*|"[^"]*"', "", source)
    names = set(re.findall(r"\b[A-Za-z_]\w*", code))
    ours = {"HFFamily", "hookimpl", *({"MoEConfig"} & names)}
    of_tables = {name for name in tables.__all__ if name in names} | {"ConfigTable"}
    of_standard = {name for name in vars(standard) if name in names} - of_tables
    lines = [import_line("reallm", ours), import_line("reallm.hf.standard", of_standard)]
    lines.append(import_line("reallm.hf.tables", of_tables))
    typing = ["from collections.abc import Mapping", "from typing import Any", ""] if slides else []
    return "\n".join([*typing, *filter(None, lines)])
