"""Web addresses that users give where a path is wanted: recognised, and what to write instead. Imports no torch."""

from __future__ import annotations

import re

_PAGE = re.compile(r"(?:https?:/+)?(?:www\.)?(?:huggingface\.co|hf\.co)/(datasets/)?([\w.-]+/[\w.-]+)", re.IGNORECASE)


def is_web_address(text: object) -> bool:
    """Whether a path is really a web address, such as `https://...` or `huggingface.co/...`."""
    return isinstance(text, str) and bool(re.match(r"\w{2,}:/|(www\.)?(huggingface|hf)\.co/", text, re.IGNORECASE))


def instead_of(address: str, *, dataset: bool) -> str:
    """What to write for a web address, as the end of a message.

    Args:
        address: the address as it was given.
        dataset: whether rows are wanted, and not a model.
    """
    page = _PAGE.match(address)
    if page and bool(page[1]) == dataset:
        return (
            f"write hub:{page[2]}:train, or another split" if dataset else f"write {page[2]}, the model's id on the hub"
        )
    if page:
        return f"it is the page of a {'model' if dataset else 'dataset'}"
    return "download it, and give its path"
