"""Runs of algorithms with several calls a step: PPO, GRPO, ReMax, distillation and best of n, on tiny models."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from reallm.config.args import CriticArgs, ModelArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.data.batching import select
from reallm.errors import ConfigError, DataError, PluginError
from reallm.experiments.run.runner import RunResult, run
from reallm.plugins import registry
from reallm.specs import Algorithm, ModelFunctionCall
from tests.experiments.checkpointing.test_resume import assert_same_run, stop_after
from tests.experiments.conftest import records
from tests.helpers.rl_graphs import DISTILL, GRPO, PPO, RAFT, DistillConfig, GRPOConfig, PPOConfig, RLConfig
from tests.helpers.rl_interfaces import (
    LOG,
    Logged,
    PolicyInterface,
    RewardFunctionInterface,
    RewardModelInterface,
    sequences_of_samples,
)
from tests.helpers.tokenizers import tiny_tokenizer


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    LOG.clear()


@dataclasses.dataclass
class RL:
    """Configurations of small runs, and the runs."""

    folder: Path
    checkpoint: Path

    def model(self, **changes: Any) -> ModelArgs:
        return ModelArgs(path=str(self.checkpoint), device="cpu", **changes)

    def critic(self, **changes: Any) -> CriticArgs:
        return CriticArgs(path=str(self.checkpoint), device="cpu", **changes)

    def settings(self, n_rows: int = 6, n_valid: int = 0, **changes: Any) -> dict[str, Any]:
        """Two prompts a step."""
        train, valid = self.rows("train", n_rows), self.rows("valid", n_valid, 100) if n_valid else None
        dataset = registry.get("dataset", "prompt").config_class()(
            train_path=str(train),
            valid_path=None if valid is None else str(valid),
            train_bs_n_seqs=2,
            valid_bs_n_seqs=2,
        )
        usual: dict[str, Any] = {
            "actor": self.model(),
            "dataset": dataset,
            "optimizer": OptimizerConfig(lr=1e-3),
            "loggers": ["jsonl"],
            "output_dir": str(self.folder / "runs"),
        }
        return {**usual, **changes}

    def rows(self, name: str, n: int, first: int = 0) -> Path:
        path = self.folder / f"{name}-{n}.jsonl"
        rows = [
            {"prompt": "Say " + "so " * (i % 4) + f"{i}:", "wanted": "odd" if i % 2 else "even"}
            for i in range(first, first + n)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    def ppo(self, **changes: Any) -> PPOConfig:
        roles = {"critic": self.critic(), "ref": self.model(), "reward": self.critic()}
        return PPOConfig(**self.settings(**{**roles, **changes}))

    def grpo(self, **changes: Any) -> GRPOConfig:
        return GRPOConfig(**self.settings(**changes))

    def run(self, algorithm: Algorithm, config: RLConfig) -> RunResult:
        self.printed = io.StringIO()
        return run(config, algorithm, name="rl", console=Console(file=self.printed, width=200))


@pytest.fixture
def rl(tmp_path: Path, checkpoint: Path) -> RL:
    return RL(tmp_path, checkpoint)


def calls_of(step: int, training: bool = True) -> list[str]:
    return [one.call for one in LOG if (one.step, one.training) == (step, training)]


def logged(call: str, training: bool = True) -> list[Logged]:
    return [one for one in LOG if one.call == call and one.training == training]


# ---------------------------------------------------------------- PPO


def test_ppo_makes_its_six_calls_in_order_in_each_step(rl: RL) -> None:
    result = rl.run(PPO, rl.ppo())
    assert result.steps == 3
    six = ["actor_gen", "rew_inf", "ref_inf", "critic_inf", "actor_train", "critic_train"]
    for step in (1, 2, 3):
        assert calls_of(step) == six
    last = records(result)[-1]
    assert {"actor_train/loss", "actor_train/lr", "critic_train/loss", "critic_train/tokens_per_s"} <= last.keys()
    assert not any(name.startswith("train/") for name in last)
    saved = {path.name for path in (result.run_dir / "checkpoints" / "last").iterdir()}
    assert {"actor", "critic"} <= saved
    assert not {"ref", "reward"} & saved


def test_the_first_ratio_is_one(rl: RL) -> None:
    """What was sampled is what is trained: probabilities of sampling and of training are the same."""
    first = records(rl.run(PPO, rl.ppo(max_steps=1)))[0]
    assert first["actor_train/ratio"] == pytest.approx(1, abs=1e-5)


def test_the_next_step_generates_with_the_updated_weights(rl: RL) -> None:
    rl.run(PPO, rl.ppo(n_minibatches=2))
    for step, call in enumerate(logged("actor_gen")):
        assert call.versions == {"actor": 2 * step, "critic": step}
    for step, call in enumerate(logged("actor_train")):
        assert call.numbers["made_with"] == {"actor": 2 * step}  # of this step: a rollout is never older here


def test_roles_have_their_own_optimizer_steps_and_settings(rl: RL) -> None:
    """The schedule of each role is over its own steps, mini-batches included."""
    config = rl.ppo(
        n_minibatches=2,
        critic=rl.critic(optimizer={"lr": 5e-4}),
        critic_minibatches=3,
        optimizer=OptimizerConfig(lr=1e-3, schedule="linear", min_lr_ratio=0.0, warmup_steps=0),
    )
    steps = records(rl.run(PPO, config))
    lr = {
        name: [step[f"{name}/lr"] for step in steps if f"{name}/lr" in step] for name in ("actor_train", "critic_train")
    }
    assert [call.numbers["lr_steps"] for call in logged("critic_train")] == [0, 3, 6]
    # the actor: 6 steps, whose mean lr over 2 mini-batches is reported; the critic: 9 steps, of which every third is
    assert lr["actor_train"] == sorted(lr["actor_train"], reverse=True)
    assert lr["critic_train"][-1] < lr["critic_train"][0] < 5e-4
    assert lr["actor_train"][0] / lr["critic_train"][0] > 2
    assert lr["critic_train"][-1] == pytest.approx(0, abs=1e-4)


def test_an_unknown_setting_of_a_role_is_named(rl: RL) -> None:
    with pytest.raises(ConfigError, match=r"critic\.optimizer"):
        rl.run(PPO, rl.ppo(critic=rl.critic(optimizer={"learning_rate": 1.0})))


def test_groups_are_cut_between_their_sequences(rl: RL) -> None:
    rl.run(PPO, rl.ppo(n=3, actor=rl.model(max_tokens_per_microbatch=8)))
    for call in logged("actor_train"):
        assert call.numbers["groups"] == (0, 0, 0, 1, 1, 1)


def test_the_cut_does_not_change_the_numbers(rl: RL) -> None:
    whole, cut = (
        [
            {name: value for name, value in step.items() if name.endswith(("loss", "grad_norm"))}
            for step in records(rl.run(PPO, rl.ppo(n=3, name=name, actor=rl.model(max_tokens_per_microbatch=limit))))
        ]
        for name, limit in (("whole", 1000), ("cut", 8))
    )
    for one, other in zip(whole, cut, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)  # sums in another order


def test_evaluation_generates_and_rewards(rl: RL) -> None:
    config = rl.ppo(n_valid=3, eval_every=1, best_metric="eval/reward", best_mode="max", eval_generations=0)
    result = rl.run(PPO, config)
    rewards = {step["step"]: step["eval/reward"] for step in records(result) if "eval/reward" in step}
    assert set(rewards) == {0, 1, 2, 3}
    assert calls_of(1, training=False) == ["actor_gen", "rew_inf"] * 2  # 3 rows in batches of 2
    summary = json.loads((result.run_dir / "summary.json").read_text())
    assert summary["best"]["metric"] == "eval/reward"
    assert summary["best"]["value"] == max(value for step, value in rewards.items() if step)


def test_evaluations_sample_with_the_same_numbers(rl: RL) -> None:
    """As long as the weights are the same, so are the completions."""
    config = rl.ppo(n_valid=2, eval_every=1, eval_generations=0, optimizer=OptimizerConfig(lr=1e-12))
    rl.run(PPO, config)
    first, *others = [call.numbers["tokens"] for call in logged("actor_gen", training=False)]
    assert all(tokens == first for tokens in others)
    assert len({str(call.numbers["tokens"]) for call in logged("actor_gen")}) == 3


def test_a_mistyped_best_metric_is_found_before_anything_is_loaded(rl: RL) -> None:
    with pytest.raises(ConfigError, match=r"best_metric=eval/rewards is not among .*; did you mean 'eval/reward'\?"):
        rl.run(PPO, rl.ppo(n_valid=2, best_metric="eval/rewards"))


def test_the_drawing_is_on_the_page(rl: RL) -> None:
    result = rl.run(PPO, rl.ppo(max_steps=1))
    assert (result.run_dir / "graph.svg").read_text(encoding="utf-8").startswith("<svg")
    page = (result.run_dir / "summary.html").read_text(encoding="utf-8")
    assert "What a step does" in page
    assert '<text class="name" x=' in page
    assert "critic_inf" in page


@pytest.mark.parametrize("at", [1, 2])
def test_a_stopped_run_goes_on_bit_for_bit(rl: RL, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Completions, the states of interfaces, optimizers of all roles."""
    settings: dict[str, Any] = {"n_valid": 2, "eval_every": 2, "eval_generations": 0, "epochs": 2, "max_steps": 5}
    whole = rl.run(PPO, rl.ppo(name="whole", **settings))
    tokens = [call.numbers["tokens"] for call in logged("actor_gen")]
    LOG.clear()
    with monkeypatch.context() as patch:
        stop_after(patch, at, metric="actor_train/loss")
        stopped = rl.run(PPO, rl.ppo(name="stopped", **settings))
    assert stopped.interrupted
    assert stopped.steps == at
    rl.run(PPO, dataclasses.replace(rl.ppo(name="stopped", **settings), resume="stopped"))
    assert [call.numbers["tokens"] for call in logged("actor_gen")] == tokens
    assert_same_run(whole.run_dir, stopped.run_dir)


# ---------------------------------------------------------------- GRPO and its kin


def test_a_reward_function_gets_the_columns_of_the_rows(rl: RL) -> None:
    result = rl.run(GRPO, rl.grpo())
    assert calls_of(1) == ["actor_gen", "rew_fn", "actor_train"]
    for call in logged("rew_fn"):
        ids = call.metadata["ids"]
        assert [row["wanted"] for row in call.numbers["columns"]] == [
            "odd" if int(name.rpartition(":")[2]) % 2 == 0 else "even" for name in ids
        ]
    assert "train/reward" in records(result)[0]


def test_a_reward_model_instead_of_a_function_and_no_reference_without_beta(rl: RL) -> None:
    rl.run(GRPO, rl.grpo(reward=rl.critic(), beta=0.0, max_steps=1))
    assert calls_of(1) == ["actor_gen", "rew_inf", "actor_train"]
    LOG.clear()
    rl.run(GRPO, rl.grpo(ref=rl.model(), beta=0.1, max_steps=1, name="with-ref"))
    assert calls_of(1) == ["actor_gen", "rew_fn", "ref_inf", "actor_train"]


def test_a_greedy_baseline_is_a_second_generate_call(rl: RL) -> None:
    result = rl.run(GRPO, rl.grpo(baseline="greedy", n_valid=2, eval_generations=0))
    assert calls_of(1) == ["actor_gen", "rew_fn", "greedy_gen", "greedy_rew", "actor_train"]
    sampled, greedy = logged("actor_gen")[0].numbers["tokens"], logged("greedy_gen")[0].numbers["tokens"]
    assert len(sampled) == 2 * len(greedy) == 4
    assert {"eval/reward", "eval/baseline"} <= {name for step in records(result) for name in step}


def test_completions_do_not_depend_on_the_batch(rl: RL) -> None:
    """A prompt gets the same completions whatever else is in its batch, in whatever order."""
    found = []
    for name, size in (("small", 1), ("large", 3)):
        config = rl.grpo(n_valid=3, eval_generations=0, max_steps=1, name=name)
        rl.run(GRPO, dataclasses.replace(config, dataset=dataclasses.replace(config.dataset, valid_bs_n_seqs=size)))
        by_id: dict[str, Any] = {}
        for call in [call for call in logged("actor_gen", training=False) if call.step == 0]:
            for i, sample in enumerate(call.metadata["ids"]):
                by_id[sample] = call.numbers["tokens"][2 * i : 2 * i + 2]
        found.append(by_id)
        LOG.clear()
    assert found[0] == found[1]
    assert len(found[0]) == 3


def test_a_teacher_scores_what_the_student_generates(rl: RL) -> None:
    config = DistillConfig(**rl.settings(teacher=rl.model(), n_valid=2, eval_generations=0))
    result = rl.run(DISTILL, config)
    assert calls_of(1) == ["actor_gen", "teacher_inf", "actor_train"]
    assert calls_of(1, training=False) == []
    assert result.steps == 3


def test_best_of_n_trains_on_the_best(rl: RL) -> None:
    result = rl.run(RAFT, RLConfig(**rl.settings(n=4)))
    assert result.steps == 3
    for call in logged("actor_train"):
        scores = call.numbers["scores"]
        for group, best in enumerate(call.numbers["best"]):
            assert scores[best] == max(scores[4 * group : 4 * group + 4])


# ---------------------------------------------------------------- prompts that are left out


class WithVariance(PolicyInterface):
    """Dynamic sampling: of the prompts of a step, the first two whose completions differ in their rewards count."""

    def train_step(self, engine: Any, batch: Any, context: Any) -> dict[str, float]:
        """Train on groups with variance; those without are replaced by others of a step that generates more."""
        groups = [one.tolist() for one in sequences_of_samples(batch, "scores")]
        kept = [i for i, scores in enumerate(groups) if len(set(scores)) > 1][:2]
        found = super().train_step(engine, select(batch, kept or [0]), context)
        return {**found, "left_out": float(len(groups) - len(kept))}


def test_groups_without_variance_are_replaced_by_others_of_the_step(rl: RL) -> None:
    dynamic = dataclasses.replace(GRPO, interfaces={**GRPO.interfaces, "actor": WithVariance})
    config = rl.grpo(n=4)
    steps = records(
        rl.run(dynamic, dataclasses.replace(config, dataset=dataclasses.replace(config.dataset, train_bs_n_seqs=6)))
    )
    (call,) = logged("actor_train")
    assert len(logged("rew_fn")[0].metadata["ids"]) == 6
    assert len(call.metadata["ids"]) == 2
    assert steps[0]["train/left_out"] == 4


# ---------------------------------------------------------------- rollouts of earlier weights


def test_a_rollout_says_with_which_weights_it_was_made(rl: RL) -> None:
    steps = records(rl.run(GRPO, rl.grpo(n_minibatches=2, async_steps=1)))
    # two optimizer steps each: trained at once; made before the first step; made between the first and the second
    assert [step["train/age"] for step in steps if "train/age" in step] == [0, 2, 2]


# ---------------------------------------------------------------- mistakes


def with_interface(algorithm: Algorithm, role: str, interface: type) -> Algorithm:
    return dataclasses.replace(algorithm, interfaces={**algorithm.interfaces, role: interface})


class NoReward:
    def __init__(self, config: Any) -> None:
        pass


class ReturnsNothing(RewardFunctionInterface):
    def reward(self, batch: Any, context: Any) -> Any:
        return None


class ReturnsOtherKeys(RewardFunctionInterface):
    def reward(self, batch: Any, context: Any) -> Any:
        found = super().reward(batch, context)
        return type(found)(points=found["scores"]).with_metadata(
            seqlens={"points": found.metadata["seqlens"]["scores"]}
        )


class ReturnsTooFew(RewardFunctionInterface):
    def reward(self, batch: Any, context: Any) -> Any:
        found = super().reward(batch, context)
        n = sum(found.metadata["seqlens"]["scores"][0])
        return type(found)(scores=found["scores"][:n]).with_metadata(seqlens={"scores": [(1,) * n]})


@pytest.mark.parametrize(
    ("interface", "message"),
    [
        (NoReward, "the call 'rew_fn' needs the method 'reward', which the interface of 'reward_fn', NoReward, does"),
        (ReturnsNothing, "the interface of 'reward_fn': reward for the call 'rew_fn' returned None, not a NamedArray"),
        (ReturnsOtherKeys, "returned no 'scores', which the graph says it writes; it has points"),
        (ReturnsTooFew, "returned 1 samples for a batch of 2"),
    ],
)
def test_an_interface_that_does_not_fit_the_graph_is_named(rl: RL, interface: type, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        rl.run(with_interface(GRPO, "reward_fn", interface), rl.grpo())


def test_a_key_that_nothing_writes_is_named(rl: RL) -> None:
    def graph(config: GRPOConfig) -> list[ModelFunctionCall]:
        calls = list(GRPO.calls(config))
        return [dataclasses.replace(calls[0], inputs=("prompt_idss",)), *calls[1:]]

    with pytest.raises(
        DataError, match="the call 'actor_gen' needs 'prompt_idss', which dataset 'prompt' does not give"
    ):
        rl.run(dataclasses.replace(GRPO, graph=graph), rl.grpo())


@pytest.fixture
def other_tokenizer(rl: RL) -> ModelArgs:
    """A reward model of the same size whose tokenizer has other tokens."""
    folder = rl.folder / "other"
    shutil.copytree(rl.checkpoint, folder)
    tiny_tokenizer(kind="words").save_pretrained(folder)
    return CriticArgs(path=str(folder), device="cpu")


def test_a_model_with_another_tokenizer_is_refused(rl: RL, other_tokenizer: ModelArgs) -> None:
    with pytest.raises(ConfigError, match=r"reward\.path=.*: its tokenizer has another vocabulary \(") as error:
        rl.run(GRPO, rl.grpo(reward=other_tokenizer))
    assert str(error.value).endswith("; take a model with the tokenizer of actor.path")


def test_an_interface_may_encode_for_a_model_with_another_tokenizer(rl: RL, other_tokenizer: ModelArgs) -> None:
    class Reencoding(RewardModelInterface):
        own_tokenizer = True

    result = rl.run(with_interface(GRPO, "reward", Reencoding), rl.grpo(reward=other_tokenizer, max_steps=1))
    assert result.steps == 1


class ReadsUndeclared(RewardFunctionInterface):
    def reward(self, batch: Any, context: Any) -> Any:
        assert set(batch) == {"input_ids", "prompt_lens"}
        return super().reward(batch, context)


def test_a_call_gets_the_keys_that_it_declares_and_no_others(rl: RL) -> None:
    """So that a key that is forgotten in the graph is missed at once, and not only where ranks do not have it."""
    rl.run(with_interface(GRPO, "reward_fn", ReadsUndeclared), rl.grpo(max_steps=1))
    assert set(logged("actor_gen")[0].keys) == {"prompt_ids"}


def test_a_trained_role_that_says_nothing_of_its_tokens_is_no_obstacle(rl: RL) -> None:
    """The critic has no `planned_tokens`; what it trains on is generated for the actor, whose interface has."""

    def graph(config: PPOConfig) -> list[ModelFunctionCall]:
        calls = {call.name: call for call in PPO.calls(config)}
        order = ["actor_gen", "rew_inf", "ref_inf", "critic_inf", "critic_train", "actor_train"]
        return [calls[name] for name in order]

    result = rl.run(dataclasses.replace(PPO, graph=graph), rl.ppo())
    assert calls_of(1)[-2:] == ["critic_train", "actor_train"]
    assert result.steps == 3
