"""Finds an installed family that can store a configuration, for models that no checkpoint gives a family."""

from __future__ import annotations

from reallm.errors import ConfigError
from reallm.hf.conversion.config import config_to_hf
from reallm.hf.conversion.families import KIND
from reallm.hf.family import HFFamily
from reallm.model.config import ReaLModelConfig
from reallm.plugins import registry
from reallm.plugins.known import suggested_first


def storing_family(config: ReaLModelConfig) -> str | None:
    """The name of an installed family that can store a configuration; None if there is none.

    Of several it is the one that is suggested to newcomers, or else one with scalar heads.
    """
    families: dict[str, HFFamily] = dict(registry.offers(KIND))
    found = [name for name, family in families.items() if _can_store(family, config)]
    _, suggested = suggested_first(KIND)
    return min(found, key=lambda name: (name != suggested, not families[name].critic_architectures), default=None)


def _can_store(family: HFFamily, config: ReaLModelConfig) -> bool:
    try:
        config_to_hf(family, config)
    except ConfigError:
        return False
    return True
