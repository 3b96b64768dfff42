"""Renders `summary.html` of a run: charts, samples, data, settings and next steps, in one file without scripts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from reallm.atomic_files import atomic_write
from reallm.errors import DataError, counted
from reallm.experiments.reports.charts import BarChart, LineChart, bar_chart, line_chart
from reallm.experiments.reports.loading_code import is_reward_model, loading_code, models_of
from reallm.experiments.reports.metric_guide import GUIDES, guide_of
from reallm.experiments.reports.number_format import duration, number, short
from reallm.experiments.reports.rollout_groups import shown_steps
from reallm.experiments.reports.sample_table import prompt_histories
from reallm.experiments.reports.templates import template
from reallm.experiments.runs.files import json_lines, json_object
from reallm.experiments.runs.folder import RunFolder
from reallm.experiments.runs.info import RunInfo, read_run
from reallm.experiments.runs.metrics import (
    Curve,
    headline,
    is_evaluation,
    is_loss,
    is_number,
    is_reward,
    read_curves,
    tokens_trained,
)
from reallm.experiments.runs.reward_failures import reward_failures
from reallm.foreign_files import read_bytes, reading

TITLES = {
    "rewards": "Rewards of chosen and rejected answers, and the margins between them",
    "accuracies": "Accuracy: share of pairs whose chosen answer has the higher reward",
    "logps": "Log-probabilities of chosen and rejected answers (nats)",
    "accuracy": "Accuracy: share of tokens that the model ranks first",
    "tokens_per_s": "Speed (tokens/s)",
    "memory_gib": "Memory (GiB)",
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
}
"""Titles of known charts (see `_chart_of`), in their order; other metrics come first."""

PAIR_ACCURACY = "Accuracy: share of pairs whose better answer has the higher score"
"""Title of the accuracy of a reward model."""

UNDRAWN = frozenset({"loss", "perplexity", "loss_tokens", "tokens", "epoch", "skipped_steps", "failed_ratio"})
"""Metrics without a chart among the others: losses have their own charts, and others of them show the same."""

SIGNED = frozenset({"rewards", "logps"})
"""Charts whose axis need not begin at 0."""

EXACT = frozenset({"lr", "memory_gib"})
"""Metrics without noise, over which no trend is drawn."""


@dataclass(frozen=True)
class Tile:
    """A number of the headline with its label, and a note below it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class NextStep:
    """Something to do with a run, and the command or program for it."""

    title: str
    code: str


@dataclass(frozen=True)
class SplitStats:
    """The samples of a split: the dataset's report, those of a mixture's sources, and the histogram of lengths."""

    split: str
    report: str
    sources: list[str]
    chart: BarChart | None
    note: str


def write_summary_page(folder: Path) -> Path:
    """Write `summary.html` into the folder of a run, whatever its status, and return its path.

    Parts for which the folder has no files are left out.

    Raises:
        RunError: there is no run in the folder.
        DataError: the page cannot be written.
    """
    html = render(folder, now=datetime.now())
    path = RunFolder(folder).page
    with atomic_write(path) as temporary:
        temporary.write_bytes(html.encode(errors="replace"))  # JSON can hold lone surrogates, which UTF-8 cannot
    return path


def render(folder: Path, *, now: datetime) -> str:
    """The page of a run as HTML.

    Args:
        folder: folder of the run.
        now: time of writing, which the page shows.

    Raises:
        RunError: there is no run in the folder.
    """
    run = read_run(folder)
    files = RunFolder(folder)
    curves = read_curves(files.metrics)
    return template("summary.html.j2").render(
        run=run,
        written=f"{now:%Y-%m-%d %H:%M:%S}",
        tiles=tiles(run, curves),
        skipped=skipped_steps(curves),
        reward_failures=reward_failures(curves),
        next_steps=next_steps(run),
        losses=loss_charts(curves),
        charts=other_charts(curves, run.algorithm),
        lengths=[_split_stats(split, content) for split, content in json_object(files.data).items()],
        prompts=prompt_histories(json_lines(files.samples)),
        rollouts=shown_steps(files.rollouts),
        graph=Markup(_text(files.graph)),  # this program has written it, with all text escaped
        config=_text(files.config),
    )


def tiles(run: RunInfo, curves: Mapping[str, Curve]) -> list[Tile]:
    """The numbers of the headline."""
    found = []
    for name in headline(curves):
        curve = curves[name]
        better = max if is_reward(name) else min
        step, best = better(curve, key=lambda point: point[1])
        note = f"from {number(curve[0][1])}" if len(curve) > 1 else ""
        if is_evaluation(name) and len(curve) > 1:
            note = f"{'highest' if is_reward(name) else 'lowest'} {number(best)} at step {step:,}"
        found.append(Tile(_title(name), number(curve[-1][1]), note))
    total = [] if run.total_steps is None else [f"of {run.total_steps:,}"]
    epochs = [] if run.epochs is None else [f"{run.epochs:.3g} epoch{'' if run.epochs == 1 else 's'}"]
    found.append(Tile("Steps", f"{run.steps:,}", ", ".join(total + epochs)))
    if run.seconds is not None:
        each = f"{run.seconds / run.steps:.3g} s a step" if run.steps else ""
        found.append(Tile("Time", duration(run.seconds), each))
    tokens = tokens_trained(curves)
    if tokens:
        samples = "" if run.train_samples is None else counted(run.train_samples, "sample")
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
    """Number of steps without an update, because loss or gradients were not finite."""
    return round(sum(curve[-1][1] for name, curve in curves.items() if name.endswith("/skipped_steps")))


def next_steps(run: RunInfo) -> list[NextStep]:
    """Next steps: resuming the run, loading its model, generating with it, and running it again."""
    steps = []
    if run.resume_command:
        steps.append(NextStep("Continue where it ended", run.resume_command))
    best = run.best.checkpoint if run.best else None
    which = "newest checkpoint" if best is None else "best checkpoint"
    checkpoint = best or run.checkpoint
    for model in models_of(checkpoint)[:1] if checkpoint else []:
        code = loading_code(model)
        lines = [*code.imports, "", *code.statements]
        steps.append(NextStep(f"Load it with {code.package} ({which})", "\n".join(lines)))
        if is_reward_model(model):
            continue
        question = run.question or '"Once upon a time"'
        steps.append(NextStep("Ask it something", f"reallm generate --model {shlex.quote(str(model))} {question}"))
    config = RunFolder(run.path).config
    if run.algorithm and config.is_file():
        again = f"--config {shlex.quote(str(config))} name=again"
        steps.append(NextStep("Run it again, with changes", f"reallm {run.algorithm} {again} optimizer.lr=1e-5"))
    return steps


def loss_charts(curves: Mapping[str, Curve]) -> list[LineChart]:
    """A chart for each train call, with its training and validation loss."""
    trained = [name for name in curves if is_loss(name) and not is_evaluation(name)]
    evaluated = [name for name in curves if is_loss(name) and is_evaluation(name)]
    if len(trained) == 1:
        groups = [[*trained, *evaluated]]
    else:
        groups = [[name, *(other for other in evaluated if other == f"eval/{name}")] for name in trained]
        groups += [[name] for name in evaluated if not any(name in group for group in groups)]
    return [
        line_chart("Loss" if len(groups) == 1 else _title(group[0]), {name: curves[name] for name in group})
        for group in groups
    ]


def other_charts(curves: Mapping[str, Curve], algorithm: str | None = None) -> list[LineChart]:
    """A chart for each other metric, or for a few that belong together; several calls are drawn in one chart."""

    def chart_of(metric: str) -> str:
        return _chart_of(metric, algorithm)

    names = sorted(curves, key=is_evaluation)  # training gets the first color in each chart
    charts = dict.fromkeys(map(chart_of, names))
    guides = {guide.title: guide for guide in GUIDES}
    titles = {
        **dict(zip(guides, guides, strict=True)),
        **TITLES,
        **({"accuracy": PAIR_ACCURACY} if "rewards" in charts else {}),
    }
    known = list(titles)
    order = sorted(charts, key=lambda chart: 1 + known.index(chart) if chart in known and chart != "accuracy" else 0)
    return [
        line_chart(
            titles.get(chart, chart),
            {name: curves[name] for name in names if chart_of(name) == chart},
            from_zero=guides[chart].from_zero if chart in guides else chart in titles and chart not in SIGNED,
            is_noisy=chart not in EXACT,
            guide=guides.get(chart),
        )
        for chart in order
        if chart not in UNDRAWN
    ]


def _chart_of(metric: str, algorithm: str | None) -> str:
    """The chart that a metric is drawn in: that of its guide, `rewards` or `logps` of preferences, or else the last
    part of its name."""
    if guide := guide_of(metric, algorithm):
        return guide.title
    *groups, leaf = metric.split("/")
    if leaf == "margin" or (groups[-1:] == ["rewards"] and leaf != "accuracies"):
        return "rewards"
    return "logps" if groups[-1:] == ["logps"] else leaf


def _title(name: str) -> str:
    """`Training loss` of `train/loss`, `Validation reward` of `eval/reward`, `critic loss` of `critic/loss`."""
    phase, _, leaf = name.rpartition("/")
    known = {"train": "Training", "eval": "Validation"}
    return f"{known.get(phase, phase)} {leaf}"


def _values(curves: Mapping[str, Curve], leaf: str) -> list[float]:
    """The values of the first metric with this last part of its name."""
    return next(([value for _, value in curve] for name, curve in curves.items() if name.endswith(f"/{leaf}")), [])


def _split_stats(split: str, content: Any) -> SplitStats:
    content = content if isinstance(content, dict) else {}
    histogram = content.get("lengths")
    chart, note = None, ""
    if isinstance(histogram, dict) and _is_histogram(histogram.get("edges"), histogram.get("counts")):
        chart = bar_chart(histogram["edges"], histogram["counts"], "tokens")
        counted, total = content.get("counted"), content.get("n_samples")
        if is_number(counted) and is_number(total) and counted < total:
            note = f"{counted:,} of {total:,} samples were measured"
    return SplitStats(split, str(content.get("report") or ""), _source_lines(content.get("sources")), chart, note)


def _source_lines(sources: Any) -> list[str]:
    """A line about each source of a mixture."""
    sources = sources if isinstance(sources, dict) else {}
    return [f"{name}: {about.get('report', '')}" for name, about in sources.items() if isinstance(about, dict)]


def _is_histogram(edges: Any, counts: Any) -> bool:
    if not isinstance(edges, list) or not isinstance(counts, list):
        return False
    return len(counts) > 0 and len(edges) == len(counts) + 1 and all(map(is_number, [*edges, *counts]))


def _text(path: Path) -> str:
    """The content of a file; empty if it cannot be read."""
    with suppress(DataError), reading(path, error=DataError):
        return read_bytes(path).decode("utf-8", errors="replace")
    return ""
