"""Finds the source lines of rows and entries of a plugin's tables, as reports show them."""

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
"""Names in the plugin's source that bring in rows or entries which it does not write itself."""

STANDARD_KEYS = frozenset(key for row in decoder_rows(n_kv_heads=1, max_positions=1) for key in row.keys)
STANDARD_NAMES = frozenset(
    value
    for part in (*(getattr(GATED_DECODER, part) for part in PARTS), QK_NORMS)
    for value in part.values()
    if isinstance(value, str)
)
"""Keys and tensor names that these bring in."""

NumberedLines = list[tuple[int, str]]


@dataclass(frozen=True)
class TableLines:
    """Finds the source lines of a family's tables.

    Attributes:
        family: the family.
        module: the name in `sys.modules` of the module that holds the family; empty if none does.
    """

    family: HFFamily
    module: str

    def row(self, row: FieldRow) -> str:
        """`Key("rms_norm_eps") of config.rows, my_model/plugin.py:20`."""
        keys = ", ".join(f'"{key}"' for key in row.keys[:1])
        text = f"{type(row).__name__}({keys}) of config.rows"
        return f"{text}{self._location_of(row.keys, SHARED_ROWS if row.keys[0] in STANDARD_KEYS else ())}"

    def field(self, field: str) -> str:
        """The row or constant that sets a field of `ReaLModelConfig`; empty if none does."""
        for row in self.family.config.rows:
            if field in row.fields:
                return self.row(row)
        for row in self._nested_rows():
            if field in row.fields:
                return self.row(row)
        if field in self.family.config.constants:
            return f'config.constants["{field}"]{self._location_of([field])}'
        return ""

    def key(self, key: str) -> str:
        """The row of a key of `config.json`, or the list that it is in."""
        for row in self.rows():
            if key in row.keys:
                return self.row(row)
        for name in ("irrelevant", "restricted"):
            if key in getattr(self.family.config, name):
                return f'"{key}" in config.{name}{self._location_of([key])}'
        return self.missing_rows([key])

    def missing_rows(self, keys: Iterable[str]) -> str:
        """Says that the rows have none for these keys."""
        quoted = join_words([f'"{key}"' for key in keys])
        instead = "a row, or a place in config.irrelevant or config.restricted"
        return f"config.rows, which have none for {quoted}{self._location_of([])}: each needs {instead}"

    def mentioned_in(self, text: str) -> str:
        """The part of the table that an error message is about: keys without a row, a row, or else the whole table."""
        unsupported = re.search(r"unsupported fields? (.*); the tables of family", text)
        if unsupported:
            return self.missing_rows(re.findall(r"(?:^|, )(\w+)=", unsupported[1]))
        for row in self.rows():
            if any(re.search(rf"\b{re.escape(name)}=|'{re.escape(name)}'", text) for name in (*row.keys, *row.fields)):
                return self.row(row)
        return self.config()

    def entry(self, name: str, parts: Iterable[str] = PARTS) -> str:
        """The entry of a parameter or module, by its name within its layer, `attn.q`; empty if the table has none.

        If the parameters of a module have separate entries, the first is returned.
        """
        table = self.family.weights
        for part in parts:
            entries: Mapping[ModuleKey, Any] = getattr(table, part)
            for key in entries:
                matching = [
                    one for one in names_in(key) if f"{name}.".startswith(f"{one}.") or one.startswith(f"{name}.")
                ]
                if matching:
                    written = ", ".join(f'"{one}"' for one in names_in(key))
                    shared = SHARED_NAMES if entries[key] in STANDARD_NAMES else ()
                    return f"weights.{part}[{written}]{self._location_of(matching, shared)}"
        return ""

    def weights(self) -> str:
        """The weight table as a whole."""
        return f"weights{self._location_of(['weights='], quoted=False)}"

    def config(self) -> str:
        """The config table as a whole."""
        return f"config{self._location_of(['config='], quoted=False)}"

    def family_line(self) -> str:
        """The file and first line of the statement that defines the family."""
        lines = self._family_lines
        return f"{self._file}:{lines[0][0]}" if lines else self.module

    def rows(self) -> list[FieldRow]:
        """All rows, those of nested tables first."""
        return [*self._nested_rows(), *self.family.config.rows]

    def _nested_rows(self) -> list[FieldRow]:
        """The rows of nested tables."""
        return [inner for row in self.family.config.rows if isinstance(row, Nested) for inner in row.rows]

    def _location_of(self, words: Iterable[str], shared: Sequence[str] = (), *, quoted: bool = True) -> str:
        """`, file.py:20`: the line that has one of the words, else one that takes a shared table, else the family's."""
        texts = [quote + word + quote for word in words for quote in ("\"'" if quoted else ("",))]
        for lines, wanted in (
            (self._family_lines, texts),
            (self._family_lines, shared),
            (self._shared_lines, texts),
            (self._shared_lines, shared),
        ):
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
    def _all(self) -> NumberedLines:
        """The lines of the module, numbered from 1."""
        try:
            source = inspect.getsource(self._module) if self._module else ""
        except (OSError, TypeError):  # defined interactively
            source = ""
        return list(enumerate(source.splitlines(), start=1))

    @cached_property
    def _family_lines(self) -> NumberedLines:
        """The lines of the statement that defines this family."""
        return [line for value, lines in self._statements() if value is self.family for line in lines]

    @cached_property
    def _shared_lines(self) -> NumberedLines:
        """The lines outside of statements that define a family."""
        defining = {number for _, lines in self._statements() for number, _ in lines}
        return [line for line in self._all if line[0] not in defining]

    def _statements(self) -> Iterator[tuple[HFFamily, NumberedLines]]:
        """Families of the module, and the lines of the statements that define them."""
        for node in ast.parse("\n".join(line for _, line in self._all)).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
            for target in targets:
                value = getattr(self._module, target.id, None) if isinstance(target, ast.Name) else None
                if isinstance(value, HFFamily):
                    yield value, self._all[node.lineno - 1 : node.end_lineno]


def join_words(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def module_of(family: HFFamily) -> str:
    """The name of the module that defines a family, or else of one that holds it; empty if none does."""
    holders = [
        name
        for name, module in list(sys.modules.items())
        if isinstance(module, ModuleType) and any(value is family for value in list(vars(module).values()))
    ]
    defining = [name for name in holders if TableLines(family, name)._family_lines]
    return next(iter([*defining, *holders]), "")
