"""The demo of supervised fine-tuning: a model with random weights learns small tasks."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from reallm.algorithms.sft.config import SFTConfig
from reallm.config.args import ModelArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.demo.rows import Row, demo_rows
from reallm.demo.show import show_answers, show_curve
from reallm.demo.workspace import MAX_SEQLEN, Workspace
from reallm.engine.real_model import ReaLModel
from reallm.experiments.run.runner import RunResult

DATASETS = ("prompt_answer",)
STEPS = 700


def sft_demo(work: Workspace, steps: int | None, seed: int) -> RunResult:
    """Train on the demo's rows, and show answers before and after."""
    rows = demo_rows(seed)
    dataset = work.dataset("prompt_answer", rows.train, rows.valid, max_seqlen=MAX_SEQLEN, train_bs_n_seqs=64)
    work.say(
        "A tiny model with random weights learns to spell, to shout, to count and to add.\n"
        f"data: {work.folder / 'data'}   untrained model: {work.untrained_path}"
    )
    before = _answers(work.untrained, work.tokenizer, rows.shown)
    n_steps = steps or STEPS
    config = SFTConfig(
        model=ModelArgs(path=work.untrained_path, dtype="float32"),
        dataset=dataset,
        optimizer=OptimizerConfig(lr=3e-3, beta2=0.98, weight_decay=0.05, warmup_ratio=0.05),
        **work.run_settings("run", n_steps, seed, evaluations=6),
    )
    result = work.train(config, "sft")
    if result.checkpoint is None:
        return result
    trained = ReaLModel.from_pretrained(result.checkpoint)
    after = _answers(trained, work.tokenizer, rows.shown)
    show_curve(work.console, result, "train/loss")
    show_answers(work.console, [row["prompt"] for row in rows.shown], before, after, _right(after, rows.shown))
    n_right = sum(_right(_answers(trained, work.tokenizer, rows.valid), rows.valid))
    work.say(
        f"{n_right} of {len(rows.valid)} answers to questions it has never seen are right to the letter.\n"
        f'ask it yourself: reallm generate --model {result.checkpoint} "Spell reallm."'
    )
    return result


def _answers(model: ReaLModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[str]:
    completions = model.generate(
        [row["prompt"] for row in rows], tokenizer=tokenizer, max_new_tokens=64, temperature=0.0
    )
    return [(completion.text or "").strip() for completion in completions]


def _right(answers: Sequence[str], rows: Sequence[Row]) -> list[bool]:
    return [answer == row["answer"].strip() for answer, row in zip(answers, rows, strict=True)]
