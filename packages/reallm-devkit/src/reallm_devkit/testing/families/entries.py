"""Finds entries of the weight table that have no parameter in any configuration of the family."""

from __future__ import annotations

from collections.abc import Iterator

from reallm.hf.conversion.config import config_from_hf
from reallm.hf.conversion.mapping import CONTROLLED_BY
from reallm.hf.tables.weights import names_in
from reallm.model.config import ReaLModelConfig
from reallm.model.parameter_names import path_in_layer
from reallm.model.parameters import parameter_shapes
from reallm_devkit.testing.checks import CheckFailed
from reallm_devkit.testing.families.subject import FamilySubject
from reallm_devkit.testing.families.values import changes


def controlling_fields(name: str) -> tuple[str, ...]:
    """The fields that decide whether a module or its parameter exists; empty if it always does."""
    return CONTROLLED_BY.get(name.removesuffix(".weight").removesuffix(".bias"), ())


def belongs_to(name: str, entry: str) -> bool:
    """Whether a parameter, by its name within its layer, belongs to an entry."""
    return name == entry or name.rpartition(".")[0] == entry


def check_entries(subject: FamilySubject) -> None:
    """Check that some configuration uses each entry: one of the kit's, or one with another value of a single key.

    Entries of the heads are not checked: some families are always tied, and not all have critics.

    Raises:
        CheckFailed: no configuration uses an entry.
    """
    if not subject.is_first:
        return
    table = subject.family.weights
    unused = {name for part in (table.embedding, table.block) for key in part for name in names_in(key)}
    for config in _configs(subject):
        present = {path_in_layer(name) for name in parameter_shapes(config)}
        unused = {entry for entry in unused if not any(belongs_to(name, entry) for name in present)}
        if not unused:
            return
    name = sorted(unused)[0]
    fields = controlling_fields(name)
    by = f", which {' and '.join(fields)} would make" if fields else ""
    raise CheckFailed(
        "a parameter for each entry, in one configuration or another: take the entry out (None in `updated`), or give "
        "the kit a configuration that has it (configs = ...)",
        f"no configuration has '{name}'{by}",
        look_at=subject.at(fields, [name]),
    )


def _configs(subject: FamilySubject) -> Iterator[ReaLModelConfig]:
    """This configuration, the others of the kit, and variants of this one with one key changed."""
    raws = [subject.raw, *(subject.others or ())]
    changed = ({**subject.raw, **change} for key in subject.raw for change in changes(subject.raw, key, None))
    for raw in (*raws, *changed):
        try:
            yield config_from_hf(subject.family, raw)
        except Exception:  # the family's functions may raise anything for values that make no sense
            continue
