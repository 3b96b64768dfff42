"""Each check of the kit for implementations finds what it is for, and finds no fault with what is right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from reallm.errors import CheckpointError
from reallm.specs import ImplementationSpec
from reallm_devkit import IMPLEMENTATION_CHECKS, ImplementationKit, check_implementation


def refuses(raw: Mapping[str, Any], source: str | Path) -> Any:
    raise CheckpointError(f"{source}: there is no model_type {raw['model_type']}")


def names_no_file(raw: Mapping[str, Any], source: str | Path) -> Any:
    raise CheckpointError("there is no such model")


def fails(raw: Mapping[str, Any], source: str | Path) -> Any:
    return {}[raw["model_type"]]


def takes_all(raw: Mapping[str, Any], source: str | Path) -> Any:
    return None


class TestGood(ImplementationKit):
    implementation = ImplementationSpec(refuses, "refuses everything")


@pytest.mark.parametrize("function", [names_no_file, fails, takes_all])
def test_what_is_no_refusal_is_found(function: Any) -> None:
    found = check_implementation(ImplementationSpec(function, "x"))
    assert [result.check for result in found.failed] == ["refusal"], str(found)


def test_a_missing_description_is_found() -> None:
    assert [result.check for result in check_implementation(ImplementationSpec(refuses)).failed] == ["description"]


def test_the_installed_one_passes_all_checks() -> None:
    found = check_implementation("transformers")
    assert found.passed, str(found)
    assert len(found.results) == len(IMPLEMENTATION_CHECKS)
