"""Runs of `reallm ppo` on tiny models: what they train on, what they report, and how they resume."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from reallm.algorithms.ppo.config import PPOArgs, PPOConfig, ValueModelArgs
from reallm.config.args import ModelArgs, ReferenceArgs, RewardArgs, SamplingArgs
from reallm.config.lora import LoRAArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.engine.real_model import ReaLModel
from reallm.plugins import registry
from tests.experiments.checkpointing.test_resume import assert_same_run, stop_after
from tests.experiments.conftest import HF_CONFIG, records
from tests.experiments.run.test_preferences import quiet_run, rw
from tests.helpers.prompt_runs import PromptRuns
from tests.helpers.reward_functions import VOWELS_OF_ANSWERS
from tests.helpers.tokenizers import tiny_tokenizer


class Runs(PromptRuns):
    """Small runs of `reallm ppo`."""

    def config(self, n_valid: int = 0, batch_size: int = 4, n_rows: int = 8, **changes: Any) -> PPOConfig:
        """Four prompts a step."""
        ppo = {"gen": SamplingArgs(max_new_tokens=6), "ppo_n_minibatches": 2, **changes.pop("ppo", {})}
        settings = {
            **self.settings(n_valid=n_valid, batch_size=batch_size, n_rows=n_rows),
            "critic": ValueModelArgs(device="cpu"),
            "reward": RewardArgs(functions=[VOWELS_OF_ANSWERS], device="cpu"),
            "ppo": PPOArgs(**ppo),
        }
        return PPOConfig(**{**settings, **changes})

    def reward_model(self) -> RewardArgs:
        folder = self.folder / "reward"
        ReaLModel.from_llama({**HF_CONFIG, "num_hidden_layers": 1}, seed=7, is_critic=True).save_pretrained(
            folder, tokenizer=tiny_tokenizer()
        )
        return RewardArgs(path=str(folder), device="cpu")


def actor_with_dropout(folder: Path) -> ModelArgs:
    config = {**HF_CONFIG, "attention_dropout": 0.2}
    ReaLModel.from_llama(config, seed=5).save_pretrained(folder / "dropout", tokenizer=tiny_tokenizer())
    return ModelArgs(path=str(folder / "dropout"), device="cpu")


@pytest.fixture
def ppo(tmp_path: Path, checkpoint: Path) -> Runs:
    return Runs(tmp_path, checkpoint, registry.get("algorithm", "ppo"))


def test_the_reward_rises(ppo: Runs) -> None:
    result = ppo.run(ppo.config(batch_size=8, epochs=25, optimizer=OptimizerConfig(lr=2e-2), ppo={"kl_ctl": 0.01}))
    rewards = [step["actor_train/reward"] for step in records(result) if "actor_train/reward" in step]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2


def test_a_stopped_run_goes_on_bit_for_bit(ppo: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an adaptive weight of the divergence and moments of returns, which are part of the state."""
    settings: dict[str, Any] = {
        "n_valid": 2,
        "eval_every": 2,
        "epochs": 2,
        "reward": ppo.reward_model(),
        "ppo": {"use_adaptive_kl_ctl": True, "adaptive_kl_horizon": 20.0},
    }
    whole = ppo.run(ppo.config(name="whole", **settings))
    with monkeypatch.context() as patch:
        stop_after(patch, 2, metric="actor_train/loss")
        stopped = ppo.run(ppo.config(name="stopped", **settings))
    assert stopped.interrupted
    ppo.run(dataclasses.replace(ppo.config(name="stopped", **settings), resume="stopped"))
    assert_same_run(whole.run_dir, stopped.run_dir)


def test_a_reward_model_that_rw_has_trained_rewards_and_is_where_the_critic_starts(ppo: Runs, tmp_path: Path) -> None:
    rewards = quiet_run(rw(tmp_path, ppo.checkpoint, name="rewards", max_steps=1)).run_dir
    config = ppo.config(reward=RewardArgs(path=str(rewards), device="cpu"), max_steps=1)
    assert config.critic.path == str(rewards)
    result = ppo.run(config)
    (first,) = records(result)
    assert first["actor_train/rewards/reward_model/mean"] == first["actor_train/reward"]
    assert f'AutoModelForCausalLM.from_pretrained("{result.checkpoint}/actor")' in ppo.printed.replace("\n", "")
    assert f"reallm generate --model {result.checkpoint}/actor" in ppo.printed.replace("\n", "")


def test_the_first_ratio_is_1_at_another_temperature_and_with_dropout_in_the_checkpoint(ppo: Runs) -> None:
    args = {"gen": SamplingArgs(max_new_tokens=6, temperature=0.7), "ppo_n_minibatches": 1}
    (first,) = records(ppo.run(ppo.config(actor=actor_with_dropout(ppo.folder), max_steps=1, ppo=args)))
    assert first["actor_train/sampling/sampling_logp_difference/max"] < 1e-5
    assert first["actor_train/kl"] == pytest.approx(0.0, abs=1e-5)


def test_policy_and_critic_train_adapters_of_their_own_beside_their_frozen_bases(ppo: Runs) -> None:
    """The reference is the policy's base, the reward model that of the critic; neither changes, and answers fit."""
    settings: dict[str, Any] = {
        "actor": ModelArgs(path=str(ppo.checkpoint), device="cpu", lora=LoRAArgs(rank=2)),
        "ref": ReferenceArgs(device="cpu"),
        "critic": ValueModelArgs(device="cpu", lora=LoRAArgs(rank=3)),
        "reward": ppo.reward_model(),
        "optimizer": OptimizerConfig(lr=1e-2),
    }
    result = ppo.run(ppo.config(**settings, epochs=2, ppo={"ppo_n_minibatches": 1}))
    assert "ref: the model of actor without its adapters" in ppo.printed
    first, *_, last = (step for step in records(result) if "actor_train/kl" in step)
    assert first["actor_train/kl"] == pytest.approx(0.0, abs=1e-5)  # B is zero in the first step
    assert last["actor_train/sampling/sampling_logp_difference/max"] < 1e-4  # generated with the adapter in place
    assert last["actor_train/objective/kl"] != pytest.approx(0.0, abs=1e-4)
    for role, rank in (("actor", 2), ("critic", 3)):
        folder = result.checkpoint / role
        assert json.loads((folder / "adapter_config.json").read_text())["r"] == rank
        assert not (folder / "model.safetensors").exists()
    critic = ReaLModel.from_pretrained(result.checkpoint / "critic", is_critic=True)
    assert critic.config.lora is not None


def test_the_schedule_counts_all_optimizer_steps(ppo: Runs) -> None:
    optimizer = OptimizerConfig(lr=1e-3, schedule="linear", min_lr_ratio=0.0, warmup_steps=0)
    result = ppo.run(ppo.config(ppo={"ppo_n_epochs": 3}, optimizer=optimizer))
    last = records(result)[-1]
    for role in ("actor", "critic"):
        assert last[f"{role}_train/lr"] == pytest.approx(1e-3 / 12)  # that of the last of 12 optimizer steps


def test_rollouts_and_metrics_are_those_of_practitioners(ppo: Runs) -> None:
    settings = {"old_logprobs": "inference", "truncated_reward": "bootstrap", "kl_penalty": "loss"}
    reward = dataclasses.replace(ppo.reward_model(), functions=[VOWELS_OF_ANSWERS])
    result = ppo.run(ppo.config(n_valid=2, reward=reward, max_steps=1, keep_rollouts=3, ppo=settings))
    before, first, *_ = records(result)
    assert "eval/reward" in before
    names = {
        "actor_train/reward",
        "actor_train/rewards/reward_model/mean",
        "actor_train/rewards/vowels_of_answers/mean",
    }
    names |= {"actor_train/objective/kl", "actor_train/kl_coef", "actor_train/completions/clipped_ratio"}
    names |= {"critic_train/explained_variance", "critic_train/values/mean", "critic_train/clip_ratio/region_mean"}
    assert names <= first.keys()
    kept = [json.loads(line) for line in (result.run_dir / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(kept) == 3
    assert len(kept[0]["answers"][0]["advantages"]) == kept[0]["answers"][0]["length"]


def test_rollouts_have_the_difference_of_each_token_to_training(ppo: Runs) -> None:
    result = ppo.run(ppo.config(max_steps=1))
    kept = [json.loads(line) for line in (result.run_dir / "rollouts.jsonl").read_bytes().splitlines()]
    of_tokens = [value for record in kept for answer in record["answers"] for value in answer["difference"]]
    assert of_tokens
    assert all(value is not None and abs(value) < 1e-4 for value in of_tokens)
