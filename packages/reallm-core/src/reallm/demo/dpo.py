"""The demo of preference optimisation: a model that answers in both ways comes to answer in the preferred one."""

from __future__ import annotations

from reallm.algorithms.dpo.config import DPOConfig
from reallm.config.args import ModelArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.demo.friendliness import show_friendliness, train_on_both_kinds
from reallm.demo.preference_rows import PreferenceRows, preference_rows
from reallm.demo.show import show_curve
from reallm.demo.workspace import MAX_SEQLEN, Workspace
from reallm.experiments.run.runner import RunResult

DATASETS = ("prompt_answer", "rw_pair")
STEPS = 100


def dpo_demo(work: Workspace, steps: int | None, seed: int) -> RunResult:
    """Train a policy by supervised fine-tuning and then by DPO, and show what it answers before and after DPO."""
    rows = preference_rows(seed)
    work.say(
        "A tiny model becomes friendly. It first learns to answer at all, from friendly and grumpy answers in equal "
        "parts (supervised fine-tuning); then from pairs of them, of which the friendly one is preferred (DPO).\n"
        f"data: {work.folder / 'data'}   untrained model: {work.untrained_path}\n\n"
        "1 of 2: supervised fine-tuning on both kinds of answers"
    )
    first = train_on_both_kinds(work, rows, steps, seed)
    if first.checkpoint is None or first.interrupted:
        return first
    work.say("\n2 of 2: DPO on pairs, a friendly answer and a grumpy one")
    result = work.train(_dpo_config(work, rows, str(first.checkpoint), steps or STEPS, seed), "dpo")
    if result.checkpoint is None:
        return result
    show_curve(work.console, result, "train/loss")
    show_friendliness(work, rows.valid, first.checkpoint, result.checkpoint, "DPO", seed)
    work.say(
        f"its curves: {result.run_dir / 'summary.html'}\n"
        f"or hold it closer to that one: reallm dpo --config {result.run_dir / 'config.yaml'} name=closer beta=1"
    )
    return result


def _dpo_config(work: Workspace, rows: PreferenceRows, start: str, n_steps: int, seed: int) -> DPOConfig:
    return DPOConfig(
        actor=ModelArgs(path=start, dtype="float32"),
        dataset=work.dataset(
            "rw_pair", rows.train, rows.valid, max_seqlen=MAX_SEQLEN, train_bs_n_seqs=16, valid_bs_n_seqs=64
        ),
        beta=0.5,
        rpo_alpha=1.0,  # keeps friendly answers likely while grumpy ones become unlikely
        optimizer=OptimizerConfig(lr=1e-3, warmup_ratio=0.1),
        **work.run_settings("run", n_steps, seed, evaluations=4),
    )
