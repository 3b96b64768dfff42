"""TRL's `DPOTrainer` and `RewardTrainer` as sides: their own `train()`, stopped after each optimizer step.

What is set is what makes their steps the same work as those of the other sides; all else is TRL's default, among it
gradient checkpointing (on). What is switched off is no part of a step: logging, saving, progress bars.
"""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any

import datasets
import torch
import transformers
import trl

from preference_sides import BETA
from preference_work import PreferenceJob
from reallm.demo.tokenizer import byte_tokenizer
from trl_settings import be_quiet, same_work
from trl_side import MAX_STEPS, OneStepATurn
from workers import Turns


def _recording(trainer: type) -> Any:
    """The trainer, which takes tokens as they are and remembers the loss of its last step."""

    class Recording(trainer):  # type: ignore[misc]
        loss = torch.zeros(())

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            self.loss = super().training_step(*args, **kwargs)
            return self.loss

    return Recording


def _settings(job: PreferenceJob, scratch: str) -> dict[str, Any]:
    return {
        "max_steps": MAX_STEPS,
        "per_device_train_batch_size": len(job.pairs),
        "train_sampling_strategy": "sequential",
        "max_length": None,
        **same_work(scratch),
    }


def _train(trainer: Any, turns: Turns) -> None:
    trainer.add_callback(OneStepATurn(trainer, turns))
    trainer.train()


def _dpo(options: dict[str, Any], job: PreferenceJob, turns: Turns) -> None:
    be_quiet()
    rows = [{"prompt_ids": one.prompt, "chosen_ids": one.chosen, "rejected_ids": one.rejected} for one in job.pairs]
    with tempfile.TemporaryDirectory() as scratch:
        turns.before_model()
        model = transformers.AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32)
        trainer = _recording(trl.DPOTrainer)(
            model=model,
            args=trl.DPOConfig(beta=BETA, **_settings(job, scratch), **options),
            train_dataset=_repeated(rows, options),
            processing_class=byte_tokenizer(),  # never used: the rows are tokens
        )
        _train(trainer, turns)


def _repeated(rows: list[dict[str, list[int]]], options: dict[str, Any]) -> datasets.Dataset:
    """The same batch for each step; a single one, for all epochs, if the reference scores all rows first."""
    n_batches = 1 if options.get("precompute_ref_log_probs") else MAX_STEPS
    return datasets.concatenate_datasets([datasets.Dataset.from_list(rows)] * n_batches)


def trl_rw(job: PreferenceJob, turns: Turns) -> None:
    """Steps of the reward trainer as it comes."""
    be_quiet()
    rows = [dict(zip(("chosen_ids", "rejected_ids"), one.sequences, strict=True)) for one in job.pairs]
    with tempfile.TemporaryDirectory() as scratch:
        turns.before_model()
        model = transformers.AutoModelForSequenceClassification.from_pretrained(job.reward_folder, dtype=torch.float32)
        trainer = _recording(trl.RewardTrainer)(
            model=model,
            args=trl.RewardConfig(**_settings(job, scratch)),
            train_dataset=_repeated(rows, {}),
            processing_class=byte_tokenizer(),
        )
        _train(trainer, turns)


trl_dpo_cached = partial(_dpo, {"precompute_ref_log_probs": True})
trl_dpo_live = partial(_dpo, {})
trl_dpo_cached_no_checkpointing = partial(_dpo, {"precompute_ref_log_probs": True, "gradient_checkpointing": False})
