"""`reallm demo`: trains a tiny model from random weights, with the same runner as every algorithm."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from reallm.algorithms.sft.config import SFTConfig
from reallm.atomic_files import atomic_write
from reallm.config.args import ModelArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.demo.rows import Row, demo_rows
from reallm.demo.tokenizer import byte_tokenizer
from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError, PluginError, UnknownNameError
from reallm.experiments.reports.terminal import terminal_plot
from reallm.experiments.run.runner import RunResult, run
from reallm.experiments.runs.folder import RunFolder
from reallm.experiments.runs.metrics import read_curves, smoothed
from reallm.hf.conversion.config import config_to_hf
from reallm.hf.family import HFFamily
from reallm.model.config import ReaLModelConfig
from reallm.plugins import registry
from reallm.plugins.known import suggested_first

DATASET = "prompt_answer"
STEPS = 700
BATCH_SIZE = 64


def run_demo(
    output_dir: str | Path = "runs", steps: int | None = None, seed: int = 1, *, console: Console | None = None
) -> RunResult:
    """Write data and an untrained model, train it with `run`, and show its answers before and after.

    Args:
        output_dir: folder in which `demo-<date>` is made.
        steps: optimizer steps; None: enough to learn the tasks, in a minute or two on two cores.
        seed: seed of the data, the weights and the order of rows.
        console: console to print on; None is the standard output.

    Raises:
        PluginError: a package that the demo needs is not installed; says what to install.
    """
    console = console or Console()
    tokenizer = byte_tokenizer()
    sizes = json.loads(files("reallm.demo").joinpath("model.json").read_text(encoding="utf-8"))
    architecture = ReaLModelConfig(vocab_size=len(tokenizer), **sizes)
    family = _installed_family(architecture)

    folder = RunFolder.create(output_dir, None, default_prefix="demo").path
    rows = demo_rows(seed)
    _write_rows(folder / "data" / "train.jsonl", rows.train)
    _write_rows(folder / "data" / "valid.jsonl", rows.valid)
    model = _untrained_model(family, architecture, tokenizer, seed)
    model.save_pretrained(folder / "untrained", tokenizer=tokenizer)
    console.print(
        "A tiny model with random weights learns to spell, to shout, to count and to add.\n"
        f"data: {folder / 'data'}   untrained model: {folder / 'untrained'}",
        highlight=False,
        soft_wrap=True,
    )
    before = _answers(model, tokenizer, rows.shown)

    n_steps = steps or STEPS
    config = SFTConfig(
        model=ModelArgs(path=str(folder / "untrained"), dtype="float32"),
        dataset=_dataset_config(folder / "data"),
        optimizer=OptimizerConfig(lr=3e-3, beta2=0.98, weight_decay=0.05, warmup_ratio=0.05),
        epochs=n_steps,
        max_steps=n_steps,
        eval_every=max(1, n_steps // 6),
        output_dir=str(folder),
        name="run",
        seed=seed,
    )
    with _one_thread():
        result = run(config, registry.get("algorithm", "sft"), name="sft", console=console)
    if result.checkpoint is not None:
        trained = ReaLModel.from_pretrained(result.checkpoint)
        _show(console, result, rows.shown, before, _answers(trained, tokenizer, rows.shown))
        held_out = _answers(trained, tokenizer, rows.valid)
        right = sum(answer == row["answer"].strip() for answer, row in zip(held_out, rows.valid, strict=True))
        console.print(
            f"{right} of {len(rows.valid)} answers to questions it has never seen are right to the letter.\n"
            f'ask it yourself: reallm generate --model {result.checkpoint} "Spell reallm."',
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    return result


def _installed_family(architecture: ReaLModelConfig) -> str:
    """An installed family that can store this architecture.

    Raises:
        PluginError: there is no such family, or the dataset is not installed.
    """
    found = [name for name, family in registry.offers("family").items() if _can_store(family, architecture)]
    missing = [] if found else [suggested_first("family")[0]]
    try:
        registry.get("dataset", DATASET)
    except UnknownNameError:
        missing.insert(0, registry.install_hint("dataset", DATASET).removeprefix("pip install "))
    if missing:
        raise PluginError(f"the demo needs more than the core: pip install {' '.join(missing)}")
    return found[0]


def _can_store(family: HFFamily, architecture: ReaLModelConfig) -> bool:
    try:
        config_to_hf(family, architecture)
    except ConfigError:
        return False
    return True


def _untrained_model(
    family: str, architecture: ReaLModelConfig, tokenizer: PreTrainedTokenizerBase, seed: int
) -> ReaLModel:
    hf_config = getattr(ReaLModel, f"config_to_{family}")(architecture)
    hf_config.eos_token_id = hf_config.pad_token_id = tokenizer.eos_token_id
    model: ReaLModel = getattr(ReaLModel, f"from_{family}")(hf_config, dtype=torch.float32, seed=seed)
    return model


def _dataset_config(data: Path) -> Any:
    config_class = registry.get("dataset", DATASET).config_class()
    return config_class(
        train_path=str(data / "train.jsonl"),
        valid_path=str(data / "valid.jsonl"),
        max_seqlen=256,
        train_bs_n_seqs=BATCH_SIZE,
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Context that computes with one thread: for such small work, more threads are slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _write_rows(path: Path, rows: Iterable[Row]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _answers(model: ReaLModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> list[str]:
    completions = model.generate(
        [row["prompt"] for row in rows], tokenizer=tokenizer, max_new_tokens=64, temperature=0.0
    )
    return [(completion.text or "").strip() for completion in completions]


def _show(
    console: Console, result: RunResult, rows: Sequence[Row], before: Sequence[str], after: Sequence[str]
) -> None:
    curves = read_curves(result.run_dir / "metrics.jsonl")
    loss = smoothed(curves["train/loss"], window=max(1, result.steps // 120))
    console.print("\ntrain/loss", highlight=False)
    console.print(terminal_plot(loss), highlight=False, markup=False, soft_wrap=True)
    table = Table("prompt", "before", "after", "", title="What it says", title_justify="left")
    for row, old, new in zip(rows, before, after, strict=True):
        table.add_row(
            row["prompt"], _one_line(old, 16), _one_line(new, 56), "✓" if new == row["answer"].strip() else "✗"
        )
    console.print()
    console.print(table, highlight=False, markup=False)


def _one_line(text: str, width: int) -> str:
    """Shorten text for a table, with dots for unprintable characters, which untrained models do generate."""
    shown = "".join(char if char.isprintable() and char != "\ufffd" else "·" for char in text)
    return shown if len(shown) <= width else shown[: width - 1] + "…"
