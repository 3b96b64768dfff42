"""The demo of GRPO: a model that answers in both ways comes to answer in the one that a function rewards."""

from __future__ import annotations

from reallm.algorithms.grpo.config import GRPOConfig
from reallm.config.args import ModelArgs, RewardArgs, SamplingArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.demo.friendliness import show_friendliness, train_on_both_kinds
from reallm.demo.preference_rows import PreferenceRows, preference_rows, prompts_alone
from reallm.demo.show import last_value, show_curve
from reallm.demo.workspace import Workspace
from reallm.experiments.run.runner import RunResult

DATASETS = ("prompt_answer", "prompt")
REWARD = "reallm.demo.preference_rows:friendliness"
STEPS = 60


def grpo_demo(work: Workspace, steps: int | None, seed: int) -> RunResult:
    """Train a policy by supervised fine-tuning and then by GRPO, and show what it answers before and after GRPO."""
    rows = preference_rows(seed)
    work.say(
        "A tiny model becomes friendly. It first learns to answer at all, from friendly and grumpy answers in equal "
        "parts (supervised fine-tuning); then it answers itself, and a function rewards friendly answers (GRPO).\n"
        f"data: {work.folder / 'data'}   untrained model: {work.untrained_path}\n\n"
        "1 of 2: supervised fine-tuning on both kinds of answers"
    )
    first = train_on_both_kinds(work, rows, steps, seed)
    if first.checkpoint is None or first.interrupted:
        return first
    work.say(f"\n2 of 2: GRPO on eight answers to each request, rewarded by {REWARD}")
    result = work.train(_grpo_config(work, rows, str(first.checkpoint), steps or STEPS, seed), "grpo")
    if result.checkpoint is None:
        return result
    show_curve(work.console, result, "train/reward")
    show_friendliness(work, rows.valid, first.checkpoint, result.checkpoint, "GRPO", seed)
    work.say(
        f"its curves: {result.run_dir / 'summary.html'}\n"
        f"KL divergence from the model before GRPO: {last_value(result, 'train/kl'):.2f} nats a token\n"
        f"or with another algorithm: reallm grpo --config {result.run_dir / 'config.yaml'} name=other preset=dr_grpo"
    )
    return result


def _grpo_config(work: Workspace, rows: PreferenceRows, start: str, n_steps: int, seed: int) -> GRPOConfig:
    return GRPOConfig(
        actor=ModelArgs(path=start, dtype="float32"),
        dataset=work.dataset(
            "prompt", prompts_alone(rows.train), prompts_alone(rows.valid), train_bs_n_seqs=16, valid_bs_n_seqs=256
        ),
        reward=RewardArgs(functions=[REWARD]),
        gen=SamplingArgs(max_new_tokens=48),
        num_generations=8,
        beta=0.02,
        eval_temperature=1.0,
        optimizer=OptimizerConfig(lr=5e-4, warmup_ratio=0.1),
        **work.run_settings("run", n_steps, seed, evaluations=4),
    )
