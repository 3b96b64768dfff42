"""Which installed family reads a checkpoint. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reallm.errors import CheckpointError, PluginError, UnknownNameError
from reallm.hf.family import HFFamily
from reallm.plugins import registry

KIND = "family"


def get_family(name: str) -> HFFamily:
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
    if model_type is None and not architectures:
        raise CheckpointError(
            f"{path} states neither model_type nor architectures; add them, so that its family can be found"
        )
    family = _by_name(model_type) or _by_search(model_type, architectures)
    if family is None:
        raise CheckpointError(f"{path}: {_unread(model_type, architectures)}")
    known = family.architectures + family.critic_architectures
    if architectures and not any(name in known for name in architectures):
        raise CheckpointError(
            f"{path}: architecture {_listed(architectures)} is not one that family '{family.names[0]}' reads: "
            f"{_listed(known)}"
        )
    return family


def check_family(family: HFFamily, raw: Mapping[str, Any], path: str | Path = "config.json") -> None:
    """Check that a `config.json` is one that this family reads; one that says nothing of its family passes.

    Another family may read it as well.

    Raises:
        CheckpointError: it is of another family, or of none that is installed; names `path`.
    """
    model_type, architectures = raw.get("model_type"), raw.get("architectures") or ()
    known = family.architectures + family.critic_architectures
    if model_type in (None, family.model_type) and (not architectures or any(name in known for name in architectures)):
        return
    found = family_for(raw, path)
    raise CheckpointError(
        f"{path} is not a checkpoint of '{family.names[0]}' but of '{found.names[0]}'; load it as that"
    )


def describe_family(family: HFFamily) -> str:
    """A family as errors name it: `family 'llama' of reallm-hf-llama 0.1.0`."""
    for name in family.names:
        try:
            offer = registry.registry().offer(KIND, name)
        except PluginError:
            continue
        if offer.value is family:
            return f"family '{family.names[0]}' of {offer.plugin.release}"
    return f"family '{family.names[0]}'"


def _by_name(model_type: Any) -> HFFamily | None:
    """The family named like the model type, which costs the import of its plugin alone."""
    if not isinstance(model_type, str):
        return None
    try:
        family = get_family(model_type)
    except UnknownNameError:
        return None
    # Names are chosen freely: "deepseek" may name a family whose checkpoints have another model type.
    return family if family.model_type == model_type else None


def _by_search(model_type: Any, architectures: tuple[str, ...]) -> HFFamily | None:
    """Any installed family with that model type, or, if the file has none, with one of the architectures."""
    families: list[HFFamily] = list(registry.offers(KIND).values())
    for family in families:
        classes = family.architectures + family.critic_architectures
        if family.model_type == model_type or (model_type is None and any(name in classes for name in architectures)):
            return family
    return None


def _unread(model_type: Any, architectures: tuple[str, ...]) -> str:
    """That no installed family reads this, those that are installed, and what to install if that is known."""
    installed = registry.names(KIND)
    what = f"architecture {_listed(architectures)}" if model_type is None else f"model_type '{model_type}'"
    text = f"no installed family reads {what}; installed: {', '.join(installed) or 'none'}"
    # A name that is installed means something else there.
    hint = registry.install_hint(KIND, str(model_type)) if model_type and model_type not in installed else ""
    return f"{text}; try {hint}" if hint else text


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
