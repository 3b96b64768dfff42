"""`ReaLModel.from_<family>` and its three siblings: there for every family that is installed, written by nobody.

    ReaLModel.from_<family>(source)         a model, from a checkpoint folder, a HF config or a HF model
    model.to_<family>()                     the transformers model with the same weights
    ReaLModel.config_from_<family>(source)  a ReaLModelConfig, from a checkpoint folder or a HF config
    ReaLModel.config_to_<family>(config)    the transformers config

They are found when asked for, so that importing the class imports no plugin; `dir(ReaLModel)` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn

from reallm.errors import PluginError, did_you_mean
from reallm.hf.conversion.families import get_family
from reallm.hf.family import HFFamily
from reallm.plugins import registry

KINDS = ("config_from_", "config_to_", "from_", "to_")
"""Prefixes of the methods, longer ones first, for the longest match counts."""


def method_names() -> list[str]:
    """The names of all family methods of the families that are installed."""
    return [kind + name for name in registry.names("family") for kind in KINDS]


def split_name(attribute: str) -> tuple[str, str] | None:
    """`"config_from_llama"` -> `("config_from_", "llama")`; None if it has not that form."""
    for kind in KINDS:
        if attribute.startswith(kind) and len(attribute) > len(kind):
            return kind, attribute.removeprefix(kind)
    return None


def find(cls: type, attribute: str) -> tuple[str, HFFamily]:
    """The kind of method and the family that `attribute` names.

    Raises:
        AttributeError: it names no installed family; says what is near, or what to install.
    """
    parts = split_name(attribute)
    if parts is None:
        raise AttributeError(f"type object '{cls.__name__}' has no attribute '{attribute}'")
    kind, name = parts
    try:
        return kind, get_family(name)
    except PluginError as error:
        near = did_you_mean(attribute, _own_names(cls))
        raise AttributeError(f"{cls.__name__}.{attribute}: {error}{near}") from None


def _own_names(cls: type) -> Iterable[str]:
    return [name for name in type.__dir__(cls) if not name.startswith("_")]


class FamilyMethods(type):
    """Metaclass of a model class with family methods.

    The class implements the class methods `_from_family`, `_config_from_family` and `_config_to_family`, and the method
    `_to_family`; each takes the `HFFamily` first.
    """

    def __getattr__(cls, attribute: str) -> Callable[..., Any]:
        kind, family = find(cls, attribute)
        if kind == "to_":
            return lambda model: model._to_family(family)
        return partial(getattr(cls, f"_{kind}family"), family)

    def __dir__(cls) -> list[str]:
        return sorted({*super().__dir__(), *method_names()})


class FamilyMethodsOnInstances(nn.Module):
    """The same names on instances: `model.to_<family>()`."""

    def __getattr__(self, attribute: str) -> Any:
        if split_name(attribute) is None:
            return super().__getattr__(attribute)
        kind, family = find(type(self), attribute)
        return partial(getattr(self, f"_{kind}family"), family)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *method_names()})
