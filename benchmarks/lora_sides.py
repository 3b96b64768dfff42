"""The side of the benchmark of adapters that is reallm."""

from __future__ import annotations

import torch

from reallm import LoRAArgs, ReaLModel
from reallm.algorithms.sft.interface import SFTInterface
from reallm.data.batching import gather
from reallm.training.engine import TrainEngine
from sides import MICROBATCH_TOKENS, OPTIMIZER
from workers import Turns
from workloads import LoRAJob


def reallm(job: LoRAJob, turns: Turns) -> None:
    """Steps of `TrainEngine`."""
    turns.before_model()
    dtype = torch.bfloat16 if job.device == "cuda" else torch.float32
    model = ReaLModel.from_pretrained(job.folder, dtype=dtype, device=job.device, lora=LoRAArgs(path=str(job.adapter)))
    engine = TrainEngine(model, OPTIMIZER, total_steps=1000, max_tokens_per_microbatch=MICROBATCH_TOKENS)
    objective = SFTInterface()
    samples = [sample.for_reallm() for sample in job.samples]
    while turns.wait():
        turns.done(engine.train_batch(gather(samples), objective)["loss"])
