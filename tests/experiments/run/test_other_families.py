"""Runs of models that differ from Llama in more than names: learned positions, and experts."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from reallm.algorithms.interface import Example
from reallm.config.args import ModelArgs
from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError, DataError
from reallm.experiments.run.eval_samples import fitting
from tests.experiments.conftest import HF_CONFIG, Trainer, records
from tests.helpers.tokenizers import tiny_tokenizer

GPT2 = {"model_type": "gpt2", "vocab_size": 512, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64,
        "bos_token_id": 1, "eos_token_id": 3}  # fmt: skip
MIXTRAL = HF_CONFIG | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2,
                       "router_aux_loss_coef": 0.02, "output_router_logits": True}  # fmt: skip


def model_of(trainer: Trainer, family: str, hf_config: dict[str, object], **args: object) -> ModelArgs:
    folder = trainer.folder / family
    model = getattr(ReaLModel, f"from_{family}")(hf_config, seed=5)
    model.save_pretrained(folder, tokenizer=tiny_tokenizer())
    return ModelArgs(path=str(folder), device="cpu", **args)


class TestLearnedPositions:
    def test_training_evaluating_and_sampling(self, trainer: Trainer) -> None:
        model = model_of(trainer, "gpt2", GPT2)
        result = trainer.run(trainer.config(n_valid=4, model=model, epochs=2, eval_max_new_tokens=500))
        losses = [line["train/loss"] for line in records(result) if "train/loss" in line]
        assert losses[-1] < losses[0]
        said = [json.loads(line) for line in (result.run_dir / "samples.jsonl").read_text().splitlines()]
        assert said
        assert all(line["completion"] is not None for line in said)

    def test_a_sample_that_is_too_long_is_named_before_anything_is_loaded(self, trainer: Trainer) -> None:
        model = model_of(trainer, "gpt2", GPT2 | {"n_positions": 16})
        said = r"^sample '.*jsonl:\d+' has \d+ tokens, but .*gpt2 has learned 16 positions; .*max_seqlen=16"
        with pytest.raises(DataError, match=said):
            trainer.run(trainer.config(model=model))
        assert not list(trainer.folder.glob("runs/sft*"))

    def test_without_them_a_longer_sample_is_warned_of(self, trainer: Trainer) -> None:
        model = model_of(trainer, "llama", HF_CONFIG | {"max_position_embeddings": 16})
        trainer.run(trainer.config(model=model, max_steps=1))
        said = (
            r"warning: \d+ of 10 samples have more than the 16 tokens that .*llama was made for .*, up to \d\d; .*=16"
        )
        assert len(re.findall(said, trainer.output)) == 1
        longer = HF_CONFIG | {"max_position_embeddings": 64}
        trainer.run(trainer.config(model=model_of(trainer, "llama", longer), max_steps=1))
        assert "warning" not in trainer.output

    @pytest.mark.parametrize(
        ("lengths", "longest", "kept", "n_new"),
        [
            ((10, 20), None, 2, 30),
            ((10, 20), 100, 2, 30),
            ((10, 80), 100, 1, 30),  # 21 tokens would be left, and 30 are wanted
            ((30, 36), 50, 2, 15),
            ((101, 200), 100, 0, 30),
        ],
    )
    def test_prompts_that_leave_room_are_continued(self, lengths, longest, kept, n_new) -> None:
        examples = [(str(n), Example([0] * n)) for n in lengths]
        found, n_tokens = fitting(examples, 30, longest)
        assert (len(found), n_tokens) == (kept, n_new)


class TestExperts:
    def test_the_load_balancing_loss_is_told_and_can_be_set(self, trainer: Trainer) -> None:
        model = model_of(trainer, "mixtral", MIXTRAL)
        result = trainer.run(trainer.config(model=model, name="experts"))
        assert all(line["train/aux_loss"] >= 1.9 for line in records(result))  # top_k = 2 when all are used alike
        off = dataclasses.replace(model, moe_aux_loss_coef=0.0)
        assert "train/aux_loss" not in records(trainer.run(trainer.config(model=off, name="off")))[0]

    def test_it_has_no_meaning_for_a_model_without_experts(self, trainer: Trainer) -> None:
        model = ModelArgs(path=str(trainer.checkpoint), device="cpu", moe_aux_loss_coef=0.1)
        with pytest.raises(ConfigError, match="moe_aux_loss_coef"):
            trainer.run(trainer.config(model=model))
