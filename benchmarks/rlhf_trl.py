"""TRL's `GRPOTrainer` and `PPOTrainer` as sides: their own `train()`, stopped after each step.

What is set is what makes their steps the same work as ours; all else is TRL's default, among it gradient checkpointing.
What is switched off is no part of a step: logging, saving, progress bars.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from transformers import TrainerCallback

from rlhf_sides import KL_COEF, LEARNING_RATE, MAX_STEPS
from rlhf_work import RLHFJob, share_of_vowels
from trl_settings import be_quiet, same_work
from workers import Turns


class _NoMoreStepsError(Exception):
    """No more steps are wanted."""


class _StepATurn(TrainerCallback):
    """Holds the training loop between its steps; `answers` are the tokens of the answers of the last one."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self.answers: list[list[int]] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._wait()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._turns.done(0.0, self.answers)
        self._wait()

    def _wait(self) -> None:
        if self._turns.wait() is None:
            raise _NoMoreStepsError  # PPOTrainer does not ask whether to stop


def _tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")


def _grpo(options: dict[str, Any], job: RLHFJob, turns: Turns) -> None:
    import trl

    be_quiet()
    turn = _StepATurn(turns)

    def reward(completions: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
        turn.answers = completion_ids
        return share_of_vowels(completions)

    with tempfile.TemporaryDirectory() as scratch:
        turns.before_model()
        model = transformers.AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32)
        trainer = trl.GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=trl.GRPOConfig(
                max_steps=MAX_STEPS,
                per_device_train_batch_size=len(job.prompts) * job.group_size,
                num_generations=job.group_size,
                max_completion_length=job.max_new_tokens,
                shuffle_dataset=False,
                temperature=1.0,
                **same_work(scratch, learning_rate=LEARNING_RATE),
                **options,
            ),
            train_dataset=datasets.Dataset.from_list([{"prompt": prompt} for prompt in job.prompts] * MAX_STEPS),
            processing_class=_tokenizer(job.folder),
            callbacks=[turn],
        )
        _train(trainer)


def ppo(job: RLHFJob, turns: Turns) -> None:
    """Steps of the `PPOTrainer` that TRL had until 1.12."""
    if job.ppo_trl is not None:
        sys.path.insert(0, str(job.ppo_trl))
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    be_quiet()
    turn, tokenizer = _StepATurn(turns), _tokenizer(job.folder)
    truncate = ppo_trainer.truncate_response

    def recording(stop_id: int, pad_id: int, responses: torch.Tensor) -> torch.Tensor:
        kept = truncate(stop_id, pad_id, responses)
        turn.answers = [row[row != pad_id].tolist() for row in kept]
        return kept

    ppo_trainer.truncate_response = recording  # the one place where it has the lengths of answers
    prompts = [{"input_ids": tokenizer(prompt)["input_ids"]} for prompt in job.prompts]
    with tempfile.TemporaryDirectory() as scratch:
        turns.before_model()
        reward_model, value_model = (
            transformers.AutoModelForSequenceClassification.from_pretrained(job.reward_folder, dtype=torch.float32)
            for _ in range(2)
        )
        trainer = PPOTrainer(
            args=PPOConfig(
                total_episodes=MAX_STEPS * len(prompts),
                per_device_train_batch_size=len(prompts),
                num_ppo_epochs=job.ppo_epochs,
                num_mini_batches=1,
                num_sample_generations=0,
                response_length=job.max_new_tokens,
                stop_token_id=job.stop_id,
                kl_coef=KL_COEF,
                temperature=1.0,
                **same_work(scratch, learning_rate=LEARNING_RATE),
            ),
            processing_class=tokenizer,
            model=transformers.AutoModelForCausalLM.from_pretrained(job.folder, dtype=torch.float32),
            ref_model=None,
            reward_model=reward_model,
            value_model=value_model,
            train_dataset=datasets.Dataset.from_list(prompts),
            eval_dataset=datasets.Dataset.from_list(prompts),
            callbacks=[turn],
        )
        _train(trainer)


def _train(trainer: Any) -> None:
    try:
        trainer.train()
    except _NoMoreStepsError:
        return


grpo = partial(_grpo, {})
grpo_no_checkpointing = partial(_grpo, {"gradient_checkpointing": False})
