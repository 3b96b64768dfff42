"""Initial values of the rows that a checkpoint's vocabulary lacks, drawn around the mean of those that it has."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reallm.model.sharding import Box
from reallm.seeding import derive_seed

SPREAD = 1e-5
"""Covariance of new rows, as a multiple of the covariance of the present ones."""

_CHUNK = 4096
"""Rows that are converted to float64 at a time."""


def drawn_rows(present: Tensor, rows: range, name: str, seed: int) -> Tensor:
    """Draw new rows [len(rows), ...] float32 for a parameter whose present rows are `present` [V, ...].

    They are normally distributed, with the mean of the present rows and `SPREAD` times their covariance. A new token
    then begins about as likely as an average one and takes almost no probability from the others, whatever the network
    has learned. (J. Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021; transformers'
    `resize_token_embeddings` does the same.) With deviations D [V, E] from the mean and standard normal g [V], the row
    `g @ D / sqrt(V)` has exactly the covariance of the present rows, so that no matrix has to be factorized.

    Args:
        present: the whole parameter, as it is in the checkpoint.
        rows: numbers of the rows to draw, each of which has a random stream of its own.
        name: name of the parameter.
        seed: seed of all rows.
    """
    flat = present.reshape(len(present), -1)
    mean = torch.stack([chunk.double().sum(dim=0) for chunk in flat.split(_CHUNK)]).sum(dim=0) / len(flat)
    generators = [torch.Generator().manual_seed(derive_seed(seed, "new rows", name, row)) for row in rows]
    deviation = torch.zeros(len(rows), flat.shape[1], dtype=torch.float64)
    for chunk in flat.split(_CHUNK):
        normal = torch.stack([torch.randn(len(chunk), generator=each, dtype=torch.float64) for each in generators])
        deviation += normal @ (chunk.double() - mean)
    drawn = mean + math.sqrt(SPREAD / len(flat)) * deviation
    return drawn.float().reshape(len(rows), *present.shape[1:])


def with_new_rows(read: Tensor, box: Box, present: Tensor, name: str, seed: int) -> Tensor:
    """A box of a parameter that has grown: the part `read` from the checkpoint, and the new rows after it.

    Args:
        read: the part of the box that the checkpoint has.
        box: the box, in coordinates of the grown parameter; its last row is new.
        present: the whole parameter in the checkpoint.
        name: name of the parameter.
        seed: seed of the new rows.
    """
    new = range(max(box.starts[0], len(present)), box.stops[0])
    drawn = drawn_rows(present, new, name, seed)[(slice(None), *box.slices[1:])]
    return torch.cat([read, drawn.to(read.dtype)])
