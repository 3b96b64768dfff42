"""What a configuration file may not ask for by itself: running code that it names, and reading the environment.

Files come from others, and so do run folders, whose settings `resume=` reads. What the command line names is the
user's own wish, and `--trust-code` on it is their word for the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reallm.errors import ConfigError
from reallm.references import names_code

if TYPE_CHECKING:
    from reallm.config.assignments import Assignment  # imports OmegaConf, which whoever lists runs does not need

TRUST_CODE = "--trust-code"
"""The argument with which files may name code and read environment variables."""
_KEY_REFERENCE = re.compile(r"\$\{[\w.\[\]]+\}")
"""`${model.path}`. A `${` that is none of these calls a function of OmegaConf, as in `${oc.env:HOME}`."""


def check_no_functions_in_files(assignments: Sequence[Assignment]) -> None:
    """Raise if a value from a file calls a function of OmegaConf, such as `${oc.env:HOME}`.

    Raises:
        ConfigError: names file, line and key.
    """
    for item in assignments:
        for text in _texts(item.value) if item.origin else ():
            if "${" in _without_key_references(text):
                raise ConfigError(
                    f"{item.origin}{item.key}={text} would read the environment; give the value on the command line, "
                    f"or add {TRUST_CODE} if you trust this file"
                )


def check_code_is_trusted(values: Mapping[str, Any], assignments: Sequence[Assignment]) -> None:
    """Raise if a value from a file names Python code, such as `dataset.train_path=rows.py:load`.

    A value may be put together from several keys, so the final ones are what is looked at. Code that the command line
    names too, for whichever key, is trusted.

    Args:
        values: key -> final value.
        assignments: all assignments of files and of the command line, in order.

    Raises:
        ConfigError: names file, line, key and code.
    """
    trusted = {text for item in assignments if not item.origin for text in _texts(item.value)}
    for key, value in values.items():
        origin = next((item.origin for item in reversed(assignments) if _is_of(item.key, key)), "")
        for text in _texts(value) if origin else ():
            if names_code(text) and text not in trusted:
                raise ConfigError(
                    f"{origin}{key}={text} would run code; add {TRUST_CODE} if you trust this file and that code"
                )


def settings_that_name_code(settings: Any) -> list[str]:
    """The texts in nested settings that name code."""
    return [text for text in _texts(settings) if names_code(text)]


def _is_of(assigned: str, key: str) -> bool:
    """Whether a value assigned to one key is in that of another: that of `dataset.mix.a.path` is in `dataset.mix`."""
    return assigned == key or assigned.startswith(f"{key}.") or key.startswith(f"{assigned}.")


def _without_key_references(text: str) -> str:
    """The text without `${key}`, also where one is inside another."""
    while (shorter := _KEY_REFERENCE.sub("", text)) != text:
        text = shorter
    return text


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value, keys of mappings included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from _texts(name)
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)
