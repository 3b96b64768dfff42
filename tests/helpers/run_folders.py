"""Writes run folders as a run would."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


def write_run(
    path: Path,
    *,
    losses: Sequence[float] = (3.0, 2.0, 1.5),
    eval_losses: Mapping[int, float] | None = None,
    call: str = "train",
    settings: Mapping[str, Any] | None = None,
    resumable: bool = False,
    **summary: Any,
) -> Path:
    """Write a run folder with `config.yaml`, `metrics.jsonl` and `summary.json`.

    Args:
        path: of the folder.
        losses: of steps 1, 2, ...; each step trains on 100 tokens, ten steps are an epoch.
        eval_losses: by step.
        call: name of the train call.
        settings: content of `config.yaml`; None writes no such file.
        resumable: whether to write a checkpoint to resume from.
        **summary: changes to `summary.json`.
    """
    path.mkdir(parents=True)
    eval_losses = eval_losses or {}
    lines: list[dict[str, Any]] = []
    for step in range(max(len(losses), *eval_losses, 0) + 1):
        if 1 <= step <= len(losses):
            loss = {f"{call}/loss": losses[step - 1], f"{call}/lr": 1e-3, f"{call}/tokens": 100}
            lines.append({"step": step, **loss, "epoch": step / 10})
        if step in eval_losses:
            lines.append({"step": step, "eval/loss": eval_losses[step]})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if settings is not None:
        (path / "config.yaml").write_text(yaml.safe_dump(settings))
    checkpoint = path / "checkpoints" / f"step-{len(losses):06d}"
    if resumable:
        (checkpoint / "training_state").mkdir(parents=True)
        (checkpoint / "config.json").write_text("{}")
    written = {
        "status": "done",
        "algorithm": "sft",
        "error": None,
        "started": "2026-01-02T03:04:05",
        "seconds": 61.0,
        "steps": len(losses),
        "total_steps": len(losses),
        "epochs": len(losses) / 10,
        "train_samples": 40,
        "valid_samples": 4,
        "parameters": {"model": 476160},
        "checkpoint": str(checkpoint.relative_to(path)) if resumable else None,
        "best": None,
        "metrics": {name: value for line in lines for name, value in line.items() if name not in ("step", "epoch")},
    }
    (path / "summary.json").write_text(json.dumps({**written, **summary}))
    return path
