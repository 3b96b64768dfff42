"""Where in a plugin's source a row or an entry of its tables stands, as a report shows it."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

from reallm.hf.family import HFFamily
from reallm.hf.standard import GATED_DECODER, QK_NORMS, decoder_rows
from reallm.hf.tables.fields import FieldRow, Nested
from reallm.hf.tables.weights import ModuleKey, names_in
from reallm_devkit.testing.source import display_path

PARTS = ("embedding", "block", "head", "critic_head")
"""Parts of a `WeightTable`, in the order of the network."""

SHARED_ROWS, SHARED_NAMES = ("decoder_rows(",), ("GATED_DECODER", "QK_NORMS")
"""Where a row or an entry comes from that the plugin's source does not have."""

STANDARD_KEYS = frozenset(key for row in decoder_rows(n_kv_heads=1, max_positions=1) for key in row.keys)
STANDARD_NAMES = frozenset(
    value
    for part in (*(getattr(GATED_DECODER, part) for part in PARTS), QK_NORMS)
    for value in part.values()
    if isinstance(value, str)
)
"""Keys and names of tensors that those have."""

Numbered = list[tuple[int, str]]


@dataclass(frozen=True)
class TableLines:
    """The tables of a family, by the lines of the plugin that state them.

    Attributes:
        family: whose tables.
        module: the module that holds the family, as `sys.modules` names it; empty if none does.
    """

    family: HFFamily
    module: str

    def row(self, row: FieldRow) -> str:
        """`Key("rms_norm_eps") of config.rows, my_model/plugin.py:20`."""
        keys = ", ".join(f'"{key}"' for key in row.keys[:1])
        text = f"{type(row).__name__}({keys}) of config.rows"
        return f"{text}{self._found(row.keys, SHARED_ROWS if row.keys[0] in STANDARD_KEYS else ())}"

    def field(self, field: str) -> str:
        """The row or the constant that states a field of `ReaLModelConfig`; empty if none does."""
        for row in self.family.config.rows:
            if field in row.fields:
                return self.row(row)
        for row in self._inner():
            if field in row.fields:
                return self.row(row)
        if field in self.family.config.constants:
            return f'config.constants["{field}"]{self._found([field])}'
        return ""

    def key(self, key: str) -> str:
        """What the table says of a key of `config.json`: the row, or the list that it is in."""
        for row in self.rows():
            if key in row.keys:
                return self.row(row)
        for name in ("irrelevant", "restricted"):
            if key in getattr(self.family.config, name):
                return f'"{key}" in config.{name}{self._found([key])}'
        return self.unknown([key])

    def unknown(self, keys: Iterable[str]) -> str:
        """The rows, which have none for these keys."""
        said = listed([f'"{key}"' for key in keys])
        instead = "a row, or a place in config.irrelevant or config.restricted"
        return f"config.rows, which have none for {said}{self._found([])}: each needs {instead}"

    def named_in(self, text: str) -> str:
        """What of the table an error speaks of: keys without a row, or the row of a key or field; else all of it."""
        unsupported = re.search(r"unsupported fields? (.*); the tables of family", text)
        if unsupported:
            return self.unknown(re.findall(r"(?:^|, )(\w+)=", unsupported[1]))
        for row in self.rows():
            if any(re.search(rf"\b{re.escape(name)}=|'{re.escape(name)}'", text) for name in (*row.keys, *row.fields)):
                return self.row(row)
        return self.config()

    def entry(self, name: str, parts: Iterable[str] = PARTS) -> str:
        """The entry of a parameter or module by its name within its layer, `attn.q`; empty if the table has none.

        Of a module whose parameters have entries of their own, it is that of the first.
        """
        table = self.family.weights
        for part in parts:
            entries: Mapping[ModuleKey, Any] = getattr(table, part)
            for key in entries:
                own = [one for one in names_in(key) if f"{name}.".startswith(f"{one}.") or one.startswith(f"{name}.")]
                if own:
                    written = ", ".join(f'"{one}"' for one in names_in(key))
                    shared = SHARED_NAMES if entries[key] in STANDARD_NAMES else ()
                    return f"weights.{part}[{written}]{self._found(own, shared)}"
        return ""

    def weights(self) -> str:
        """The weight table as a whole."""
        return f"weights{self._found(['weights='], quoted=False)}"

    def config(self) -> str:
        """The config table as a whole."""
        return f"config{self._found(['config='], quoted=False)}"

    def family_line(self) -> str:
        """Where the family is stated."""
        lines = self._own
        return f"{self._file}:{lines[0][0]}" if lines else self.module

    def rows(self) -> list[FieldRow]:
        """The rows within rows, and the others."""
        return [*self._inner(), *self.family.config.rows]

    def _inner(self) -> list[FieldRow]:
        """The rows within rows."""
        return [inner for row in self.family.config.rows if isinstance(row, Nested) for inner in row.rows]

    def _found(self, words: Iterable[str], shared: Sequence[str] = (), *, quoted: bool = True) -> str:
        """`, file.py:20` where one of the words stands; else where a shared table is taken, else the family."""
        texts = [quote + word + quote for word in words for quote in ("\"'" if quoted else ("",))]
        for lines, wanted in ((self._own, texts), (self._own, shared), (self._common, texts), (self._common, shared)):
            for number, line in lines:
                for text in wanted:
                    if text in line:
                        by = f" (by {text.rstrip('(')})" if text in shared else ""
                        return f", {self._file}:{number}{by}"
        line = self.family_line()
        return f", {line}" if line else ""

    @cached_property
    def _module(self) -> ModuleType | None:
        return sys.modules.get(self.module)

    @cached_property
    def _file(self) -> str:
        file = None if self._module is None else inspect.getsourcefile(self._module)
        return display_path(file) if file else self.module

    @cached_property
    def _all(self) -> Numbered:
        """The lines of the module, numbered from 1."""
        try:
            source = inspect.getsource(self._module) if self._module else ""
        except (OSError, TypeError):  # typed at a prompt
            source = ""
        return list(enumerate(source.splitlines(), start=1))

    @cached_property
    def _own(self) -> Numbered:
        """Those of the statement that makes this family, where a module makes several."""
        return [line for value, lines in self._statements() if value is self.family for line in lines]

    @cached_property
    def _common(self) -> Numbered:
        """Those that make no family."""
        made = {number for _, lines in self._statements() for number, _ in lines}
        return [line for line in self._all if line[0] not in made]

    def _statements(self) -> Iterator[tuple[HFFamily, Numbered]]:
        """Families of the module, and the lines that make them."""
        for node in ast.parse("\n".join(line for _, line in self._all)).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
            for target in targets:
                value = getattr(self._module, target.id, None) if isinstance(target, ast.Name) else None
                if isinstance(value, HFFamily):
                    yield value, self._all[node.lineno - 1 : node.end_lineno]


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def module_of(family: HFFamily) -> str:
    """The name of the module that makes a family; empty if no module holds it."""
    holders = [
        name
        for name, module in list(sys.modules.items())
        if isinstance(module, ModuleType) and any(value is family for value in list(vars(module).values()))
    ]
    made = [name for name in holders if TableLines(family, name)._own]
    return next(iter([*made, *holders]), "")
