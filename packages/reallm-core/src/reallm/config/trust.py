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
        # the text as written too: it is what text keys get, and the value may be none (`!!binary "${oc.env:HOME}"`)
        for _, text in _texts([item.value, item.text], item.key) if item.origin else ():
            if "${" in _without_key_references(text):
                raise ConfigError(
                    f"{item.origin}{item.key}={text} would read the environment; give the value on the command line, "
                    f"or add {TRUST_CODE} if you trust this file"
                )


def check_code_is_trusted(values: Mapping[str, Any], assignments: Sequence[Assignment]) -> None:
    """Raise if a value from a file names Python code, such as `dataset.train_path=rows.py:load`.

    A value may be put together from several keys, so the final ones are what is looked at. Code that the command line
    names too, for whichever key, is trusted. What it gives for one source of a mixture says nothing about the others.

    Args:
        values: key -> final value.
        assignments: all assignments of files and of the command line, in order.

    Raises:
        ConfigError: names file, line, key and code.
    """
    trusted = {text for item in assignments if not item.origin for _, text in _texts(item.value, item.key)}
    for name, value in values.items():
        for key, text in _texts(value, name):
            if not names_code(text) or text in trusted:
                continue
            if origin := _origin(key, assignments):
                raise ConfigError(
                    f"{origin}{key}={text} would run code; add {TRUST_CODE} if you trust this file and that code"
                )


def settings_that_name_code(settings: Any) -> list[str]:
    """The texts in nested settings that name code."""
    return [text for _, text in _texts(settings, "") if names_code(text)]


def _origin(key: str, assignments: Sequence[Assignment]) -> str:
    """Where in a file the value of a key may come from; empty if the command line gives just this key.

    A mapping on the command line may leave what files have put beside it, so that it vouches for nothing.
    """
    for item in reversed(assignments):
        if item.key == key or (item.origin and (item.key.startswith(f"{key}.") or key.startswith(f"{item.key}."))):
            return item.origin
    return ""


def _without_key_references(text: str) -> str:
    """The text without `${key}`, also where one is inside another."""
    while (shorter := _KEY_REFERENCE.sub("", text)) != text:
        text = shorter
    return text


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """All texts in the value of a key, names in mappings included, each with its key: `dataset.mix.a.path`."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, one in value.items():
            inner = f"{key}.{name}"
            yield from _texts(name, inner)
            yield from _texts(one, inner)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one, key)
