"""`PluginKit`, the base class of the kits, which finds the plugin by the name it is installed under, or by its spec."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from reallm.errors import ConfigError
from reallm.plugins import registry
from reallm_devkit.testing.common_checks import hook_location
from reallm_devkit.testing.kit import Kit
from reallm_devkit.testing.source import reference_location, reference_module

if TYPE_CHECKING:
    from reallm.plugins.loader import Offer

S = TypeVar("S")


class PluginKit(Kit[S]):
    """Base class of the kits; the attribute named after `kind` is the plugin: `logger = "my-logger"`, or its spec.

    A spec has the plugin's class in a field of the same name. A kit whose plugins have no such spec, such as that of
    families, overrides `title`, `module` and `source_location`.
    """

    @classmethod
    def from_command(cls, offer: Offer, arguments: Sequence[str], checkpoint: Path | None) -> Self:
        """Make the kit for `reallm plugins check NAME`, of a kind that takes no arguments."""
        if arguments or checkpoint is not None:
            argument = arguments[0] if arguments else "--checkpoint"
            raise ConfigError(
                f"'{argument}': a {cls.kind} is checked without keys; write reallm plugins check {offer.name}"
            )
        return cls.of(**{cls.kind: offer.name})

    def title(self) -> str:
        """The name of the plugin, or of its class."""
        if self._is_installed:
            return str(self._given)
        return str(getattr(self._reference(), "__qualname__", self._reference()))

    def provided_by(self) -> str:
        """Distribution and version of an installed plugin."""
        return self._offer().plugin.release if self._is_installed else ""

    def module(self, subject: S) -> str:
        """The module of the plugin's class."""
        return reference_module(self._reference())

    def source_location(self, subject: S) -> str:
        """The location of the plugin's class."""
        return reference_location(self._reference())

    @property
    def _given(self) -> Any:
        return getattr(self, self.kind)

    @property
    def _is_installed(self) -> bool:
        return isinstance(self._given, str)

    def _offer(self) -> Offer:
        """The offer of an installed plugin."""
        return registry.registry().offer(self.kind, self._given)

    def _spec(self) -> Any:
        """The spec of the plugin.

        Raises:
            ConfigError: no plugin is given.
        """
        if not self._given:
            kind = self.kind
            raise ConfigError(f"{type(self).__name__}: say which {kind} is to be checked: {kind} = 'my-{kind}'")
        return self._offer().value if self._is_installed else self._given

    def _reference(self) -> Any:
        """The class of the plugin, or a lazy reference to it."""
        return getattr(self._spec(), self.kind)

    def _table(self) -> str:
        """The location of the hook that returns the spec."""
        return hook_location(self._offer()) if self._is_installed else f"the {self.kind.capitalize()}Spec"

    def _light_modules(self) -> tuple[str, ...]:
        """Modules that are imported to list the plugin."""
        return (self._offer().plugin.module,) if self._is_installed else ()
