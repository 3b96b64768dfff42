"""TRL's `SFTTrainer` as a side: its own `train()` on tokenized rows, stopped after each optimizer step by a callback.

What is set is what makes its steps the same work as those of the other sides: the batch, its order, precision, AdamW.
What is switched off is no part of a step: logging, saving, progress bars. All else is TRL's default, among it gradient
checkpointing (on), and the entropy and token accuracy that it computes at every step.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from typing import Any

import datasets
import torch
import transformers
import trl
from transformers import TrainerCallback
from transformers.utils import is_flash_attn_2_available

from reallm.demo.tokenizer import byte_tokenizer
from sides import IGNORED
from trl_settings import be_quiet, same_work
from workers import Turns
from workloads import Job, Sample

MAX_STEPS = 200


def _trl(options: dict[str, Any], job: Job, turns: Turns) -> None:
    def load(**arguments: Any) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32, **arguments)

    train(load, options, job, turns)


def train(load: Callable[..., Any], options: dict[str, Any], job: Job, turns: Turns) -> None:
    """Train a model with TRL, a step each turn.

    Args:
        load: makes the model, given further arguments of `from_pretrained`.
        options: settings of `SFTConfig` that are not its defaults.
        job: the work.
        turns: the turns.
    """
    be_quiet()
    on_gpu = job.device == "cuda"
    attention = {"attn_implementation": "flash_attention_2"} if on_gpu and is_flash_attn_2_available() else {}
    with tempfile.TemporaryDirectory() as scratch:
        arguments = trl.SFTConfig(
            max_steps=MAX_STEPS,
            per_device_train_batch_size=len(job.samples),
            train_sampling_strategy="sequential",
            **same_work(scratch, on_gpu=on_gpu),
            **options,
        )
        rows = datasets.Dataset.from_list([_row(sample) for sample in job.samples])
        turns.before_model()
        trainer = _Trainer(
            model=load(**attention),
            args=arguments,
            train_dataset=datasets.concatenate_datasets([rows] * MAX_STEPS),
            processing_class=byte_tokenizer(),  # never used: the rows are tokens
        )
        trainer.add_callback(OneStepATurn(trainer, turns))
        trainer.train()


class _Trainer(trl.SFTTrainer):
    """Remembers the loss of the last step, which a callback is not told without logging."""

    loss = torch.zeros(())

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.loss = super().training_step(*args, **kwargs)
        return self.loss


class OneStepATurn(TrainerCallback):
    """Holds the training loop between its steps: a turn is all that the trainer does for one of them.

    The trainer keeps the loss of its last step as `loss`.
    """

    def __init__(self, trainer: Any, turns: Turns) -> None:
        self._trainer, self._turns = trainer, turns

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = not self._turns.wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._turns.done(self._trainer.loss.item())
        control.should_training_stop = not self._turns.wait()


def _row(sample: Sample) -> dict[str, list[int]]:
    tokens = sample.tokens.tolist()
    return {"input_ids": tokens, "labels": [IGNORED] * (len(tokens) - sample.n_answer) + tokens[-sample.n_answer :]}


trl_default = functools.partial(_trl, {})
trl_padding_free = functools.partial(_trl, {"padding_free": True, "max_length": None})  # which it asks for
trl_padding_free_no_checkpointing = functools.partial(
    _trl, {"padding_free": True, "max_length": None, "gradient_checkpointing": False}
)
