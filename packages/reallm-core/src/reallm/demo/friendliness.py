"""What the demos of preferences have in common: a model that answers in both ways, and its answers before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reallm.algorithms.sft.config import SFTConfig
from reallm.config.args import ModelArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.demo.preference_rows import PreferenceRows, Row, is_friendly, mixed_answers
from reallm.demo.show import show_answers
from reallm.demo.workspace import MAX_SEQLEN, Workspace
from reallm.engine.real_model import ReaLModel
from reallm.experiments.run.runner import RunResult
from reallm.seeding import derive_seed

SFT_STEPS = 300
N_SHOWN = 8


def train_on_both_kinds(work: Workspace, rows: PreferenceRows, steps: int | None, seed: int) -> RunResult:
    """Fine-tune the untrained model on friendly and grumpy answers in equal parts, in at most `SFT_STEPS` steps."""
    n_steps = min(steps or SFT_STEPS, SFT_STEPS)
    config = SFTConfig(
        model=ModelArgs(path=work.untrained_path, dtype="float32"),
        dataset=work.dataset(
            "prompt_answer",
            mixed_answers(rows.train),
            mixed_answers(rows.valid),
            max_seqlen=MAX_SEQLEN,
            train_bs_n_seqs=32,
            valid_bs_n_seqs=64,
        ),
        optimizer=OptimizerConfig(lr=3e-3, beta2=0.98, weight_decay=0.05, warmup_ratio=0.05),
        **work.run_settings("sft", n_steps, seed, evaluations=1),
    )
    return work.train(config, "sft")


def show_friendliness(work: Workspace, rows: Sequence[Row], before: Path, after: Path, name: str, seed: int) -> None:
    """Print answers to some rows' prompts, and the share of friendly answers to all, before and after a stage.

    Args:
        work: the folder of the demo.
        rows: rows whose prompts are answered.
        before: checkpoint that the stage began with.
        after: checkpoint that it ended with.
        name: name of the stage.
        seed: seed of the demo.
    """
    old, new = (_answers(work, checkpoint, rows, seed) for checkpoint in (before, after))
    friendly = [is_friendly(answer) for answer in new]
    prompts = [row["prompt"] for row in rows]
    show_answers(work.console, prompts[:N_SHOWN], old[:N_SHOWN], new[:N_SHOWN], friendly[:N_SHOWN])
    work.say(
        f"Friendly answers to {len(prompts)} requests about things it has never read of, sampled at temperature 1: "
        f"{_share([is_friendly(answer) for answer in old]):.1%} before {name}, {_share(friendly):.1%} after.\n"
        f'ask it yourself: reallm generate --model {after} "Can you fix my robot?"\n'
        f'and the one before {name}: reallm generate --model {before} "Can you fix my robot?"'
    )


def _answers(work: Workspace, checkpoint: Path, rows: Sequence[Row], seed: int) -> list[str]:
    """An answer to each row's prompt, sampled at temperature 1 as training sees them."""
    completions = ReaLModel.from_pretrained(checkpoint).generate(
        [row["prompt"] for row in rows],
        tokenizer=work.tokenizer,
        max_new_tokens=64,
        temperature=1.0,
        seed=derive_seed(seed, "demo answers"),
    )
    return [(completion.text or "").strip() for completion in completions]


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
