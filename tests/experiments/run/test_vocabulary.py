"""Tokens that are added before a run: the tokenizer that is saved, the rows of the model, and how the run resumes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from reallm.algorithms.sft.config import SFTConfig
from reallm.config.args import ModelArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError, DataError
from tests.experiments.conftest import HF_CONFIG, Trainer
from tests.helpers.tokenizers import tiny_tokenizer


@pytest.fixture
def tight(trainer: Trainer) -> Trainer:
    """The trainer, with a checkpoint that has a row for each token and no more, and rows that use a new token."""
    tokenizer = tiny_tokenizer()
    trainer.checkpoint = trainer.folder / "tight"
    model = ReaLModel.from_llama({**HF_CONFIG, "vocab_size": len(tokenizer)}, seed=5)
    model.save_pretrained(trainer.checkpoint, tokenizer=tokenizer)
    return trainer


def config_of(trainer: Trainer, **args: Any) -> SFTConfig:
    config = trainer.config(model=ModelArgs(path=str(trainer.checkpoint), device="cpu", **args))
    path = Path(config.dataset.train_path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "answer": f"<think>{row['answer']}</think>"}) + "\n" for row in rows))
    return config


def test_added_tokens_are_trained_and_saved_with_the_model(tight: Trainer) -> None:
    before = len(AutoTokenizer.from_pretrained(tight.checkpoint))
    result = tight.run(config_of(tight, add_tokens=["<think>", "</think>"]))
    assert result.checkpoint is not None
    tokenizer = AutoTokenizer.from_pretrained(result.checkpoint)
    ids = tokenizer("<think>a</think>", add_special_tokens=False).input_ids
    assert [ids[0], ids[-1]] == [before, before + 1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>a</think>"
    assert tokenizer.chat_template == tiny_tokenizer().chat_template
    model = AutoModelForCausalLM.from_pretrained(result.checkpoint)
    assert model.get_input_embeddings().weight.shape == (before + 2, 64)
    assert ReaLModel.from_pretrained(result.checkpoint).config.vocab_size == before + 2


def test_a_resumed_run_has_the_same_numbers(tight: Trainer) -> None:
    config = config_of(tight, add_tokens=["<think>", "</think>"])
    config = dataclasses.replace(config, optimizer=OptimizerConfig(lr=1e-3, schedule="constant", warmup_steps=0))
    whole = tight.run(dataclasses.replace(config, name="whole", epochs=2))
    half = tight.run(dataclasses.replace(config, name="half", epochs=2, max_steps=3))
    assert half.checkpoint is not None
    assert whole.checkpoint is not None
    shutil.rmtree(tight.checkpoint)
    again = dataclasses.replace(config, epochs=2, output_dir=str(half.run_dir.parent), resume=str(half.run_dir))
    resumed = tight.run(dataclasses.replace(again, name="half"))
    assert resumed.checkpoint is not None
    mine, theirs = (ReaLModel.from_pretrained(each.checkpoint).state_dict() for each in (resumed, whole))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_the_tokens_of_a_run_cannot_change_when_it_resumes(tight: Trainer) -> None:
    run = tight.run(config_of(tight, add_tokens=["<think>", "</think>"]))
    other = config_of(tight, add_tokens=["<think>"])
    with pytest.raises(ConfigError, match=r"model.add_tokens=.* cannot change in a resumed run"):
        tight.run(dataclasses.replace(other, resume=str(run.run_dir), name=run.run_dir.name))


def test_a_tokenizer_with_more_tokens_than_rows_is_an_error_that_names_the_key(tight: Trainer) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tight.checkpoint)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save_pretrained(tight.checkpoint)
    with pytest.raises(DataError, match=r"token \d+, .*model.resize_vocab=true"):
        tight.run(config_of(tight))
    result = tight.run(config_of(tight, resize_vocab=True))
    assert result.checkpoint is not None
    assert AutoModelForCausalLM.from_pretrained(result.checkpoint).config.vocab_size == len(tokenizer)


def test_an_empty_token_is_refused(tight: Trainer) -> None:
    with pytest.raises(ConfigError, match="model.add_tokens has an empty string"):
        tight.run(config_of(tight, add_tokens=["a", ""]))


def test_a_token_given_twice_is_refused(tight: Trainer) -> None:
    with pytest.raises(ConfigError, match="model.add_tokens has 'a' 2 times; give it once"):
        tight.run(config_of(tight, add_tokens=["a", "b", "a"]))


def test_a_token_that_exists_already_is_said(tight: Trainer, caplog: pytest.LogCaptureFixture) -> None:
    tight.run(config_of(tight, add_tokens=["<think>", "<|im_end|>"]))
    assert "note: model.add_tokens: the tokenizer has '<|im_end|>' already" in caplog.messages
