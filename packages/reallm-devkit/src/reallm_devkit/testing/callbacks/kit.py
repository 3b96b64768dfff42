"""`CallbackKit`, the conformance kit for callbacks of training runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from reallm.specs import CallbackSpec
from reallm_devkit.testing.callbacks import calling
from reallm_devkit.testing.callbacks.subject import CallbackSubject
from reallm_devkit.testing.checks import Check
from reallm_devkit.testing.common_checks import description, light_import
from reallm_devkit.testing.plugin_kit import PluginKit
from reallm_devkit.testing.report import Report

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


class CallbackKit(PluginKit[CallbackSubject]):
    """The checks of a callback. As a test suite:

    class TestMyCallback(CallbackKit):
        callback = "my-callback"
    """

    kind = "callback"
    checks: ClassVar[tuple[Check[Any], ...]] = CALLBACK_CHECKS

    callback: ClassVar[str | CallbackSpec] = ""
    """The name it is installed under, or the `CallbackSpec` of one that is not installed yet."""

    def subject(self, case: str) -> CallbackSubject:
        """Make the subject."""
        return CallbackSubject(spec=self._spec(), table=self._table(), light_modules=self._light_modules())


def check_callback(callback: str | CallbackSpec, *, skip: Mapping[str, str] | None = None) -> Report:
    """Check a callback; the arguments are the attributes of `CallbackKit`: `assert check_callback("plateau").passed`.

    Raises:
        ReallmError: if no plugin offers it, or an argument is wrong.
    """
    return CallbackKit.of(callback=callback, skip=skip or {}).run()
