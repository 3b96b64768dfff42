"""`CallbackKit`, the conformance kit for callbacks of training runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from reallm.errors import ConfigError
from reallm.plugins import registry
from reallm.specs import CallbackSpec
from reallm_devkit.testing.callbacks import calling
from reallm_devkit.testing.callbacks.subject import CallbackSubject
from reallm_devkit.testing.checks import Check
from reallm_devkit.testing.common_checks import description, hook_location, light_import
from reallm_devkit.testing.kit import Kit
from reallm_devkit.testing.report import Report
from reallm_devkit.testing.source import reference_module

if TYPE_CHECKING:
    from reallm.plugins.loader import Offer

CALLBACK_CHECKS: tuple[Check[Any], ...] = (
    description,
    light_import,
    calling.construction,
    calling.run,
    calling.side_effects,
    calling.state,
    calling.resume,
)
"""The checks of a callback."""


class CallbackKit(Kit[CallbackSubject]):
    """The checks of a callback. As a test suite:

    class TestMyCallback(CallbackKit):
        callback = "my-callback"
    """

    kind = "callback"
    checks: ClassVar[tuple[Check[Any], ...]] = CALLBACK_CHECKS

    callback: ClassVar[str | CallbackSpec] = ""
    """The name it is installed under, or the `CallbackSpec` of one that is not installed yet."""

    @classmethod
    def from_command(cls, offer: Offer, arguments: Sequence[str], checkpoint: Path | None) -> Self:
        """Make the kit for `reallm plugins check my-callback`."""
        if arguments or checkpoint is not None:
            argument = arguments[0] if arguments else "--checkpoint"
            raise ConfigError(
                f"'{argument}': a callback is checked without keys; write reallm plugins check {offer.name}"
            )
        return cls.of(callback=offer.name)

    def title(self) -> str:
        """The name of the callback, or of its class."""
        if isinstance(self.callback, str):
            return self.callback
        return str(getattr(self.callback.callback, "__qualname__", self.callback.callback))

    def provided_by(self) -> str:
        """Distribution and version of an installed callback."""
        return self._offer().plugin.release if isinstance(self.callback, str) else ""

    def module(self, subject: CallbackSubject) -> str:
        """The module of the callback's class."""
        return reference_module(subject.spec.callback)

    def source_location(self, subject: CallbackSubject) -> str:
        """The location of the callback's class."""
        return subject.at("")

    def subject(self, case: str) -> CallbackSubject:
        """Make the subject."""
        if not self.callback:
            raise ConfigError(f"{type(self).__name__}: say which callback is to be checked: callback = 'my-callback'")
        is_installed = isinstance(self.callback, str)
        return CallbackSubject(
            spec=self._offer().value if isinstance(self.callback, str) else self.callback,
            table=hook_location(self._offer()) if is_installed else "the CallbackSpec",
            light_modules=(self._offer().plugin.module,) if is_installed else (),
        )

    def _offer(self) -> Offer:
        assert isinstance(self.callback, str)
        return registry.registry().offer("callback", self.callback)


def check_callback(callback: str | CallbackSpec, *, skip: Mapping[str, str] | None = None) -> Report:
    """Check a callback; the arguments are the attributes of `CallbackKit`: `assert check_callback("plateau").passed`.

    Raises:
        ReallmError: if no plugin offers it, or an argument is wrong.
    """
    return CallbackKit.of(callback=callback, skip=skip or {}).run()
