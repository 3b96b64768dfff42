"""Training on conversations: the chat template that is used and saved, and the turns that are shown at evaluations."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from reallm.algorithms.sft.config import SFTConfig
from reallm.config.args import ModelArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError
from tests.experiments.conftest import HF_CONFIG, Trainer
from tests.helpers.tokenizers import CHATML, tiny_tokenizer

TEMPLATE = CHATML.replace("<|im_end|>\n", "<|im_end|>\n\n")


@pytest.fixture
def base(trainer: Trainer) -> Trainer:
    """The trainer, with a checkpoint whose tokenizer has no chat template and ends sequences with another token."""
    tokenizer = tiny_tokenizer(chat_template=None)
    tokenizer.eos_token = "<unk>"
    trainer.checkpoint = trainer.folder / "base"
    ReaLModel.from_llama({**HF_CONFIG, "eos_token_id": 0}, seed=5).save_pretrained(
        trainer.checkpoint, tokenizer=tokenizer
    )
    return trainer


def config_of(trainer: Trainer, chat_template: str, **changes: Any) -> SFTConfig:
    config = trainer.config(
        model=ModelArgs(path=str(trainer.checkpoint), device="cpu"),
        optimizer=OptimizerConfig(lr=1e-3, schedule="constant", warmup_steps=0),
        epochs=2,
        **changes,
    )
    for path in map(Path, filter(None, (config.dataset.train_path, config.dataset.valid_path))):
        path.write_text("".join(json.dumps({"messages": talk(number)}) + "\n" for number in range(24)))
    return dataclasses.replace(config, dataset=dataclasses.replace(config.dataset, chat_template=chat_template))


def talk(number: int) -> list[dict[str, str]]:
    contents = (f"What is {number}?", str(number), "And then?", f"{number + 1} it is")
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def test_a_chat_template_is_used_and_saved_with_the_token_that_ends_its_turns(base: Trainer) -> None:
    result = base.run(config_of(base, TEMPLATE))
    assert result.checkpoint is not None
    assert (result.checkpoint / "chat_template.jinja").read_text() == TEMPLATE
    tokenizer = AutoTokenizer.from_pretrained(result.checkpoint)
    assert tokenizer.eos_token == "<|im_end|>"
    ends = GenerationConfig.from_pretrained(result.checkpoint).eos_token_id
    assert ends == [0, tokenizer.eos_token_id]
    assert not (base.checkpoint / "chat_template.jinja").exists()


def test_a_resumed_run_keeps_the_template_when_its_file_has_changed(base: Trainer) -> None:
    file = base.folder / "my.jinja"
    file.write_text(TEMPLATE)
    whole = base.run(config_of(base, str(file), name="whole"))
    config = config_of(base, str(file), name="half")
    half = base.run(dataclasses.replace(config, max_steps=3))
    file.write_text(CHATML)
    again = {"output_dir": str(half.run_dir.parent), "resume": str(half.run_dir), "name": "half"}
    resumed = base.run(dataclasses.replace(config, **again))
    assert whole.checkpoint is not None
    assert resumed.checkpoint is not None
    assert (resumed.checkpoint / "chat_template.jinja").read_text() == TEMPLATE
    mine, theirs = (ReaLModel.from_pretrained(each.checkpoint).state_dict() for each in (resumed, whole))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    with pytest.raises(ConfigError, match=r"dataset.chat_template=chatml cannot change in a resumed run"):
        base.run(dataclasses.replace(config_of(base, "chatml", name="half"), **again))


def test_samples_continue_a_conversation_up_to_its_last_turn(base: Trainer) -> None:
    result = base.run(config_of(base, "chatml", n_valid=4, eval_every=3))
    shown = [json.loads(line) for line in (result.run_dir / "samples.jsonl").read_text().splitlines()]
    assert shown
    for sample in shown:
        number = int(sample["turns"][1]["text"])
        said = talk(number)
        assert sample["turns"] == [{"role": one["role"], "text": one["content"]} for one in said[:-1]]
        assert sample["expected"] == said[-1]["content"]
        assert sample["prompt"].endswith("And then?<|im_end|>\n<|im_start|>assistant\n")
