"""What is wrong with the body of a request, in words of our own that name the parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from reallm.data.row import describe
from reallm.errors import did_you_mean
from reallm.field_types import value_text
from reallm.serving.errors import APIError

WITHOUT_EFFECT = frozenset(
    {"metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "service_tier", "store", "user"}
)
"""Parameters of the API that say nothing about the answer."""

_WANTED = {
    "string_type": "text",
    "string_unicode": "valid Unicode text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
}
"""By pydantic's names of what is wrong."""


def body_error(body: Any) -> APIError:
    """The error of a body that is no JSON object."""
    return APIError(f"the body must be a JSON object, not {describe(body)}")


def parameter_error(error: ValidationError) -> APIError:
    """The error of the first parameter that pydantic finds wrong."""
    first = error.errors(include_url=False)[0]
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return APIError(f"parameter '{name}' is missing", param=name)
    if first["type"] == "string_unicode" and not name:
        return APIError("the name of a parameter is not valid Unicode")
    wanted = _WANTED.get(first["type"], "another value").format_map(first.get("ctx", {}))
    return APIError(f"parameter '{name}': found {describe(first['input'])}, wanted {wanted}", param=name)


def check_others(others: Mapping[str, Any], known: Sequence[str], unsupported: Mapping[str, tuple[Any, ...]]) -> None:
    """Check the parameters that a request has beyond those that are supported.

    Args:
        others: their values by name.
        known: the names of those that are supported.
        unsupported: those of the API that are not, with the values that have no effect.

    Raises:
        APIError: one has an effect in the API, or the API does not have it.
    """
    for name, value in others.items():
        if name in unsupported:
            neutral = unsupported[name]
            if value not in neutral:
                is_plain = bool(neutral) and not isinstance(neutral[0], dict | list)
                instead = f" or give {value_text(neutral[0])}" if is_plain else ""
                raise APIError(f"parameter '{name}' is not supported; leave it out{instead}", param=name)
        elif name not in WITHOUT_EFFECT:
            hint = did_you_mean(name, known) or "; leave it out"
            raise APIError(f"there is no parameter '{name}'{hint}", param=name)
