"""`ReaLModel.from_<family>` and its three siblings, provided dynamically for every installed family.

    ReaLModel.from_<family>(source)         a model, from a checkpoint folder, a HF config or a HF model
    model.to_<family>()                     the transformers model with the same weights
    ReaLModel.config_from_<family>(source)  a ReaLModelConfig, from a checkpoint folder or a HF config
    ReaLModel.config_to_<family>(config)    the transformers config

They are looked up when they are accessed, so that importing the class imports no plugin; `dir(ReaLModel)` lists them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from reallm.errors import PluginError, did_you_mean
from reallm.hf.conversion.families import get_family
from reallm.hf.family import HFFamily
from reallm.plugins import registry

PREFIXES = ("config_from_", "config_to_", "from_", "to_")
"""Prefixes of the methods, longer ones first, so that the longest match counts."""


class FamilyMethods(type):
    """Metaclass of a model class with family methods: only a metaclass can supply missing attributes of a class.

    The class implements the class methods `_from_family`, `_config_from_family` and `_config_to_family`, and the method
    `_to_family`; each takes the `HFFamily` first.
    """

    def __getattr__(cls, attribute: str) -> Callable[..., Any]:
        prefix, family = _find(cls, attribute)
        if prefix == "to_":
            return lambda model: model._to_family(family)
        return partial(getattr(cls, f"_{prefix}family"), family)

    def __dir__(cls) -> list[str]:
        return sorted({*super().__dir__(), *method_names()})


def bound_method(model: object, attribute: str) -> Callable[..., Any]:
    """The family method of an instance, `model.to_<family>`; for the `__getattr__` of its class to call.

    Raises:
        AttributeError: `attribute` names no family method.
    """
    prefix, family = _find(type(model), attribute)
    return partial(getattr(model, f"_{prefix}family"), family)


def method_names() -> list[str]:
    """The names of all family methods of the installed families."""
    return [prefix + name for name in registry.names("family") for prefix in PREFIXES]


def split_name(attribute: str) -> tuple[str, str] | None:
    """`"config_from_llama"` -> `("config_from_", "llama")`; None if it does not have that form."""
    for prefix in PREFIXES:
        if attribute.startswith(prefix) and len(attribute) > len(prefix):
            return prefix, attribute.removeprefix(prefix)
    return None


def _find(cls: type, attribute: str) -> tuple[str, HFFamily]:
    """The prefix and the family that `attribute` names.

    Raises:
        AttributeError: `attribute` names no installed family; gives the nearest name, or what to install.
    """
    parts = split_name(attribute)
    if parts is None:
        raise AttributeError(f"type object '{cls.__name__}' has no attribute '{attribute}'")
    prefix, name = parts
    try:
        return prefix, get_family(name)
    except PluginError as error:
        written = [known for known in type.__dir__(cls) if not known.startswith("_")]
        raise AttributeError(f"{cls.__name__}.{attribute}: {error}{did_you_mean(attribute, written)}") from None
