"""Completions of a few validation prompts at each evaluation, for people to read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reallm.algorithms.interface import Example
from reallm.algorithms.role import Role
from reallm.appended_files import append
from reallm.config.training import TrainingConfig
from reallm.data.chat.transcript import read_transcript
from reallm.data.datasets import Samples
from reallm.engine.real_model import ReaLModel
from reallm.experiments.run.setup import Data
from reallm.parallel.object_collectives import is_leader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EvalSamples:
    """Prompts that a model continues greedily; completions are appended to a JSONL file."""

    model: ReaLModel
    tokenizer: PreTrainedTokenizerBase
    examples: Sequence[tuple[str, Example]]
    """Examples, each with the name of its sample."""
    file: Path | None
    """The JSONL file; None on the ranks that generate together with the first one, which writes it."""
    max_new_tokens: int

    def write(self, step: int) -> None:
        """Generate, and append the completions of `step` to the file."""
        completions = self.model.generate(
            [example.prompt_ids for _, example in self.examples],
            tokenizer=self.tokenizer,
            max_new_tokens=self.max_new_tokens,
            temperature=0.0,
        )
        if self.file is None:
            return
        lines = [
            json.dumps(self._record(step, name, example, completion.token_ids), ensure_ascii=False)
            for (name, example), completion in zip(self.examples, completions, strict=True)
        ]
        append(self.file, "".join(f"{line}\n" for line in lines).encode())

    def _record(self, step: int, name: str, example: Example, completion: Sequence[int]) -> dict[str, Any]:
        turns = read_transcript(example.prompt_ids, self.tokenizer)
        return {
            "step": step,
            "id": name,
            "prompt": self._text(example.prompt_ids),
            **({"turns": [{"role": role, "text": text} for role, text in turns]} if turns else {}),
            "expected": None if example.expected_ids is None else self._answer(example.expected_ids),
            "completion": self._answer(completion),
        }

    def _answer(self, ids: Sequence[int]) -> str:
        """The text of an answer without the special tokens at its end; others are in it, since they may mark calls."""
        special = {*self.tokenizer.all_special_ids}
        n = next((n for n in range(len(ids), 0, -1) if ids[n - 1] not in special), 0)
        return self._text(ids[:n])

    def _text(self, ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(list(ids))
        assert isinstance(text, str)
        return text


def make_eval_samples(config: TrainingConfig, data: Data, role: Role, interface: Any, file: Path) -> EvalSamples | None:
    """The prompts of the validation data that the model of a role continues at evaluations.

    None if there are none, and on ranks outside of the model's layout.

    Args:
        config: configuration with the number of prompts and the length of completions.
        data: data of the run.
        role: the first trained role.
        interface: its interface, which makes the prompts.
        file: the JSONL file.
    """
    if data.valid is None or role.model.config.is_critic or not role.is_here:
        return None
    chosen = choose(data.valid, interface, config.eval_generations)
    chosen, n_new = fitting(chosen, config.eval_max_new_tokens, role.model.config.longest_sequence)
    writes = is_leader(role.model.mesh)
    return EvalSamples(role.model, data.tokenizer, chosen, file if writes else None, n_new) if chosen else None


def choose(samples: Samples, interface: Any, n: int) -> list[tuple[str, Example]]:
    """Up to `n` examples, evenly spaced over the samples, with their names; none if the interface makes no prompts."""
    make_example = getattr(interface, "example", None)
    if make_example is None or not n:
        return []
    rows = sorted({round(i * (len(samples) - 1) / max(1, n - 1)) for i in range(n)})
    found = []
    for row in rows:
        sample = samples[row]
        example = make_example(sample)
        if example is not None:
            ids = sample.metadata.get("ids")
            found.append((ids[0] if ids else f"sample {row}", example))
    return found


def fitting(
    examples: Sequence[tuple[str, Example]], max_new_tokens: int, longest_sequence: int | None
) -> tuple[list[tuple[str, Example]], int]:
    """The examples that a model with this many positions can continue, and the number of new tokens for each."""
    if longest_sequence is None:
        return list(examples), max_new_tokens
    # the last new token is never an input, and so needs no position
    rooms = [longest_sequence + 1 - len(example.prompt_ids) for _, example in examples]
    wanted = min(max_new_tokens, max(rooms, default=0) // 2)  # prompts that leave less room are dropped
    kept = [(named, room) for named, room in zip(examples, rooms, strict=True) if room >= max(1, wanted)]
    return [named for named, _ in kept], min([max_new_tokens, *(room for _, room in kept)])
