"""The words of a preview, for terminal and page alike."""

from __future__ import annotations

import re
from statistics import mean, median

from reallm.data.preview.preview import Preview, PreviewedRow
from reallm.data.preview.samples import Sequence
from reallm.errors import counted

_HIDDEN = re.compile(r"[^\n\t\u200d\ufe0f]")
"""Characters that may need an escape; emoji are made with the two that are left out."""


def visible(text: str) -> str:
    """Text with line ends shown as `↵`, and unprintable characters as escapes: `\\x1b`."""

    def shown(match: re.Match[str]) -> str:
        return match[0] if match[0].isprintable() else ascii(match[0])[1:-1]

    return _HIDDEN.sub(shown, text).replace("\n", "↵\n")


def sequence_title(sequence: Sequence) -> str:
    """`57 tokens, 12 of them trained in 2 turns`, or `chosen: 57 tokens, prompt 45, answer 12`."""
    name = f"{sequence.name}: " if sequence.name else ""
    text = f"{name}{counted(len(sequence.tokens), 'token')}"
    if sequence.name == "prompt":
        return text
    if sequence.n_prompt is not None:
        return f"{text}, prompt {sequence.n_prompt:,}, answer {len(sequence.tokens) - sequence.n_prompt:,}"
    turns = len(sequence.turns)
    return f"{text}, {sequence.n_trained:,} of them trained{f' in {turns} turns' if turns > 1 else ''}"


def cut_text(sequence: Sequence) -> str:
    """`… 12 tokens were cut off here`."""
    return f"… {counted(sequence.n_cut, 'token')} {'was' if sequence.n_cut == 1 else 'were'} cut off here"


def dropped_text(row: PreviewedRow) -> str:
    """`dropped: longer than 512 tokens`."""
    return f"dropped: {row.dropped}"


def measured_text(preview: Preview) -> str:
    """How much of the data the statistics are about; empty if it is all of it."""
    return "" if preview.is_whole else f"these are the first {preview.n_measured:,} rows; there are more"


def lengths_text(preview: Preview) -> str:
    """`lengths in tokens: shortest 3, median 57, mean 61.2, 95th percentile 120, longest 512; 40 % ...`."""
    lengths = sorted(preview.lengths)
    if not lengths:
        return ""
    most = lengths[max(0, -(-95 * len(lengths) // 100) - 1)]
    share = f"; {100 * preview.n_trained / sum(lengths):.0f} % of them are trained" if preview.n_trained else ""
    return (
        f"lengths in tokens: shortest {lengths[0]:,}, median {median(lengths):,.0f}, mean {mean(lengths):,.1f}, "
        f"95th percentile {most:,}, longest {lengths[-1]:,}{share}"
    )
