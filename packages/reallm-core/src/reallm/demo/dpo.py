"""The demo of preference optimisation: a model that answers in both ways comes to answer in the preferred one."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from reallm.algorithms.dpo.config import DPOConfig
from reallm.algorithms.sft.config import SFTConfig
from reallm.config.args import ModelArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.demo.preference_rows import PreferenceRows, Row, is_friendly, mixed_answers, preference_rows
from reallm.demo.show import show_answers, show_curve
from reallm.demo.workspace import Workspace
from reallm.engine.real_model import ReaLModel
from reallm.experiments.run.runner import RunResult
from reallm.seeding import derive_seed

DATASETS = ("prompt_answer", "rw_pair")
SFT_STEPS = 200
STEPS = 100
N_SHOWN = 8


def dpo_demo(work: Workspace, steps: int | None, seed: int) -> RunResult:
    """Train a policy by supervised fine-tuning and then by DPO, and show what it answers before and after DPO."""
    rows = preference_rows(seed)
    work.say(
        "A tiny model becomes friendly. It first learns to answer at all, from friendly and grumpy answers in equal "
        "parts (supervised fine-tuning); then from pairs of them, of which the friendly one is preferred (DPO).\n"
        f"data: {work.folder / 'data'}   untrained model: {work.untrained_path}\n\n"
        "1 of 2: supervised fine-tuning on both kinds of answers"
    )
    first = work.train(_sft_config(work, rows, min(steps or SFT_STEPS, SFT_STEPS), seed), "sft")
    if first.checkpoint is None or first.interrupted:
        return first
    before = _answers(ReaLModel.from_pretrained(first.checkpoint), work.tokenizer, rows.valid, seed)
    work.say("\n2 of 2: DPO on pairs, a friendly answer and a grumpy one")
    result = work.train(_dpo_config(work, rows, str(first.checkpoint), steps or STEPS, seed), "dpo")
    if result.checkpoint is None:
        return result
    after = _answers(ReaLModel.from_pretrained(result.checkpoint), work.tokenizer, rows.valid, seed)
    show_curve(work.console, result, "train/loss")
    prompts = [row["prompt"] for row in rows.valid]
    friendly = [is_friendly(answer) for answer in after]
    show_answers(work.console, prompts[:N_SHOWN], before[:N_SHOWN], after[:N_SHOWN], friendly[:N_SHOWN])
    work.say(
        f"Friendly answers to {len(prompts)} requests about things it has never read of, sampled at temperature 1: "
        f"{_share([is_friendly(answer) for answer in before]):.1%} before DPO, "
        f"{_share(friendly):.1%} after.\n"
        f"its curves: {result.run_dir / 'summary.html'}\n"
        f'ask it yourself: reallm generate --model {result.checkpoint} "Can you fix my robot?"\n'
        f'and the one before DPO: reallm generate --model {first.checkpoint} "Can you fix my robot?"\n'
        f"or hold it closer to that one: reallm dpo --config {result.run_dir / 'config.yaml'} name=closer beta=1"
    )
    return result


def _sft_config(work: Workspace, rows: PreferenceRows, n_steps: int, seed: int) -> SFTConfig:
    return SFTConfig(
        model=ModelArgs(path=work.untrained_path, dtype="float32"),
        dataset=work.dataset(
            "prompt_answer",
            mixed_answers(rows.train),
            mixed_answers(rows.valid),
            train_bs_n_seqs=32,
            valid_bs_n_seqs=64,
        ),
        optimizer=OptimizerConfig(lr=3e-3, beta2=0.98, weight_decay=0.05, warmup_ratio=0.05),
        **work.run_settings("sft", n_steps, seed, evaluations=1),
    )


def _dpo_config(work: Workspace, rows: PreferenceRows, start: str, n_steps: int, seed: int) -> DPOConfig:
    return DPOConfig(
        actor=ModelArgs(path=start, dtype="float32"),
        dataset=work.dataset("rw_pair", rows.train, rows.valid, train_bs_n_seqs=16, valid_bs_n_seqs=64),
        beta=0.5,
        rpo_alpha=1.0,  # keeps friendly answers likely while grumpy ones become unlikely
        optimizer=OptimizerConfig(lr=1e-3, warmup_ratio=0.1),
        **work.run_settings("run", n_steps, seed, evaluations=4),
    )


def _answers(model: ReaLModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], seed: int) -> list[str]:
    """An answer to each row's prompt, sampled at temperature 1 as training sees them."""
    completions = model.generate(
        [row["prompt"] for row in rows],
        tokenizer=tokenizer,
        max_new_tokens=64,
        temperature=1.0,
        seed=derive_seed(seed, "demo answers"),
    )
    return [(completion.text or "").strip() for completion in completions]


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
