"""Runs of `reallm grpo` on a tiny model: what it trains on, what it reports, and how it resumes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from reallm.algorithms.grpo.config import GRPOConfig
from reallm.config.args import ModelArgs, RewardArgs, SamplingArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.engine.real_model import ReaLModel
from reallm.errors import DataError
from reallm.plugins import registry
from tests.experiments.checkpointing.test_resume import assert_same_run, stop_after
from tests.experiments.conftest import HF_CONFIG, records
from tests.helpers.prompt_runs import PromptRuns
from tests.helpers.reward_functions import CONSTANT, IS_SOLUTION, SHARE_OF_VOWELS, SHORTNESS
from tests.helpers.tokenizers import tiny_tokenizer


class Runs(PromptRuns):
    """Small runs of `reallm grpo`."""

    def config(self, n_valid: int = 0, batch_size: int = 2, n_rows: int = 6, **changes: Any) -> GRPOConfig:
        """Two prompts of four short answers a step."""
        settings = {
            **self.settings(n_valid=n_valid, batch_size=batch_size, n_rows=n_rows),
            "reward": RewardArgs(functions=[SHARE_OF_VOWELS], device="cpu"),
            "gen": SamplingArgs(max_new_tokens=6),
            "num_generations": 4,
        }
        return GRPOConfig(**{**settings, **changes})


@pytest.fixture
def grpo(tmp_path: Path, checkpoint: Path) -> Runs:
    return Runs(tmp_path, checkpoint, registry.get("algorithm", "grpo"))


def test_the_reward_rises(grpo: Runs) -> None:
    result = grpo.run(grpo.config(batch_size=6, epochs=12, num_generations=8, optimizer=OptimizerConfig(lr=2e-2)))
    rewards = [step["train/reward"] for step in records(result)]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.2
    assert "reward 0." in grpo.printed


def test_metrics_have_the_names_of_trl(grpo: Runs) -> None:
    config = grpo.config(
        reward=RewardArgs(functions=[SHARE_OF_VOWELS, SHORTNESS], device="cpu"),
        reward_weights=[1.0, 0.5],
        n_valid=2,
        max_steps=2,
    )
    before, *steps = records(grpo.run(config))
    first = steps[0]
    assert first["train/reward"] == pytest.approx(
        first["train/rewards/share_of_vowels/mean"] + 0.5 * first["train/rewards/shortness/mean"], rel=0.2
    )
    assert 0 <= first["train/frac_reward_zero_std"] <= 1
    assert first["train/completions/mean_length"] <= 6
    assert {"train/loss", "train/reward_std", "train/completions/clipped_ratio"} <= first.keys()
    assert "eval/reward" in before


def test_a_row_anywhere_that_lacks_a_column_is_named_before_a_model_is_loaded(grpo: Runs, tmp_path: Path) -> None:
    config = grpo.config(reward=RewardArgs(functions=[IS_SOLUTION], device="cpu"))
    rows = [{"prompt": f"Say {i}", **({} if i == 4 else {"solution": "a"})} for i in range(6)]
    Path(config.dataset.train_path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError, match=r"needs the column 'solution', which row .*:5 lacks"):
        grpo.run(config)
    assert not list((tmp_path / "runs").iterdir())


def test_what_is_sampled_is_what_is_trained(grpo: Runs) -> None:
    """Log-probabilities of sampling and of training are the same, also at another temperature."""
    (first,) = records(grpo.run(grpo.config(max_steps=1, gen=SamplingArgs(max_new_tokens=6, temperature=0.7, top_k=9))))
    assert first["train/sampling/sampling_logp_difference/max"] < 1e-4


def test_in_exact_mode_they_are_the_same_bit_for_bit(grpo: Runs) -> None:
    steps = records(grpo.run(grpo.config(max_steps=2, exact=True, actor=ModelArgs(str(grpo.checkpoint), device="cpu"))))
    assert [step["train/sampling/sampling_logp_difference/max"] for step in steps] == [0, 0]


@pytest.mark.parametrize(
    "settings",
    [
        {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2},
        {"num_minibatches": 2, "num_iterations": 2, "old_logprobs": "inference"},
        {"preset": "remax"},
        {"preset": "rloo", "overlong_buffer": 0.5},
        {"preset": "reinforce_pp"},
        {"preset": "gspo", "num_minibatches": 2},
        {"preset": "cispo", "entropy_coef": 0.01, "importance_sampling_correction": "truncate"},
        {"preset": "dr_grpo"},
        {"loss_type": "sapo", "num_iterations": 2},
        {"loss_type": "vespo", "num_iterations": 2},
        {"loss_type": "luspo", "importance_sampling_level": "sequence", "delta": 3.0},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_each_kind_trains(grpo: Runs, settings: dict[str, Any]) -> None:
    result = grpo.run(grpo.config(n_valid=1, max_steps=2, **settings))
    losses = [step["train/loss"] for step in records(result) if "train/loss" in step]
    assert len(losses) == 2
    assert all(abs(loss) < 100 for loss in losses)


def test_the_schedule_counts_all_optimizer_steps(grpo: Runs) -> None:
    optimizer = OptimizerConfig(lr=1e-3, schedule="linear", min_lr_ratio=0.0, warmup_steps=0)
    result = grpo.run(grpo.config(num_minibatches=2, num_iterations=3, optimizer=optimizer))
    last = records(result)[-1]
    assert last["train/lr"] == pytest.approx(1e-3 / 18)  # that of the last of 18 optimizer steps


def test_a_reward_model_scores_with_functions(grpo: Runs) -> None:
    critic = grpo.folder / "critic"
    ReaLModel.from_llama({**HF_CONFIG, "num_hidden_layers": 1}, seed=7, is_critic=True).save_pretrained(
        critic, tokenizer=tiny_tokenizer()
    )
    reward = RewardArgs(path=str(critic), functions=[SHARE_OF_VOWELS], device="cpu")
    settings = {"max_steps": 1, "n_valid": 1, "preset": "remax", "best_metric": "eval/rewards/share_of_vowels/mean"}
    before, first, after = records(grpo.run(grpo.config(reward=reward, reward_weights=[1.0, 0.5], **settings)))
    assert first["train/reward"] == pytest.approx(
        first["train/rewards/share_of_vowels/mean"] + 0.5 * first["train/rewards/reward_model/mean"]
    )
    for found in (before, after):
        assert found["eval/reward"] == pytest.approx(
            found["eval/rewards/share_of_vowels/mean"] + 0.5 * found["eval/rewards/reward_model/mean"]
        )


def test_dynamic_sampling_trains_on_prompts_whose_rewards_differ(grpo: Runs) -> None:
    settings = {"batch_size": 6, "drop_zero_std_groups": True, "max_steps": 1}
    (half,) = records(grpo.run(grpo.config(oversampling=2.0, **settings)))
    assert half["train/frac_trained"] <= 0.5
    constant = RewardArgs(functions=[CONSTANT], device="cpu")
    (nothing,) = records(grpo.run(grpo.config(reward=constant, **settings)))
    assert nothing["train/frac_trained"] == nothing["train/grad_norm"] == 0
    assert nothing["train/frac_reward_zero_std"] == 1


def test_answers_that_can_outgrow_the_model_are_mentioned_before_training(grpo: Runs) -> None:
    grpo.run(grpo.config(n_rows=2, max_steps=1, num_generations=2, gen=SamplingArgs(max_new_tokens=260, stop=["a"])))
    assert "2 of 2 samples have more than the 256 tokens that" in grpo.printed
    assert "with the longest answer; lower max_new_tokens, or have the dataset cut or drop longer" in grpo.printed


@pytest.mark.parametrize(("at", "async_steps"), [(1, 0), (3, 0), (2, 1)])
def test_a_stopped_run_goes_on_bit_for_bit(
    grpo: Runs, monkeypatch: pytest.MonkeyPatch, at: int, async_steps: int
) -> None:
    settings: dict[str, Any] = {
        "n_valid": 2, "eval_every": 2, "epochs": 2, "max_steps": 4, "beta": 0.1, "num_minibatches": 2,
        "async_steps": async_steps,
    }  # fmt: skip
    whole = grpo.run(grpo.config(name="whole", **settings))
    with monkeypatch.context() as patch:
        stop_after(patch, at, metric="train/loss")
        stopped = grpo.run(grpo.config(name="stopped", **settings))
    assert stopped.interrupted
    grpo.run(dataclasses.replace(grpo.config(name="stopped", **settings), resume="stopped"))
    assert_same_run(whole.run_dir, stopped.run_dir)


def test_what_was_sampled_ahead_is_dropped_if_it_is_older_than_allowed_now(
    grpo: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, 1, metric="train/loss")
        stopped = grpo.run(grpo.config(name="stopped", async_steps=2))
    saved = stopped.checkpoint / "training_state" / "rollouts"  # type: ignore[operator]
    assert sorted(path.name for path in saved.iterdir()) == ["2.actor_gen.safetensors", "3.actor_gen.safetensors"]
    grpo.run(dataclasses.replace(grpo.config(name="stopped"), resume="stopped"))
    assert grpo.printed.count("async_steps=0: what was sampled ahead for 2 steps does not fit these settings") == 1
    assert [step["train/staleness"] for step in records(stopped) if "train/staleness" in step] == [0]


def test_rollouts_of_each_step_are_kept(grpo: Runs) -> None:
    result = grpo.run(grpo.config(beta=0.1, keep_rollouts=1))
    kept = [json.loads(line) for line in (result.run_dir / "rollouts.jsonl").read_bytes().splitlines()]
    assert [record["step"] for record in kept] == [1, 2, 3]
    assert all(len(record["answers"]) == 4 for record in kept)
    answers = [answer for record in kept for answer in record["answers"] if answer["length"]]
    for answer in answers:
        assert answer["reward"] == answer["reward_parts"]["share_of_vowels"]
        assert len(answer["tokens"]) == len(answer["kl"]) == answer["length"]
        assert all(value is not None and abs(value) < 1e-4 for value in answer["difference"])
