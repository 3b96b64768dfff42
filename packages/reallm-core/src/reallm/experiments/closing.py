"""The end of a run: pages to look at, and lines that say what to do with what it left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from reallm.experiments.loop import Loop
from reallm.experiments.plots import read_curves, save_plot
from reallm.experiments.progress import duration
from reallm.experiments.run_folder import RunFolder
from reallm.experiments.setup import counted


def write_pages(folder: RunFolder, say: Callable[[str], None]) -> None:
    """Draw the loss curves and write the summary page; a full disk must not hide where the checkpoint is."""
    try:
        curves = read_curves(folder.metrics)
        if any(name.endswith("/loss") for name in curves):
            save_plot(curves, folder.plot)
        try:
            from reallm.experiments.summary_page import write_summary_page
        except ImportError:
            return
        write_summary_page(folder.path)
    except (OSError, ValueError) as error:
        say(f"no plot of the losses: {error}")


def closing_lines(checkpoint: Path | None, loop: Loop, folder: RunFolder, kind: str) -> list[str]:
    """What has been done and what can be done now."""
    lines = [f"{'done' if loop.is_done else 'stopped'} after {counted(loop.step, 'step')} in {duration(loop.seconds)}"]
    if checkpoint is None:
        return [*lines, "nothing is saved: there was no step to save"]
    if not loop.is_done:
        lines.append(f"to go on: reallm {kind} resume={folder.path}")
    lines.append(f"summary: {folder.page}   curves: {folder.plot}   numbers: {folder.metrics}")
    if loop.best is not None:
        where = folder.path / loop.best.checkpoint
        lines.append(f"best {loop.best.metric}: {loop.best.value:.4g} after step {loop.best.step}, {where}")
    return [
        *lines,
        f"checkpoint: {checkpoint}",
        "with transformers:",
        "    from transformers import AutoModelForCausalLM, AutoTokenizer",
        f'    tokenizer = AutoTokenizer.from_pretrained("{checkpoint}")',
        f'    model = AutoModelForCausalLM.from_pretrained("{checkpoint}")',
        f'or: reallm generate --model {checkpoint} "Once upon a time"',
    ]
