"""The question that a run proposes for its model: one of its data, and `--chat` if these are conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reallm.algorithms.sft.interface import SFTInterface
from reallm.data.datasets import Dataset, make_dataset
from reallm.experiments.run.question import question
from tests.experiments.conftest import Trainer
from tests.helpers.tokenizers import tiny_tokenizer


def asked(folder: Path, *rows: dict[str, Any], interface: Any = SFTInterface, **tokenizer_options: Any) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tiny_tokenizer(**tokenizer_options)
    samples = make_dataset(Dataset("prompt_answer", {"path": str(path)}), seed=1, tokenizer=tokenizer)
    return question(samples, interface(), tokenizer)


def chat(*contents: str, system: str | None = None) -> dict[str, Any]:
    messages = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return {"messages": ([{"role": "system", "content": system}] if system else []) + messages}


@pytest.mark.parametrize("bos", [False, True])
def test_a_prompt_is_quoted_for_a_shell(tmp_path, bos):
    assert asked(tmp_path, {"prompt": "What's $1?", "answer": " x"}, bos=bos) == """'What'"'"'s $1?'"""


@pytest.mark.parametrize("bos", [False, True])
def test_a_conversation_is_asked_as_one(tmp_path, bos):
    assert asked(tmp_path, chat("Who are you?", "A fox."), bos=bos) == "--chat 'Who are you?'"
    assert asked(tmp_path, chat("Who are you?", "A fox.", "Why?", "So."), bos=bos) == "--chat 'Who are you?'"


def test_what_does_not_fit_on_a_line_is_replaced(tmp_path):
    for prompt in ("x" * 81, "two\nlines", " "):
        assert asked(tmp_path, {"prompt": prompt, "answer": " x"}) == '"Once upon a time"'
        assert asked(tmp_path, chat(prompt, "A fox.")) == '--chat "What can you do?"'
    assert asked(tmp_path, chat("hi", "A fox.", system="Be brief.")) == '--chat "What can you do?"'
    assert asked(tmp_path, {"prompt": "x" * 81, "answer": " x"}, {"prompt": "Say:", "answer": " x"}) == "Say:"


def test_without_a_template_or_examples_there_is_a_question_too(tmp_path):
    assert asked(tmp_path, {"prompt": "Say:", "answer": " x"}, chat_template=None) == "Say:"
    assert asked(tmp_path, {"prompt": "Say:", "answer": " x"}, interface=object) == '"Once upon a time"'


def test_a_run_ends_with_it(trainer: Trainer) -> None:
    result = trainer.run(trainer.config(max_steps=1, output_dir=str(trainer.folder / "my runs"), name="a"))
    last = trainer.output.splitlines()[-1]
    assert last.startswith(f"or: reallm generate --model '{result.checkpoint}' 'Say ")
    assert f"&#39;{result.checkpoint}&#39; &#39;Say " in (result.run_dir / "summary.html").read_text()
