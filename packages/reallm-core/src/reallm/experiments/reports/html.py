"""`summary.html` in a run folder: all there is to see of a run, on one page that needs nothing else."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from reallm.atomic_files import atomic_write
from reallm.experiments.reports.charts import BarChart, LineChart, bar_chart, line_chart
from reallm.experiments.reports.number_format import duration, number, short
from reallm.experiments.reports.sample_table import prompt_histories
from reallm.experiments.runs.files import json_lines, json_object
from reallm.experiments.runs.folder import RunFolder
from reallm.experiments.runs.info import RunInfo, read_run
from reallm.experiments.runs.metrics import Curve, is_evaluation, is_loss, is_number, read_curves, tokens_trained

TITLES = {
    "accuracy": "Accuracy: share of tokens that were the likeliest",
    "tokens_per_s": "Speed (tokens/s)",
    "memory_gib": "Memory (GiB)",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
}
"""Of metrics that are known, by the last part of their names, in the order of their charts; others come before."""

UNDRAWN = frozenset({"loss", "perplexity", "loss_tokens", "tokens", "epoch", "skipped_steps"})
"""Metrics without a chart of their own: losses are the first, and perplexity is the loss over again."""

EXACT = frozenset({"lr", "memory_gib"})
"""Metrics whose every bend means something, so that no trend is laid over them."""


@dataclass(frozen=True)
class Tile:
    """A number of the headline, what it is, and what more there is to say of it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Step:
    """What can be done with a run, and the command or program for it."""

    what: str
    code: str


@dataclass(frozen=True)
class Lengths:
    """What is known of the samples of a split."""

    split: str
    report: str
    chart: BarChart | None
    note: str


def write_summary_page(folder: Path) -> Path:
    """Write `summary.html` into the folder of a run, whatever state it is in, and return its path.

    The page is one file without scripts. What the folder does not tell is left out.

    Raises:
        RunError: there is no run in the folder.
        DataError: the page cannot be written.
    """
    html = render(folder, now=datetime.now())
    path = RunFolder(folder).page
    with atomic_write(path) as temporary:
        temporary.write_bytes(html.encode(errors="replace"))  # JSON can hold half a character, which UTF-8 cannot
    return path


def render(folder: Path, *, now: datetime) -> str:
    """The page of a run as HTML.

    Args:
        folder: of the run.
        now: when the page is written.

    Raises:
        RunError: there is no run in the folder.
    """
    run = read_run(folder)
    files = RunFolder(folder)
    curves = read_curves(files.metrics)
    return _template().render(
        run=run,
        written=f"{now:%Y-%m-%d %H:%M:%S}",
        tiles=tiles(run, curves),
        skipped=skipped_steps(curves),
        next_steps=next_steps(run),
        losses=loss_charts(curves),
        charts=other_charts(curves),
        lengths=[_lengths(split, about) for split, about in json_object(RunFolder(folder).data).items()],
        prompts=prompt_histories(json_lines(files.samples)),
        config=_text(files.config),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("reallm.experiments.reports", ""),
        autoescape=True,  # samples are whatever a model says, names whatever a plugin calls them
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template("summary.html.j2")


def tiles(run: RunInfo, curves: Mapping[str, Curve]) -> list[Tile]:
    """The headline."""
    found = []
    for name in sorted(filter(is_loss, curves), key=is_evaluation):
        curve = curves[name]
        step, best = min(curve, key=lambda point: point[1])
        begun = f"from {number(curve[0][1])}" if len(curve) > 1 else ""
        lowest = f"lowest {number(best)} at step {step:,}" if is_evaluation(name) and len(curve) > 1 else begun
        found.append(Tile(_loss_title(name), number(curve[-1][1]), lowest))
    of = [] if run.total_steps is None else [f"of {run.total_steps:,}"]
    epochs = [] if run.epochs is None else [f"{run.epochs:.3g} epochs"]
    found.append(Tile("Steps", f"{run.steps:,}", ", ".join(of + epochs)))
    if run.seconds is not None:
        each = f"{run.seconds / run.steps:.3g} s a step" if run.steps else ""
        found.append(Tile("Time", duration(run.seconds), each))
    tokens = tokens_trained(curves)
    if tokens:
        samples = "" if run.train_samples is None else f"{run.train_samples:,} samples"
        found.append(Tile("Tokens", short(tokens[-1][1]), samples))
    speeds = _values(curves, "tokens_per_s")
    if speeds:
        found.append(Tile("Speed", f"{sum(speeds) / len(speeds):,.0f}", "tokens/s on average"))
    memory = _values(curves, "memory_gib")
    if memory:
        found.append(Tile("Memory", f"{max(memory):.3g}", "GiB at its highest"))
    if run.parameters:
        roles = (
            "" if len(run.parameters) == 1 else ", ".join(f"{short(n)} {role}" for role, n in run.parameters.items())
        )
        found.append(Tile("Parameters", short(sum(run.parameters.values())), roles))
    return found


def skipped_steps(curves: Mapping[str, Curve]) -> int:
    """Steps that changed nothing because gradients were not finite."""
    return round(sum(curve[-1][1] for name, curve in curves.items() if name.endswith("/skipped_steps")))


def next_steps(run: RunInfo) -> list[Step]:
    """How to go on: continue, load, generate, run again."""
    steps = []
    if run.resume_command:
        steps.append(Step("Continue where it ended", run.resume_command))
    best = run.best.checkpoint if run.best else None
    which = "newest checkpoint" if best is None else "best checkpoint"
    for model in map(str, _models(best or run.checkpoint)[:1]):
        code = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(model, ensure_ascii=False)})\n"
            f"model = AutoModelForCausalLM.from_pretrained({json.dumps(model, ensure_ascii=False)})"
        )
        steps.append(Step(f"Load it with transformers ({which})", code))
        steps.append(Step("Ask it something", f'reallm generate --model {shlex.quote(model)} "Once upon a time"'))
    config = RunFolder(run.path).config
    if run.algorithm and config.is_file():
        again = f"--config {shlex.quote(str(config))} name=again"
        steps.append(Step("Run it again, with changes", f"reallm {run.algorithm} {again} optimizer.lr=1e-5"))
    return steps


def _models(checkpoint: Path | None) -> list[Path]:
    """The model in a checkpoint, or one for each role."""
    if checkpoint is None:
        return []
    return [path for path in (checkpoint, *sorted(checkpoint.iterdir())) if (path / "config.json").is_file()]


def loss_charts(curves: Mapping[str, Curve]) -> list[LineChart]:
    """A chart for each train call, with the loss of its evaluations."""
    trained = [name for name in curves if is_loss(name) and not is_evaluation(name)]
    evaluated = [name for name in curves if is_loss(name) and is_evaluation(name)]
    if len(trained) == 1:
        groups = [[*trained, *evaluated]]
    else:
        groups = [[name, *(other for other in evaluated if other == f"eval/{name}")] for name in trained]
        groups += [[name] for name in evaluated if not any(name in group for group in groups)]
    return [
        line_chart("Loss" if len(groups) == 1 else _loss_title(group[0]), {name: curves[name] for name in group})
        for group in groups
    ]


def other_charts(curves: Mapping[str, Curve]) -> list[LineChart]:
    """A chart for each other kind of metric, the same of several calls in one."""
    names = sorted(curves, key=is_evaluation)  # training has the first color everywhere
    leaves = dict.fromkeys(name.rpartition("/")[2] for name in names)
    known = list(TITLES)
    order = sorted(leaves, key=lambda leaf: 1 + known.index(leaf) if leaf in TITLES and leaf != "accuracy" else 0)
    return [
        line_chart(
            TITLES.get(leaf, leaf),
            {name: curves[name] for name in names if name.rpartition("/")[2] == leaf},
            from_zero=leaf in TITLES,
            is_noisy=leaf not in EXACT,
        )
        for leaf in order
        if leaf not in UNDRAWN
    ]


def _loss_title(name: str) -> str:
    """`train/loss` is the training loss, `eval/loss` the validation loss; others are called by their calls."""
    usual = {"train/loss": "Training loss", "eval/loss": "Validation loss"}
    return usual.get(name, f"{name.rpartition('/')[0]} loss")


def _values(curves: Mapping[str, Curve], leaf: str) -> list[float]:
    """Of the first metric that is called so."""
    return next(([value for _, value in curve] for name, curve in curves.items() if name.endswith(f"/{leaf}")), [])


def _lengths(split: str, about: Any) -> Lengths:
    about = about if isinstance(about, dict) else {}
    histogram = about.get("lengths")
    chart, note = None, ""
    if isinstance(histogram, dict) and _is_histogram(histogram.get("edges"), histogram.get("counts")):
        chart = bar_chart(histogram["edges"], histogram["counts"], "tokens")
        counted, total = about.get("counted"), about.get("n_samples")
        if is_number(counted) and is_number(total) and counted < total:
            note = f"{counted:,} of {total:,} samples were looked at"
    return Lengths(split, str(about.get("report") or ""), chart, note)


def _is_histogram(edges: Any, counts: Any) -> bool:
    if not isinstance(edges, list) or not isinstance(counts, list):
        return False
    return len(counts) > 0 and len(edges) == len(counts) + 1 and all(map(is_number, [*edges, *counts]))


def _text(path: Path) -> str:
    """What is in a file; nothing if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
