"""Truncates or drops sequences that are too long."""

from __future__ import annotations

from reallm_datasets.config import Overlong
from reallm_datasets.encoding import Encoded

REMEDIES = {
    "fills": "raise max_seqlen",
    "longer than": "raise max_seqlen",
    "are empty": "give rows with an answer",
}
"""Part of a phrase about a sequence that is dropped -> what to do."""


def truncate_or_drop(sequence: Encoded, max_seqlen: int, overlong: Overlong) -> tuple[Encoded | None, str]:
    """The sequence, whole or truncated, or None if it is dropped; and a phrase for the report, empty if it is whole.

    A sequence is also dropped if it has nothing to train: its first token has no token before it to be predicted from,
    and truncating must leave some of the answer.
    """
    if not sequence.answer_mask[1:].any():
        return None, "dropped: prompt and answer are empty"
    if not sequence.answer_mask[1:max_seqlen].any():
        return None, f"dropped: the prompt alone fills {max_seqlen} tokens"
    if len(sequence.ids) <= max_seqlen:
        return sequence, ""
    if overlong == "drop":
        return None, f"dropped: longer than {max_seqlen} tokens"
    return Encoded(sequence.ids[:max_seqlen], sequence.answer_mask[:max_seqlen]), f"cut to {max_seqlen} tokens"
