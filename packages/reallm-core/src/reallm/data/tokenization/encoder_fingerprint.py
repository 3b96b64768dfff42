"""A fingerprint of an encoder: equal only if it would make the same tokens of the same rows."""

from __future__ import annotations

import datetime
import hashlib
import pickle
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import FunctionType
from typing import Any

from reallm.data.tokenization.encoder import RowEncoder
from reallm.source_hash import source_hash

LIBRARIES = ("jinja2", "numpy", "tokenizers", "transformers")
"""Distributions whose version may change tokens."""
_NOT_TOKENS = {"name_or_path", "init_inputs", "init_kwargs", "deprecation_warnings", "files_loaded", "verbose"}
"""Attributes of a tokenizer that say where it came from."""


def encoder_fingerprint(encoder: RowEncoder) -> str:
    """SHA-256 of the encoder's class and attributes, its tokenizer, and the code that they run.

    A chat template that prints the date gives another fingerprint each day.

    Raises:
        Exception: an attribute can be neither described nor pickled.
    """
    digest = hashlib.sha256()
    for part in (*_described(encoder, set()), *(version(name) for name in LIBRARIES), _code(type(encoder).__module__)):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def _described(value: Any, seen: set[int]) -> Iterator[str]:
    """Texts that are equal for equal values, in every process."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        yield f"{type(value).__name__} {value!r}"
        return
    if id(value) in seen:  # an attribute that leads back to its owner
        yield "again"
        return
    seen = {*seen, id(value)}
    yield f"{type(value).__module__}:{type(value).__qualname__}"
    if isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            yield repr(key)
            yield from _described(value[key], seen)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _described(item, seen)
    elif isinstance(value, set | frozenset):
        yield from sorted(" ".join(_described(item, seen)) for item in value)
    elif hasattr(value, "backend_tokenizer"):
        yield from _described_tokenizer(value, seen)
    elif _is_object(value):
        yield from _described(vars(value), seen)
    else:
        yield pickle.dumps(value).hex()


def _is_object(value: Any) -> bool:
    """Whether its attributes say all about a value, which those of a class, a function or a `partial` do not."""
    is_callable = callable(value) and not isinstance(type(value).__call__, FunctionType)
    return hasattr(value, "__dict__") and not isinstance(value, type) and not is_callable


def _described_tokenizer(tokenizer: Any, seen: set[int]) -> Iterator[str]:
    """A fast tokenizer of transformers."""
    yield tokenizer.backend_tokenizer.to_str()
    attributes = {name: value for name, value in vars(tokenizer).items() if name not in {*_NOT_TOKENS, "_tokenizer"}}
    yield from _described(attributes, seen)
    if "strftime_now" in str(tokenizer.chat_template):
        yield _today()


def _today() -> str:
    return datetime.date.today().isoformat()


@cache
def _code(module: str) -> str:
    """A hash of the sources of the module's package, and of the folder with rows, chats and tokenization."""
    name = module.partition(".")[0]
    top = getattr(sys.modules.get(name), "__file__", None) or getattr(sys.modules[module], "__file__", None)
    places = {Path(__file__).parents[1]}
    if top is not None and name != "reallm":
        places.add(Path(top).parent if Path(top).name == "__init__.py" else Path(top))
    return source_hash(places)
