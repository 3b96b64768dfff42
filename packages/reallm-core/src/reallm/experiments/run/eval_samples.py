"""What the model says to a few validation prompts at each evaluation, for people to read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reallm.algorithms.interface import Example
from reallm.atomic_files import atomic_write
from reallm.data.datasets import Samples
from reallm.engine.real_model import ReaLModel
from reallm.loggers.jsonl import lines_up_to

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EvalSamples:
    """Prompts that a model continues, greedily, into a file with one JSON object a line."""

    model: ReaLModel
    tokenizer: PreTrainedTokenizerBase
    examples: Sequence[tuple[str, Example]]
    """With the name of the sample each is from."""
    file: Path | None
    """None: it is written by another rank, while this one generates with it."""
    max_new_tokens: int

    def write(self, step: int) -> None:
        """Append what the model says after `step`."""
        completions = self.model.generate(
            [example.prompt_ids for _, example in self.examples],
            tokenizer=self.tokenizer,
            max_new_tokens=self.max_new_tokens,
            temperature=0.0,
        )
        if self.file is None:
            return
        lines = [
            json.dumps(
                {
                    "step": step,
                    "id": name,
                    "prompt": self._text(example.prompt_ids),
                    "expected": None if example.expected_ids is None else self._text(example.expected_ids, clean=True),
                    "completion": completion.text,
                },
                ensure_ascii=False,
            )
            for (name, example), completion in zip(self.examples, completions, strict=True)
        ]
        with self.file.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))

    def _text(self, ids: Sequence[int], *, clean: bool = False) -> str:
        text = self.tokenizer.decode(list(ids), skip_special_tokens=clean)
        assert isinstance(text, str)
        return text


def choose(samples: Samples, interface: Any, n: int) -> list[tuple[str, Example]]:
    """Up to `n` examples, evenly spread over the samples; none where the interface cannot make prompts of them."""
    make = getattr(interface, "example", None)
    if make is None or not n:
        return []
    rows = sorted({round(i * (len(samples) - 1) / max(1, n - 1)) for i in range(n)})
    found = []
    for row in rows:
        sample = samples[row]
        example = make(sample)
        if example is not None:
            ids = sample.metadata.get("ids")
            found.append((ids[0] if ids else f"sample {row}", example))
    return found


def fitting(
    examples: Sequence[tuple[str, Example]], max_new_tokens: int, longest_sequence: int | None
) -> tuple[list[tuple[str, Example]], int]:
    """The examples that a model with so many positions can continue, and by how many tokens each of them."""
    if longest_sequence is None:
        return list(examples), max_new_tokens
    # the last new token is never read, and so needs no position
    rooms = [longest_sequence + 1 - len(example.prompt_ids) for _, example in examples]
    wanted = min(max_new_tokens, max(rooms, default=0) // 2)  # a prompt that leaves less room is not worth it
    kept = [(pair, room) for pair, room in zip(examples, rooms, strict=True) if room >= max(1, wanted)]
    return [pair for pair, _ in kept], min([max_new_tokens, *(room for _, room in kept)])


def forget_after(file: Path, step: int) -> None:
    """Drop what was written after `step`, by a process that was killed before it saved."""
    if file.is_file():
        kept = lines_up_to(step, file.read_bytes())
        with atomic_write(file) as temporary:
            temporary.write_bytes(kept)
