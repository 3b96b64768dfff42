"""`ImplementationKit`, the conformance kit for implementations of networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from reallm.errors import CheckpointError
from reallm.specs import ImplementationSpec
from reallm_devkit.testing.checks import Check, CheckFailed, check
from reallm_devkit.testing.common_checks import description, light_import
from reallm_devkit.testing.plugin_kit import PluginKit
from reallm_devkit.testing.report import Report
from reallm_devkit.testing.spec_subject import SpecSubject

_SOURCE = "the/path/of/config.json"


@check()
def refusal(subject: SpecSubject[ImplementationSpec]) -> str:
    """a model that it cannot compute is refused by a `CheckpointError` that names the file"""
    raw = {"model_type": "no-such-model", "architectures": ["NoSuchModelForCausalLM"]}
    expected = f"a CheckpointError that begins with '{_SOURCE}'"
    try:
        found = subject.spec.family_of(raw, _SOURCE)
    except CheckpointError as error:
        if str(error).startswith(_SOURCE):
            return str(error)
        seen = str(error)
    except Exception as error:  # it is the plugin's
        seen = f"{type(error).__name__}: {error}"
    else:
        seen = f"it returned {found!r}"
    raise CheckFailed(expected, seen, look_at=subject.table)


IMPLEMENTATION_CHECKS: tuple[Check[Any], ...] = (description, light_import, refusal)
"""The checks of an implementation."""


class ImplementationKit(PluginKit[SpecSubject[ImplementationSpec]]):
    """The checks of an implementation, which need no model; what it computes is for its own tests. As a test suite:

    class TestMyImplementation(ImplementationKit):
        implementation = "my-implementation"
    """

    kind = "implementation"
    checks: ClassVar[tuple[Check[Any], ...]] = IMPLEMENTATION_CHECKS

    implementation: ClassVar[str | ImplementationSpec] = ""
    """The name it is installed under, or the `ImplementationSpec` of one that is not installed yet."""

    def subject(self, case: str) -> SpecSubject[ImplementationSpec]:
        """Make the subject."""
        return SpecSubject(spec=self._spec(), table=self._table(), light_modules=self._light_modules())

    def _reference(self) -> Any:
        """The function, or a lazy reference to it."""
        return self._spec().family


def check_implementation(implementation: str | ImplementationSpec, *, skip: Mapping[str, str] | None = None) -> Report:
    """Check an implementation; the arguments are the attributes of `ImplementationKit`.

    Raises:
        ReallmError: if no plugin offers it, or an argument is wrong.
    """
    return ImplementationKit.of(implementation=implementation, skip=skip or {}).run()
