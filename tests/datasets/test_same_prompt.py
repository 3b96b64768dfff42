"""A prompt has the same tokens in every dataset: what is generated from is what is trained and scored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reallm.data.datasets import Dataset, make_dataset
from tests.helpers.tokenizers import tiny_tokenizer

PROMPTS = [
    "The quick",
    "The quick ",
    "Q: 1+1?\nA:",
    "end with a line\n\n",
    "naïve 日本 🙂",
    [{"role": "user", "content": "hi "}],
    [{"role": "system", "content": "s"}, {"role": "user", "content": "a\n"}],
]
ANSWERS = (" brown fox", "\n\nbrown", "")


@pytest.mark.parametrize("options", [{}, {"bos": True}, {"kind": "words"}], ids=["bytes", "bos", "words"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_prompts_are_prefixes(jsonl: Callable[..., Path], prompt: Any, options: dict[str, Any]) -> None:
    tokenizer = tiny_tokenizer(**options)
    pairs = jsonl(
        *({"id": i, "prompt": prompt, "chosen": one, "rejected": f"{one} no"} for i, one in enumerate(ANSWERS)),
        name="pairs.jsonl",
    )
    completions = jsonl(
        *({"id": i, "prompt": prompt, "completion": one, "label": True} for i, one in enumerate(ANSWERS)),
        name="completions.jsonl",
    )

    def made(name: str, path: Path) -> list[Any]:
        dataset = make_dataset(Dataset(name, {"path": path}), seed=1, tokenizer=tokenizer)
        return [dataset[i] for i in range(len(dataset))]

    alone = made("prompt", jsonl({"prompt": prompt}))[0].prompt_ids.tolist()
    samples = [*made("rw_pair", pairs), *made("unpaired_preference", completions)]
    assert len(samples) == 2 * len(ANSWERS)
    for sample in samples:
        split = sample.input_ids.split(list(sample.metadata["seqlens"]["input_ids"][0]))
        for ids, prompt_len in zip(split, sample.prompt_lens.tolist(), strict=True):
            assert ids[:prompt_len].tolist() == alone
            assert ids[-1].item() == tokenizer.eos_token_id
            assert len(ids) > prompt_len
    trained = made("prompt_answer", jsonl(*({"prompt": prompt, "answer": one} for one in ANSWERS)))
    for sample in trained:
        assert sample.input_ids[: int(sample.loss_mask.int().argmax())].tolist() == alone
