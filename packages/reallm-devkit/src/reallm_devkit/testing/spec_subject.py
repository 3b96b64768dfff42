"""`SpecSubject`, the base class of what a kit checks, for plugins that return a spec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class _Spec(Protocol):
    @property
    def description(self) -> str: ...


S = TypeVar("S", bound=_Spec)


@dataclass(frozen=True, kw_only=True)
class SpecSubject(Generic[S]):
    """A spec, and where it stands.

    Attributes:
        spec: what the plugin returns.
        table: the location of the hook that returns it.
        light_modules: modules that are imported to list the plugin.
    """

    spec: S
    table: str
    light_modules: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """The plugin's description of what it offers."""
        return self.spec.description
