"""The last lines of a run: what has been done, and what can be done now."""

from __future__ import annotations

from reallm.experiments.loop import Loop
from reallm.experiments.progress import duration
from reallm.experiments.run_folder import RunFolder
from reallm.experiments.setup import counted


def closing_lines(loop: Loop, folder: RunFolder, kind: str) -> list[str]:
    """Lines for a run of the algorithm `kind` that has ended in good order."""
    lines = [f"{'done' if loop.is_done else 'stopped'} after {counted(loop.step, 'step')} in {duration(loop.seconds)}"]
    checkpoint = loop.newest
    if checkpoint is None:
        return [*lines, "nothing is saved: there was no step to save"]
    if not loop.is_done:
        lines.append(f"to go on: reallm {kind} resume={folder.path}")
    lines.append(f"to look at: {folder.page}   curves: {folder.plot}   numbers: {folder.metrics}")
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
