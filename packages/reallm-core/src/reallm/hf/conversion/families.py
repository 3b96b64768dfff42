"""Finds the installed family that reads a checkpoint. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from reallm.errors import CheckpointError, PluginError, UnknownNameError, quoted
from reallm.hf.conversion.transformers_io import obstacle_to_family
from reallm.hf.family import HFFamily
from reallm.plugins import registry
from reallm.plugins.known import providers, suggested_first
from reallm.specs import STANDARD_IMPLEMENTATION

KIND = "family"
IMPLEMENTATION = "implementation"


def get_family(name: str) -> HFFamily:
    """The family with this name.

    Raises:
        UnknownNameError: no installed plugin offers it; says what to install.
        PluginError: the plugin that offers it is broken.
    """
    family = registry.get(KIND, name)
    assert isinstance(family, HFFamily)
    return family


def family_for(
    raw: Mapping[str, Any], path: str | Path = "config.json", implementation: str = STANDARD_IMPLEMENTATION
) -> HFFamily:
    """The family of a `config.json`, by its `model_type` and `architectures`; `path` is named in errors.

    An `implementation` of a plugin takes the place of the installed families.

    Raises:
        CheckpointError: no installed family reads it; names the installed ones and what to install. Or the
            implementation cannot compute it.
        UnknownNameError: no installed plugin offers the implementation.
        PluginError: the plugin that offers the family is broken.
    """
    if implementation != STANDARD_IMPLEMENTATION:
        found = registry.get(IMPLEMENTATION, implementation).family_of(raw, path)
        assert isinstance(found, HFFamily)
        return found
    model_type, architectures = raw.get("model_type"), tuple(raw.get("architectures") or ())
    if model_type is None and not architectures:
        raise CheckpointError(
            f"{path} has neither model_type nor architectures; add one of them, so that its family can be found"
        )
    family = _by_name(model_type) or _by_search(model_type, architectures)
    if family is None:
        raise CheckpointError(f"{path}: {_no_family(model_type, architectures)}")
    if architectures and not _has_any(family, architectures):
        known = family.architectures + family.critic_architectures
        raise CheckpointError(
            f"{path}: architecture {quoted(architectures)} is not one that family '{family.names[0]}' reads: "
            f"{quoted(known)}"
        )
    return family


def check_family(family: HFFamily, raw: Mapping[str, Any], path: str | Path = "config.json") -> None:
    """Check that this family reads a `config.json`; one without `model_type` and `architectures` passes.

    Another family may read it as well.

    Raises:
        CheckpointError: it belongs to another family, or to none that is installed; names `path`.
    """
    model_type, architectures = raw.get("model_type"), raw.get("architectures") or ()
    if model_type in (None, family.model_type) and (not architectures or _has_any(family, architectures)):
        return
    found = family_for(raw, path)
    raise CheckpointError(
        f"{path} is not a checkpoint of '{family.names[0]}' but of '{found.names[0]}'; load it as that"
    )


def _has_any(family: HFFamily, architectures: Iterable[str]) -> bool:
    """Whether one of these classes of transformers is the family's.

    Its networks without an output head count too: `LlamaModel` of `LlamaForCausalLM`.
    """
    headless = [re.sub(r"(ForCausalLM|LMHeadModel)$", "Model", name) for name in family.architectures]
    known = (*family.architectures, *family.critic_architectures, *headless)
    return any(name in known for name in architectures)


def describe_family(family: HFFamily) -> str:
    """A family's name for errors: `family 'llama' of reallm-hf-llama 0.1.0`."""
    for name in family.names:
        try:
            offer = registry.registry().offer(KIND, name)
        except PluginError:
            continue
        if offer.value is family:
            return f"family '{family.names[0]}' of {offer.plugin.release}"
    return f"family '{family.names[0]}'"


def _by_name(model_type: Any) -> HFFamily | None:
    """The family whose name is the model type; imports only the plugin that offers it."""
    if not isinstance(model_type, str):
        return None
    try:
        family = get_family(model_type)
    except UnknownNameError:
        return None
    # A name need not be the model type: the checkpoints of family "deepseek" have another.
    return family if family.model_type == model_type else None


def _by_search(model_type: Any, architectures: tuple[str, ...]) -> HFFamily | None:
    """An installed family with the model type, or, if the file has none, with one of the architectures."""
    families: list[HFFamily] = list(registry.offers(KIND).values())
    for family in families:
        if family.model_type == model_type or (model_type is None and _has_any(family, architectures)):
            return family
    return None


def _no_family(model_type: Any, architectures: tuple[str, ...]) -> str:
    """The error's text: no installed family reads this, which are installed, and what to install or write."""
    installed = registry.names(KIND)
    what = f"architecture {quoted(architectures)}" if model_type is None else f"model_type '{model_type}'"
    text = f"no installed family reads {what}; installed: {', '.join(installed) or 'none'}"
    if not isinstance(model_type, str):
        return text
    obstacle = None if providers(KIND, model_type) else obstacle_to_family(model_type)
    if obstacle:
        return f"{text}; none can be written: {obstacle}, and reallm has only causal decoders"
    if obstacle == "":
        return f"{text}; {_other_implementations()}write one: reallm plugins new family NAME --model-type {model_type}"
    # An installed family of that name reads another model type.
    hint = registry.install_hint(KIND, model_type) if model_type not in installed else ""
    return f"{text}; try {hint}" if hint else text


def _other_implementations() -> str:
    """How to train a model without a family, for a text that goes on with how to write one."""
    names = registry.names(IMPLEMENTATION)
    if names:
        return f"model.implementation={names[0]} may train it today, slowly; or "
    distribution, name = suggested_first(IMPLEMENTATION)
    return f"model.implementation={name} may train it today, slowly (pip install {distribution}); or "
