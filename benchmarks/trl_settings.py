"""Settings that make a step of any of TRL's trainers the same work as ours. Imports no TRL."""

from __future__ import annotations

import warnings
from typing import Any

import datasets
import transformers

from sides import BETAS, LEARNING_RATE, MAX_GRAD_NORM


def same_work(scratch: str, *, learning_rate: float = LEARNING_RATE, on_gpu: bool = False) -> dict[str, Any]:
    """Precision, device and AdamW as of the other sides; what is no part of a step is switched off.

    Args:
        scratch: folder for what the trainer may write.
        learning_rate: the learning rate.
        on_gpu: whether to compute in bfloat16 on a GPU.
    """
    return {
        "output_dir": scratch,
        "bf16": on_gpu,
        "use_cpu": not on_gpu,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "constant",
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "weight_decay": 0.0,
        "max_grad_norm": MAX_GRAD_NORM,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def be_quiet() -> None:
    """No warnings and no progress bars of the libraries."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
