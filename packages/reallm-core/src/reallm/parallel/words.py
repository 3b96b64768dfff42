"""Small values that ranks tell each other, as JSON: nothing that is received is ever run."""

from __future__ import annotations

import json
from typing import Any

import torch
import torch.distributed as dist

from reallm.parallel.mesh import Group, all_gather_single


def told_by_all(value: Any, group: Group) -> dict[int, Any]:
    """What each rank of a group says, by rank in ascending order; all of them call it.

    Args:
        value: whatever JSON has a form for; floats, those that are not finite too, arrive as they are.
        group: one that has a backend for tensors on the CPU.
    """
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    ranks = dist.get_process_group_ranks(group)
    lengths = torch.empty(len(ranks), dtype=torch.int64)
    all_gather_single(lengths, torch.tensor([text.numel()]), group=group)
    longest = int(lengths.max())
    texts = torch.empty(len(ranks), longest, dtype=torch.uint8)
    own = torch.nn.functional.pad(text, (0, longest - text.numel()))
    all_gather_single(texts.view(-1), own, group=group)
    each = [json.loads(bytes(text[:length].tolist())) for text, length in zip(texts, lengths.tolist(), strict=True)]
    return dict(sorted(zip(ranks, each, strict=True)))
