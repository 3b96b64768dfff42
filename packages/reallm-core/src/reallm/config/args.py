"""Parts of an experiment's configuration: the model, and a dataset chosen by name. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from reallm.options import REQUIRED, option

DATASET_KEY = "dataset"
"""Metadata key of a field that holds a dataset's configuration; its value is the name of the default dataset."""


def dataset_option(default_name: str, help: str) -> Any:  # noqa: A002 - as in `option`
    """A field whose keys are those of the dataset that `<field>.name` names, `default_name` unless it is given."""
    return field(default=REQUIRED, metadata={"help": help, DATASET_KEY: default_name})


@dataclass(frozen=True)
class ModelArgs:
    """Which model to train, and how it is held in memory."""

    path: str = option(REQUIRED, "HuggingFace checkpoint with its tokenizer: a folder, or a hub id such as org/name")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "number format while training; auto is float32 on a CPU and bfloat16 on a GPU that has it. "
        "Checkpoints are written in the format they were read in",
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "where to compute; auto takes a GPU if there is one")
    gradient_checkpointing: Literal["none", "selective", "full"] = option(
        "none",
        "what the backward pass computes again instead of keeping it in memory: selective keeps the results of matrix "
        "products and attention, full keeps only what goes from block to block",
    )
    moe_aux_loss_coef: float | None = option(
        None,
        "weight of the load-balancing loss of models with experts, 0 for none; "
        "null: that of the checkpoint's config.json",
    )
    compile: bool = option(False, "compile the blocks with torch.compile: faster steps after a slow start")
