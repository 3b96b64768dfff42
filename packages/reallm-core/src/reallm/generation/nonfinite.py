"""Completions that have ended because logits were not finite are an error. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from reallm.errors import NonFiniteError, counted
from reallm.generation.request import Completion


def refuse_nonfinite(completions: Iterable[tuple[str, Completion]]) -> None:
    """Raise NonFiniteError for the first prompt whose logits were not finite.

    Args:
        completions: pairs of what errors call a prompt and one of its completions, in the order of the prompts.
    """
    failed: dict[str, Completion] = {}
    for name, completion in completions:
        if not completion.is_finite:
            failed.setdefault(name, completion)
    if not failed:
        return
    first, completion = next(iter(failed.items()))
    others = f" (and those of {counted(len(failed) - 1, 'more prompt')})" if len(failed) > 1 else ""
    raise NonFiniteError(f"{first}: the logits of new token {len(completion.logprobs)}{others} are not finite")
