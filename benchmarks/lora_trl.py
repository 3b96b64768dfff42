"""The sides of the benchmark of adapters that are TRL's `SFTTrainer` with a model of PEFT."""

from __future__ import annotations

import functools
from typing import Any

import peft
import torch
import transformers

from trl_side import train
from workers import Turns
from workloads import LoRAJob


def _trl(options: dict[str, Any], job: LoRAJob, turns: Turns) -> None:
    def load(**arguments: Any) -> Any:
        base = transformers.AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32, **arguments)
        return peft.PeftModel.from_pretrained(base, job.adapter, is_trainable=True)

    train(load, options, job, turns)


trl_default = functools.partial(_trl, {})
trl_padding_free = functools.partial(_trl, {"padding_free": True, "max_length": None})
