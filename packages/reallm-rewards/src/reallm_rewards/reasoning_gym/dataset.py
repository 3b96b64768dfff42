"""The dataset `reasoning_gym`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from reallm.data.datasets import DatasetUtility
from reallm.data.namedarray import NamedArray
from reallm.errors import NoSamplesError, counted
from reallm_rewards.reasoning_gym.tasks import make_task


class ReasoningGymDataset(torch.utils.data.Dataset[NamedArray]):
    """Samples of `prompt_ids` int64 [L], with metadata `columns`: `answer`, `reasoning_gym`, and `messages` in chats.

    The column `reasoning_gym` is what the reward of this name needs: `task`, and as JSON text `parameters` and `entry`,
    which is what the library made. A tokenizer with a chat template gets a question as the message of a user.

    Args:
        util: seed, ranks and tokenizer.
        task: name of the task.
        parameters: parameters of the task.
        size: number of questions.
        seed: seed of the first question; the others have the following numbers.
        instruction: text that follows each question; None: nothing.
        max_prompt_len: longest prompt in tokens; longer ones are dropped.

    Raises:
        ConfigError: reasoning-gym is not installed, has no such task, or refuses a parameter.
        DataError: no sample is left.
    """

    def __init__(
        self,
        util: DatasetUtility,
        *,
        task: str,
        parameters: Mapping[str, Any],
        size: int,
        seed: int,
        instruction: str | None = None,
        max_prompt_len: int = 1024,
    ) -> None:
        self._about = {"task": task, "parameters": json.dumps(dict(parameters), sort_keys=True)}
        self._tokenizer, self._instruction = util.tokenizer, instruction
        entries = make_task(task, parameters, size=size, seed=seed)
        made = [(f"{task}-{seed + i}", *self._prompt(entries[i])) for i in util.shard(range(size))]
        self._samples = [sample for sample in made if len(sample[1]) <= max_prompt_len]
        self._n_dropped = len(made) - len(self._samples)
        self._max_prompt_len = max_prompt_len
        if not self._samples:
            raise NoSamplesError(
                f"reasoning_gym {task}: all prompts are longer than {max_prompt_len} tokens; raise max_prompt_len"
            )

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, i: int) -> NamedArray:
        name, ids, columns = self._samples[i]
        return NamedArray(prompt_ids=torch.tensor(ids, dtype=torch.int64)).with_metadata(
            seqlens={"prompt_ids": ((len(ids),),)}, ids=(name,), columns=(columns,)
        )

    def report(self) -> str:
        """One line: prompts, tokens, and how many were dropped."""
        n_tokens = sum(len(ids) for _, ids, _ in self._samples)
        dropped = f"; {self._n_dropped:,} dropped: longer than {self._max_prompt_len} tokens" if self._n_dropped else ""
        return f"{counted(len(self), 'prompt')}, {counted(n_tokens, 'token')}{dropped}"

    def _prompt(self, entry: Mapping[str, Any]) -> tuple[list[int], dict[str, Any]]:
        """Tokens and columns of an entry of the task."""
        text = entry["question"] if self._instruction is None else f"{entry['question']}\n\n{self._instruction}"
        columns: dict[str, Any] = {"reasoning_gym": {**self._about, "entry": json.dumps(entry)}}
        if entry["answer"] is not None:
            columns["answer"] = entry["answer"]
        if not self._tokenizer.chat_template:
            return self._tokenizer(f"{text}\n", add_special_tokens=True)["input_ids"], columns
        columns["messages"] = [{"role": "user", "content": text}]
        rendered = self._tokenizer.apply_chat_template(columns["messages"], add_generation_prompt=True, tokenize=False)
        return self._tokenizer(rendered, add_special_tokens=False)["input_ids"], columns
