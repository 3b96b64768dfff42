"""Sequences that are too long."""

from __future__ import annotations

from reallm_datasets.config import Overlong
from reallm_datasets.encoding import Encoded


def fit(sequence: Encoded, max_seqlen: int, overlong: Overlong) -> tuple[Encoded | None, str]:
    """The sequence as it is, cut at its end, or None if it is dropped; and what was done, for the report.

    A sequence is dropped too if nothing of it could be trained: the first token has none before it to be predicted
    from, and cutting must leave something of the answer.
    """
    if not sequence.written[1:].any():
        return None, "dropped: prompt and answer are empty"
    if not sequence.written[1:max_seqlen].any():
        return None, f"dropped: the prompt alone fills {max_seqlen} tokens"
    if len(sequence.ids) <= max_seqlen:
        return sequence, ""
    if overlong == "drop":
        return None, f"dropped: longer than {max_seqlen} tokens"
    return Encoded(sequence.ids[:max_seqlen], sequence.written[:max_seqlen]), f"cut to {max_seqlen} tokens"
