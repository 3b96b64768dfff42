"""Bytes of the keys of a batch, by what they are known or expected to hold. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable

from reallm.planning.workload import Workload

INT64, FLOAT32, BOOL = 8, 4, 1
TOKENS = frozenset({"input_ids", "prompt_ids", "token_ids"})
"""Keys of tokens, int64."""
OF_SEQUENCES = {
    "prompt_lens": INT64,
    "truncated": BOOL,
    "scores": FLOAT32,
    "reward_parts": FLOAT32,
    "reward_given": FLOAT32,
    "end_values": FLOAT32,
}
"""Keys with one element for each sequence, and its bytes."""
PREFIXES = ("greedy_", "chosen_", "rejected_")
"""Beginnings of keys that are otherwise as those above."""


def data_bytes(keys: Iterable[str], workload: Workload) -> int:
    """Bytes of keys of a whole batch. A key that is not known has a float32 for each token of an answer."""
    return sum(_key_bytes(key, workload) for key in keys)


def _key_bytes(key: str, workload: Workload) -> int:
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    if key == "prompt_ids":
        return round(INT64 * workload.n_prompts * workload.prompts.mean)
    if key in TOKENS:
        return round(INT64 * workload.n_tokens)
    if key in OF_SEQUENCES:
        return OF_SEQUENCES[key] * workload.n_sequences
    return round(FLOAT32 * workload.n_sequences * (workload.answers.mean or workload.prompts.mean))
