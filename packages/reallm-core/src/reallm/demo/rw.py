"""The demo of reward modelling: a model learns to tell friendly answers from grumpy ones."""

from __future__ import annotations

from reallm.algorithms.rw.config import RWConfig
from reallm.config.args import CriticArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.demo.preference_rows import preference_rows
from reallm.demo.show import show_curve
from reallm.demo.workspace import MAX_SEQLEN, Workspace
from reallm.experiments.run.runner import RunResult

DATASETS = ("rw_pair",)
STEPS = 40


def rw_demo(work: Workspace, steps: int | None, seed: int) -> RunResult:
    """Train a reward model on the demo's pairs, and show how often it is right about others."""
    rows = preference_rows(seed)
    dataset = work.dataset(
        "rw_pair", rows.train, rows.valid, max_seqlen=MAX_SEQLEN, train_bs_n_seqs=16, valid_bs_n_seqs=64
    )
    work.say(
        "A tiny model with random weights becomes a reward model: it learns to score answers, from pairs of a friendly "
        "and a grumpy one.\n"
        f"data: {work.folder / 'data'}   untrained model: {work.untrained_path}"
    )
    n_steps = steps or STEPS
    config = RWConfig(
        model=CriticArgs(path=work.untrained_path, dtype="float32"),
        dataset=dataset,
        center_coef=0.01,
        optimizer=OptimizerConfig(lr=3e-4, warmup_ratio=0.05),
        **work.run_settings("run", n_steps, seed, evaluations=4),
    )
    result = work.train(config, "rw")
    if result.checkpoint is None:
        return result
    show_curve(work.console, result, "train/accuracy")
    n_right = round(result.metrics["eval/accuracy"] * len(rows.valid))
    work.say(
        f"Of {len(rows.valid)} pairs about things it has never read of, it gives the friendly answer the higher score "
        f"in {n_right} ({n_right / len(rows.valid):.1%}); guessing would be right in half of them.\n"
        f"A friendly answer scores {result.metrics['eval/rewards/chosen']:+.1f} on average, a grumpy one "
        f"{result.metrics['eval/rewards/rejected']:+.1f}.\n"
        f"its curves: {result.run_dir / 'summary.html'}\n"
        "next, let a model learn from the same pairs how to answer: reallm demo --algorithm dpo\n"
        f"or train on pairs of your own: reallm rw model.path={work.untrained_path} dataset.train_path=pairs.jsonl"
    )
    return result
