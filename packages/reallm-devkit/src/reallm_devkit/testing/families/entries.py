"""Entries of the weight table that no configuration of the family has a parameter for."""

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


def made_by(name: str) -> tuple[str, ...]:
    """The fields that decide whether there is a module, or the parameter of one; none if all networks have it."""
    return CONTROLLED_BY.get(name.removesuffix(".weight").removesuffix(".bias"), ())


def is_of(name: str, entry: str) -> bool:
    """Whether a parameter, by its name in its layer, is that of an entry."""
    return name == entry or name.rpartition(".")[0] == entry


def check_entries(subject: FamilySubject) -> None:
    """Every entry is used by some configuration: by one of the kit's, or with another value of a single key.

    The heads are left out: some families are always tied, and not all have critics.

    Raises:
        CheckFailed: an entry that none uses.
    """
    if not subject.is_first:
        return
    table = subject.family.weights
    idle = {name for part in (table.embedding, table.block) for key in part for name in names_in(key)}
    for config in _configs(subject):
        present = {path_in_layer(name) for name in parameter_shapes(config)}
        idle = {entry for entry in idle if not any(is_of(name, entry) for name in present)}
        if not idle:
            return
    name = sorted(idle)[0]
    fields = made_by(name)
    by = f", which {' and '.join(fields)} would make" if fields else ""
    raise CheckFailed(
        "a parameter for each entry, in one configuration or another: take the entry out (None in `updated`), or give "
        "the kit a configuration that has it (configs = ...)",
        f"no configuration has '{name}'{by}",
        look_at=subject.at(fields, [name]),
    )


def _configs(subject: FamilySubject) -> Iterator[ReaLModelConfig]:
    """This configuration, the others, and all that differ from this one in one key."""
    raws = [subject.raw, *(subject.others or ())]
    changed = ({**subject.raw, **change} for key in subject.raw for change in changes(subject.raw, key, None))
    for raw in (*raws, *changed):
        try:
            yield config_from_hf(subject.family, raw)
        except Exception:  # of a value that makes no sense, whatever the family's own functions make of it
            continue
