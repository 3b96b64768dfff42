"""The demo of PPO, in three stages: a model that answers, a reward model, and a policy that earns its rewards."""

from __future__ import annotations

from reallm.algorithms.ppo.config import PPOArgs, PPOConfig
from reallm.algorithms.rw.config import RWConfig
from reallm.config.args import CriticArgs, ModelArgs, RewardArgs, SamplingArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.demo.friendliness import show_friendliness, train_on_both_kinds
from reallm.demo.preference_rows import PreferenceRows, preference_rows, prompts_alone
from reallm.demo.show import last_value, show_curve
from reallm.demo.workspace import MAX_SEQLEN, Workspace
from reallm.experiments.run.runner import RunResult

DATASETS = ("prompt_answer", "rw_pair", "prompt")
REWARD_MODEL_STEPS = 30
STEPS = 40


def ppo_demo(work: Workspace, steps: int | None, seed: int) -> RunResult:
    """Train a policy by supervised fine-tuning, a reward model, and then the policy by PPO; show what it answers."""
    rows = preference_rows(seed)
    work.say(
        "A tiny model becomes friendly. It first learns to answer at all, from friendly and grumpy answers in equal "
        "parts (supervised fine-tuning); a second model learns from pairs of them to score friendly ones higher (a "
        "reward model); then the first answers itself and is rewarded by the second (PPO).\n"
        f"data: {work.folder / 'data'}   untrained model: {work.untrained_path}\n\n"
        "1 of 3: supervised fine-tuning on both kinds of answers"
    )
    first = train_on_both_kinds(work, rows, steps, seed)
    if first.checkpoint is None or first.interrupted:
        return first
    work.say("\n2 of 3: a reward model, from pairs of a friendly answer and a grumpy one")
    n_steps = min(steps or REWARD_MODEL_STEPS, REWARD_MODEL_STEPS)
    judge = work.train(_rw_config(work, rows, str(first.checkpoint), n_steps, seed), "rw")
    if judge.checkpoint is None or judge.interrupted:
        return judge
    work.say("\n3 of 3: PPO, an answer to each request, scored by the reward model")
    result = work.train(
        _ppo_config(work, rows, str(first.checkpoint), str(judge.checkpoint), steps or STEPS, seed), "ppo"
    )
    if result.checkpoint is None:
        return result
    show_curve(work.console, result, "actor_train/reward")
    kl = last_value(result, "actor_train/objective/kl")
    show_friendliness(work, rows.valid, first.checkpoint, result.checkpoint / "actor", "PPO", seed)
    work.say(
        f"its curves: {result.run_dir / 'summary.html'}\n"
        f"KL divergence from the model before PPO: {kl:.1f} nats an answer\n"
        f"or hold it closer to that one: reallm ppo --config {result.run_dir / 'config.yaml'} name=closer ppo.kl_ctl=1"
    )
    return result


def _rw_config(work: Workspace, rows: PreferenceRows, start: str, n_steps: int, seed: int) -> RWConfig:
    return RWConfig(
        model=CriticArgs(path=start, dtype="float32"),
        dataset=work.dataset(
            "rw_pair", rows.train, rows.valid, max_seqlen=MAX_SEQLEN, train_bs_n_seqs=16, valid_bs_n_seqs=64
        ),
        center_coef=0.01,
        optimizer=OptimizerConfig(lr=3e-4, warmup_ratio=0.05),
        **work.run_settings("rw", n_steps, seed, evaluations=1),
    )


def _ppo_config(
    work: Workspace, rows: PreferenceRows, start: str, reward_model: str, n_steps: int, seed: int
) -> PPOConfig:
    return PPOConfig(
        actor=ModelArgs(path=start, dtype="float32"),
        reward=RewardArgs(path=reward_model, dtype="float32"),
        dataset=work.dataset(
            "prompt", prompts_alone(rows.train), prompts_alone(rows.valid), train_bs_n_seqs=64, valid_bs_n_seqs=256
        ),
        ppo=PPOArgs(gen=SamplingArgs(max_new_tokens=48), kl_ctl=0.2, ppo_n_minibatches=2),
        eval_temperature=1.0,
        optimizer=OptimizerConfig(lr=5e-4, warmup_ratio=0.1),
        **work.run_settings("run", n_steps, seed, evaluations=4),
    )
