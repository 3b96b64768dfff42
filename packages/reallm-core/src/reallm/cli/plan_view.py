"""Output of `reallm plan`: tables of calls and moves, memory, what determines the step; or JSON, or a drawing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reallm.cli.tables import duration, numbers_table, size
from reallm.errors import counted
from reallm.experiments.reports.number_format import short
from reallm.experiments.reports.timeline_layout import draw_timeline, ranks_alike, ranks_text
from reallm.model.parameters import n_parameters
from reallm.parallel.layout import Layout
from reallm.planning.configured_workload import ConfiguredWorkload
from reallm.planning.execution_plan import ExecutionPlan
from reallm.planning.job import PlannedJob
from reallm.planning.memory_levels import RankMemory
from reallm.planning.search import SearchResult
from reallm.planning.simulation import Simulation
from reallm.planning.what_if import Change, bottleneck, helpful_changes
from reallm.planning.workload import Lengths
from reallm.training.memory import size_text

MAX_CHANGES = 3
"""Number of changes that are told."""
MAX_ITEMS = 4
"""Number of items that are named of a rank's memory."""
MAX_GROUPS = 8
"""Number of groups of ranks whose memory is listed; of more, the fullest."""
PHRASES = {
    "call": "{}",
    "move": "moving weights of {}",
    "reload": "bringing {} back from host memory",
    "offload": "offloading {}",
    "data": "sending {}",
}
"""How parts of a step are named in sentences, by their kind."""


@dataclass(frozen=True)
class PlannedStep:
    """A plan, its simulated step, and how it was found."""

    job: PlannedJob
    plan: ExecutionPlan
    simulation: Simulation
    search: SearchResult | None = None
    """None: the plan was given."""

    @property
    def fullest(self) -> int:
        """The rank that holds the most memory at a time."""
        return max(self.simulation.memory, key=lambda rank: self.simulation.memory[rank].peak)

    @property
    def fits(self) -> bool:
        """Whether it fits into the memory of the machine."""
        memory = self.simulation.memory.values()
        return all(self.job.machine.fits(one.peak, one.host_peak) for one in memory)

    @property
    def assignments(self) -> list[str]:
        """The keys that ask for this plan."""
        return self.plan.assignments(self.job.graph)


def to_json(algorithm: str, step: PlannedStep) -> dict[str, Any]:
    """The output of `--json`. Keys are only ever added."""
    job, simulation = step.job, step.simulation
    machine = job.machine
    return {
        "algorithm": algorithm,
        "machine": machine.name,
        "nodes": machine.n_nodes,
        "ranks": machine.n_ranks,
        "memory_bytes": machine.memory,
        "step_seconds": simulation.seconds,
        "fits": step.fits,
        "idle_share": _idle(simulation),
        "calls": [_call_json(step, call.name) for call in job.graph.calls],
        "moves": [
            {"for": move.calls, "role": move.role, "from": str(move.source), "to": str(move.target),
             "bytes": move.n_bytes, "seconds": move.seconds}
            for move in _moves(step)
        ],
        "memory": [
            {"ranks": list(ranks), "peak_bytes": one.peak, "call": one.peak_call, "items": dict(one.peak_items)}
            for ranks, one in _memory_of_groups(step)
        ],
        "critical_path": [
            {"kind": span.kind, "name": span.name, "start": span.start, "end": span.end}
            for span in simulation.critical_path
        ],
        "changes": [{"change": one.text, "step_seconds": one.seconds} for one in _changes(step)],
        "search": None if step.search is None else _search_json(step.search),
        "assignments": step.assignments,
    }  # fmt: skip


def _call_json(step: PlannedStep, name: str) -> dict[str, Any]:
    plan = step.plan.calls[name]
    cost = step.job.costs.call(name, plan)
    start, end = step.simulation.calls[name]
    return {
        "call": name,
        "layout": str(plan.layout),
        "offload": plan.offload,
        "prefetch": plan.prefetch,
        "max_tokens_per_microbatch": _max_tokens(step, name),
        "microbatches": cost.n_microbatches,
        "start": start,
        "end": end,
        "compute_seconds": cost.compute,
        "communication_seconds": cost.communication,
        "bubble_seconds": cost.bubble,
        "contention_seconds": _contention(step, name),
    }


def _max_tokens(step: PlannedStep, name: str) -> int | None:
    """The most tokens of a call's micro-batches; None of calls that have none."""
    call = next(one for one in step.job.graph.calls if one.name == name)
    if call.kind in ("generate", "reward"):
        return None
    return step.plan.calls[name].max_tokens or step.job.settings.max_tokens_of(call)


def _contention(step: PlannedStep, name: str) -> float:
    """Seconds that a call takes longer since other ranks of its nodes compute as well."""
    cost = step.job.costs.call(name, step.plan.calls[name])
    start, end = step.simulation.calls[name]
    return max(0.0, end - start - cost.seconds) if cost.contention else 0.0


def _search_json(found: SearchResult) -> dict[str, Any]:
    return {
        "is_best": found.is_best,
        "lower_bound_seconds": found.lower_bound,
        "plans_simulated": found.n_evaluated,
        "heuristic_seconds": None if found.baseline_outcome is None else found.baseline_outcome.seconds,
    }


def print_plan(algorithm: str, step: PlannedStep, workload: ConfiguredWorkload) -> None:
    """Print tables and a summary as wide as the terminal; a pipe is 80 columns wide."""
    console = Console(highlight=False)
    for title, text in _head(algorithm, step, workload):
        console.print(Text.assemble((f"{title:10}", "bold"), text))
    console.print()
    console.print(_calls_table(step))
    if moves := _moves_table(step):
        console.print()
        console.print(moves)
    console.print()
    console.print(_memory_table(step))
    console.print()
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for title, text in _summary(step):
        grid.add_row(title, Text(text))
    console.print(grid)
    console.print()
    console.print(Text("the same plan as keys:", style="bold"))
    for assignment in step.assignments:
        console.print(Text(f"  {assignment}"), soft_wrap=True)


def draw(path: Path, algorithm: str, step: PlannedStep) -> None:
    """Draw the step into an SVG file: what ranks do over time, and the memory that they hold.

    Raises:
        DataError: the file cannot be written.
    """
    from reallm.experiments.reports.timeline_svg import write_timeline_svg  # imports jinja2

    graph, machine, simulation = step.job.graph, step.job.machine, step.simulation
    roles = graph.all_roles
    colors = {call.name: roles.index(call.role) % 6 for call in graph.calls}
    memory = {rank: one.over_time for rank, one in simulation.memory.items()}
    subtitle = f"{duration(simulation.seconds)} a step; height of the grey curves: {size_text(machine.memory)}"
    title = f"{algorithm} on {counted(machine.n_ranks, 'rank')} of {machine.name}"
    write_timeline_svg(path, draw_timeline(title, subtitle, simulation.spans, colors, memory, capacity=machine.memory))


def _head(algorithm: str, step: PlannedStep, workload: ConfiguredWorkload) -> Iterator[tuple[str, str]]:
    job, work = step.job, workload.workload
    machine = job.machine
    models = ", ".join(f"{role} {short(n_parameters(model))}" for role, model in job.models.items())
    nodes = f" on {counted(machine.n_nodes, 'node')}" if machine.n_nodes > 1 else ""
    yield "plan", f"{algorithm} on {counted(machine.n_ranks, 'rank')} of {machine.name}{nodes}"
    yield "models", models
    rows = "prompt" if work.answers.longest else "row"
    text = f"{counted(work.n_prompts, rows)} of {_lengths(work.prompts)} tokens ({workload.prompts_from})"
    if work.answers.longest:
        answers = counted(work.n_answers, "answer")
        text += f", {answers} each of {_lengths(work.answers)} tokens ({workload.answers_from})"
    yield "step", text
    sources = sorted({job.costs.rates[role].source for role in job.models})
    yield "times", " and ".join(sources)


def _lengths(lengths: Lengths) -> str:
    if lengths.values[0] == lengths.longest:
        return f"{lengths.longest:,}"
    return f"{lengths.mean:,.0f} (at most {lengths.longest:,})"


def _calls_table(step: PlannedStep) -> Table:
    contention = {call.name: _contention(step, call.name) for call in step.job.graph.calls}
    crowded = ["crowded"] if any(contention.values()) else []
    limits = {call.name: _max_tokens(step, call.name) for call in step.job.graph.calls}
    tokens = ["Tokens"] if any(one.max_tokens is not None for one in step.plan.calls.values()) else []
    columns = "Call", "layout", "Ranks", "Time", "compute", "comm.", "bubble", *crowded, "Parts", *tokens
    table = numbers_table(*columns, left=("layout",))
    for call in step.job.graph.calls:
        plan = step.plan.calls[call.name]
        cost = step.job.costs.call(call.name, plan)
        words = [plan.layout.short.partition("@")[0]] if call.kind != "reward" else []
        words += ["offloaded"] * plan.offload + ["prefetched"] * plan.prefetch
        seconds = cost.seconds + contention[call.name]
        parts = [cost.compute, cost.communication, cost.bubble, *([contention[call.name]] if crowded else [])]
        table.add_row(
            call.name,
            ", ".join(words),
            ranks_text(plan.layout.ranks).partition(" ")[2],
            duration(seconds),
            *(f"{100 * part / (seconds or 1):.0f} %" for part in parts),
            str(cost.n_microbatches),
            *([f"{limits[call.name]:,}" if limits[call.name] else ""] if tokens else []),
        )
    return table


@dataclass(frozen=True)
class _Move:
    """The weights of a role, from its home to another copy, once in a step."""

    calls: str
    """The calls that use the copy."""
    role: str
    source: Layout
    target: Layout
    n_bytes: int
    seconds: float


def _moves(step: PlannedStep) -> list[_Move]:
    job = step.job
    placement, found = job.placement(step.plan), []
    for role in job.graph.updated_roles + job.graph.trained_roles:
        home, *others = placement.copies(role)
        for layout in others:
            calls = ", ".join(name for name, own in placement.calls_of(role).items() if own == layout)
            cost = job.costs.move(role, home, layout)
            found.append(_Move(calls, role, home, layout, cost.n_bytes, cost.seconds))
    return found


def _moves_table(step: PlannedStep) -> Table | None:
    moves = _moves(step)
    if not moves:
        return None
    table = numbers_table("Weights", "from", "to", "Sent", "Time", left=("from", "to"))
    for one in moves:
        layouts = one.source.short, one.target.short
        table.add_row(f"{one.role} for {one.calls}", *layouts, size(one.n_bytes), duration(one.seconds))
    return table


def _memory_of_groups(step: PlannedStep) -> list[tuple[tuple[int, ...], RankMemory]]:
    """Ranks that do and hold the same, and their memory, the fullest first."""
    memory = step.simulation.memory
    groups = ranks_alike(step.simulation.spans, {rank: one.over_time for rank, one in memory.items()})
    return sorted(((ranks, memory[ranks[0]]) for ranks in groups), key=lambda item: (-item[1].peak, item[0]))


def _memory_table(step: PlannedStep) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("Memory", no_wrap=True)
    table.add_column("most", justify="right", no_wrap=True)
    table.add_column("in", no_wrap=True)
    table.add_column("of which", overflow="fold")
    groups = _memory_of_groups(step)
    for ranks, one in groups[:MAX_GROUPS]:
        items = ", ".join(f"{what} {size_text(n)}" for what, n in list(one.peak_items.items())[:MAX_ITEMS])
        table.add_row(ranks_text(ranks), size_text(one.peak), one.peak_call, items)
    if len(groups) > MAX_GROUPS:
        table.add_row(f"and {len(groups) - MAX_GROUPS} more groups, which hold less", "", "", "")
    return table


def _summary(step: PlannedStep) -> Iterator[tuple[str, str]]:
    simulation, machine = step.simulation, step.job.machine
    yield "Step", f"{duration(simulation.seconds)}; ranks are idle for {_idle(simulation):.0%} of it"
    fullest = simulation.memory[step.fullest]
    yield (
        "Memory",
        (
            f"{'fits' if step.fits else 'DOES NOT FIT'}: at most {size_text(fullest.peak)} of "
            f"{size_text(machine.memory)}, on rank {step.fullest} in {fullest.peak_call}"
        ),
    )
    if step.search is not None:
        yield from _found(step.search)
    worst = bottleneck(simulation)
    yield (
        "Bottleneck",
        f"{PHRASES[worst.kind].format(worst.name)}: {duration(worst.seconds)}, {worst.share:.0%} of the step",
    )
    changes = _changes(step)[:MAX_CHANGES]
    for number, change in enumerate(changes):
        saved = 1 - change.seconds / simulation.seconds
        yield "" if number else "Would help", f"{change.text}: {duration(change.seconds)} a step, {saved:.0%} less"
    if not changes:
        yield "Would help", "no single change by itself"


def _found(search: SearchResult) -> Iterator[tuple[str, str]]:
    if search.is_best:
        without = " without prefetches" if any(one.prefetch for one in search.plan.calls.values()) else ""
        simulated = counted(search.n_evaluated, "plan")
        yield "Search", f"no other plan of aligned ranks is faster{without}; {simulated} simulated"
    else:
        bound = duration(search.lower_bound)
        yield (
            "Search",
            (
                f"{counted(search.n_evaluated, 'plan')} simulated; no plan can take less than {bound}, so that this "
                f"one is at most {search.gap:.0%} slower than the best"
            ),
        )
    if search.baseline_outcome is None:
        yield "Heuristic", "one layout for each role on all ranks does not fit into memory"
    else:
        yield (
            "Heuristic",
            (
                f"one layout for each role on all ranks takes {duration(search.baseline_outcome.seconds)}, "
                f"{search.gain:.2f} times as long"
            ),
        )


def _changes(step: PlannedStep) -> list[Change]:
    return helpful_changes(step.job, step.plan, step.simulation.seconds)


def _idle(simulation: Simulation) -> float:
    return sum(simulation.idle.values()) / len(simulation.idle) if simulation.idle else 0.0
