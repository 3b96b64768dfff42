"""Which installed family reads a checkpoint. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reallm.errors import CheckpointError, UnknownNameError
from reallm.hf.family import HFFamily
from reallm.plugins import registry

KIND = "family"


def get(name: str) -> HFFamily:
    """The family that users call `name`.

    Raises:
        UnknownNameError: no installed plugin offers it; says what to install.
        PluginError: the plugin that offers it is broken.
    """
    family = registry.get(KIND, name)
    assert isinstance(family, HFFamily)
    return family


def family_for(raw: Mapping[str, Any], path: str | Path = "config.json") -> HFFamily:
    """The family of a `config.json`, by its `model_type` and `architectures`; `path` is named in errors.

    Raises:
        CheckpointError: no installed family reads it; names the installed ones and what to install.
        PluginError: the plugin that offers the family is broken.
    """
    model_type, architectures = raw.get("model_type"), tuple(raw.get("architectures") or ())
    family = _by_name(model_type) or _by_search(model_type, architectures)
    if family is None:
        what = f"model_type '{model_type}'" if model_type else f"architecture {_listed(architectures)}"
        hint = f"; {registry.install_hint(KIND, model_type)}" if isinstance(model_type, str) else ""
        raise CheckpointError(
            f"{path}: no installed family reads {what}; installed are {_listed(registry.names(KIND))}{hint}"
        )
    known = family.architectures + family.critic_architectures
    if architectures and not any(name in known for name in architectures):
        raise CheckpointError(
            f"{path}: architecture {_listed(architectures)} is not one that family '{family.names[0]}' reads: "
            f"{_listed(known)}"
        )
    return family


def require(family: HFFamily, raw: Mapping[str, Any], path: str | Path = "config.json") -> None:
    """Raise CheckpointError if a `config.json` is not of this family; `path` is named."""
    found = family_for(raw, path)
    if found is not family:
        raise CheckpointError(
            f"{path} is of family '{found.names[0]}', not '{family.names[0]}'; use from_{found.names[0]}"
        )


def _by_name(model_type: Any) -> HFFamily | None:
    """The family named like the model type, which costs the import of its plugin alone."""
    if not isinstance(model_type, str):
        return None
    try:
        family = get(model_type)
    except UnknownNameError:
        return None
    # Names are chosen freely: "deepseek" may name a family whose checkpoints have another model type.
    return family if family.model_type == model_type else None


def _by_search(model_type: Any, architectures: tuple[str, ...]) -> HFFamily | None:
    """Any installed family with that model type, or, if the file has none, with one of the architectures."""
    for family in registry.offers(KIND).values():
        if family.model_type == model_type:
            return family  # type: ignore[no-any-return]
        if model_type is None and any(name in family.architectures + family.critic_architectures
                                      for name in architectures):  # fmt: skip
            return family  # type: ignore[no-any-return]
    return None


def _listed(names: Any) -> str:
    return ", ".join(names) or "none"
