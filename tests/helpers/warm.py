"""Imported last by the server that the tests' processes are forked from: has done once what each would do first.

It has estimated the memory of a tiny model, trained it for a step and drawn a figure, which fills the caches of torch
and matplotlib. What it has imported is left out of garbage collections, in which each process would copy it.
"""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

import torch

from reallm.engine.real_model import ReaLModel
from reallm.experiments.reports.png import save_plot
from reallm.training.memory import traced_activations
from tests.helpers.tiny_config import TINY

_CPU = torch.device("cpu")


def _train_a_step() -> None:
    model = ReaLModel(TINY.replace(tied_embeddings=True), seed=1)
    tokens, bounds = torch.arange(6), torch.tensor([0, 2, 6])
    model(tokens, bounds).logsumexp(-1).sum().backward()
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()


torch.set_num_threads(1)
for checkpointing in ("none", None):
    traced_activations(TINY, torch.float32, _CPU, (8, 4), checkpointing)
_train_a_step()
with tempfile.TemporaryDirectory() as _folder:
    save_plot({"train/loss": [(1, 2.0), (2, 1.0)]}, Path(_folder) / "loss.png")
gc.collect()
gc.freeze()
