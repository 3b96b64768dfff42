"""Plans of PPO for the models, contexts and numbers of GPUs of ReaL's paper: the search against its baseline.

Mei et al. (2024, arXiv:2406.14088) train Llama models by PPO on up to 128 H100: an actor of 7B or 70B parameters with
its reference, a critic and a reward model of 7B. They report that their searched plans are on average 81 % faster than
symmetric ones with long contexts, and up to 3.58 times as fast as other systems. Here nothing is trained: steps are
simulated with the figures of data sheets (`reallm plan --machine h100`), and a table says how many times as fast the
plan of the search is as that of the heuristic, and what makes the difference.

    python benchmarks/real_plans.py --markdown benchmarks/results/plans.md
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import parser, write_json

if TYPE_CHECKING:
    from reallm.planning.job import PlannedJob
    from reallm.planning.search import SearchResult

SIZES = {
    "7B": {"n_layers": 32, "hidden_size": 4096, "n_q_heads": 32, "n_kv_heads": 32, "intermediate_size": 11008},
    "70B": {"n_layers": 80, "hidden_size": 8192, "n_q_heads": 64, "n_kv_heads": 8, "intermediate_size": 28672},
}
TOKENS_OF_STEP = 512 * 2048
"""Tokens of a step, prompts and answers: 512 sequences of 2,048, or fewer longer ones."""
PROMPT = 1024
N_MINIBATCHES = 8
SETTINGS = [
    ("7B", 2048, 16), ("7B", 8192, 16), ("7B", 2048, 32), ("7B", 8192, 32), ("7B", 2048, 64), ("7B", 8192, 64),
    ("7B", 2048, 128), ("7B", 8192, 128), ("70B", 2048, 64), ("70B", 8192, 64), ("70B", 2048, 128), ("70B", 8192, 128),
]  # fmt: skip
"""Size of the actor, context in tokens, GPUs."""
QUICK = [("7B", 2048, 16), ("70B", 8192, 128)]
WHY = (
    "The paper reports that its searched plans are on average 81 % faster than its heuristic with 8,192 tokens. Where",
    "the difference here is smaller, four things explain it.",
    "",
    "- The heuristic here takes the fewest ranks for a replica that memory allows, which with sharded optimizers on",
    "  80 GiB is often `tp2` or `tp4`: the layout of training is no bad one for generation then. The column *tp8* is",
    "  usual in pretraining instead: layers split over the whole node, and the fewest pipeline stages that fit. The",
    "  search gains more over it, most where sequences are short; much of that a better symmetric plan has too.",
    "- Most of a step is generation, which any plan spends at the bandwidth of the memory: stated figures have no time",
    "  for launching kernels, which makes split layers slow in a real engine without graphs.",
    "- Answers all have one length, as in the paper's measurements, so that no rank waits for a long one.",
    "- Reference and reward model only score: a tenth of a step or less. Where a plan has them side by side it saves",
    "  their communication, not their computation.",
)
"""What is said of the difference to the paper's figures."""
BAR = 1.0
"""The search must not be slower than its baseline."""


@dataclass(frozen=True)
class Row:
    """A setting, its plans, and the time that the search took."""

    actor: str
    context: int
    n_gpus: int
    found: SearchResult
    job: PlannedJob
    search_seconds: float
    tp8_seconds: float | None
    """Time of a step with `tp8` for all calls; None if it does not fit."""


def main() -> None:
    """Plan, print the table, and write it if asked to."""
    arguments_of = parser(str(__doc__).splitlines()[0])
    arguments_of.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table as Markdown")
    arguments = arguments_of.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import torch

    torch.set_num_threads(1)
    rows = []
    for setting in QUICK if arguments.quick else SETTINGS:
        rows.append(_planned(*setting))
        print(_line(rows[-1]), flush=True)
    if arguments.json is not None:
        figures: dict[str, float] = {}
        for row in rows:
            gain = row.found.gain
            if gain is not None:
                name = f"{row.actor}_{row.context}_{row.n_gpus}_search_over_heuristic"
                figures |= {name: round(gain, 3), f"{name}_bar": BAR}
        write_json(arguments.json, figures)
    if arguments.markdown is not None:
        arguments.markdown.write_text(_page(rows), encoding="utf-8")


def _planned(actor: str, context: int, n_gpus: int) -> Row:
    from reallm.planning.search import search

    job = _job(actor, context, n_gpus)
    started = time.process_time()
    found = search(job.simulator, fits=job.check_fits)
    return Row(actor, context, n_gpus, found, job, time.process_time() - started, _tp8_seconds(job))


def _tp8_seconds(job: PlannedJob) -> float | None:
    """The time of a step with layers split over whole nodes, and the fewest pipeline stages that fit."""
    from reallm.parallel.layout import Layout
    from reallm.planning.heuristic import uniform

    simulator, machine, stages = job.simulator, job.machine, 1
    while stages * machine.ranks_per_node <= machine.n_ranks:
        dp = machine.n_ranks // (stages * machine.ranks_per_node)
        plan = uniform(job.graph, Layout(dp, stages, machine.ranks_per_node))
        outcome = simulator.outcome(simulator.places(plan))
        if machine.fits(outcome.memory, outcome.host_memory):
            return outcome.seconds
        stages *= 2
    return None


def _job(actor: str, context: int, n_gpus: int) -> PlannedJob:
    from reallm.algorithms.graph import Graph
    from reallm.algorithms.ppo.config import PPOArgs, PPOConfig, ValueModelArgs
    from reallm.config.args import ModelArgs, ReferenceArgs, RewardArgs, SamplingArgs
    from reallm.model.config import ReaLModelConfig
    from reallm.planning.find_machine import find_machine
    from reallm.planning.job import PlannedJob
    from reallm.planning.workload import Lengths, Workload
    from reallm.plugins import registry
    from reallm_datasets.config import PromptOnlyDatasetConfig

    def model(size: str, *, is_critic: bool) -> ReaLModelConfig:
        return ReaLModelConfig(
            **SIZES[size], head_dim=128, vocab_size=32000, max_positions=context, is_critic=is_critic
        )

    answer = context - PROMPT
    checkpointing: Any = "full"
    config = PPOConfig(
        actor=ModelArgs(path=actor, gradient_checkpointing=checkpointing),
        critic=ValueModelArgs(path="7B", gradient_checkpointing=checkpointing),
        ref=ReferenceArgs(path=actor),
        reward=RewardArgs(path="7B"),
        ppo=PPOArgs(ppo_n_minibatches=N_MINIBATCHES, gen=SamplingArgs(max_new_tokens=answer)),
        dataset=PromptOnlyDatasetConfig(train_path="prompts.jsonl", train_bs_n_seqs=TOKENS_OF_STEP // context),
        max_tokens_per_microbatch=2 * context,
    )
    graph = Graph.of(registry.get("algorithm", "ppo"), config)
    sizes = {"actor": actor, "ref": actor, "critic": "7B", "reward": "7B"}
    models = {role: model(sizes[role], is_critic=role in ("critic", "reward")) for role in graph.roles}
    workload = Workload(
        TOKENS_OF_STEP // context,
        Lengths.constant(PROMPT),
        answers=Lengths.constant(answer),
        n_minibatches=N_MINIBATCHES,
    )
    return PlannedJob.of(config, graph, models, find_machine("h100", n_gpus), workload)


def _line(row: Row) -> str:
    outcome, baseline = row.found.outcome, row.found.baseline_outcome
    slow = "does not fit" if baseline is None else f"{baseline.seconds:.1f} s"
    gain = "" if row.found.gain is None else f", {row.found.gain:.2f} times"
    gain += "" if row.tp8_seconds is None else f" (tp8: {row.tp8_seconds / outcome.seconds:.2f} times)"
    return (
        f"{row.actor}+7B, {row.context:,} tokens, {row.n_gpus} GPUs: search {outcome.seconds:.1f} s, heuristic {slow}"
        f"{gain}; at most {row.found.gap:.0%} from the best; {row.found.n_evaluated:,} plans in "
        f"{row.search_seconds:.0f} s"
    )


def _page(rows: list[Row]) -> str:
    return "\n".join(_page_lines(rows)) + "\n"


def _page_lines(rows: list[Row]) -> Iterator[str]:
    yield "# Plans for the settings of ReaL's paper"
    yield ""
    yield "Written by `python benchmarks/real_plans.py --markdown benchmarks/results/plans.md`. Steps of PPO are"
    yield f"simulated with stated figures of H100 nodes: {N_MINIBATCHES} mini-batches, prompts of {PROMPT:,} tokens,"
    yield f"answers that fill the context, {TOKENS_OF_STEP:,} tokens in all; nothing is run. Plans may have smaller"
    yield "micro-batches than configured, offload copies, and bring them back beside the call before."
    yield ""
    yield (
        "| actor + critic | context | GPUs | search | heuristic | times as fast | tp8 | times as fast "
        "| from the best, at most | plans |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        baseline = row.found.baseline_outcome
        slow = "does not fit" if baseline is None else f"{baseline.seconds:.1f} s"
        gain = "" if row.found.gain is None else f"{row.found.gain:.2f}"
        seconds, tp8 = row.found.outcome.seconds, row.tp8_seconds
        split = "does not fit | " if tp8 is None else f"{tp8:.1f} s | {tp8 / seconds:.2f}"
        yield (
            f"| {row.actor} + 7B | {row.context:,} | {row.n_gpus} | {seconds:.1f} s | {slow} | {gain} | {split} "
            f"| {row.found.gap:.0%} | {row.found.n_evaluated:,} |"
        )
    yield ""
    yield from WHY
    yield ""
    yield "The plans, call by call (searched; heuristic); with the tokens of micro-batches that are smaller than those"
    yield "configured, twice the context:"
    for row in rows:
        yield ""
        yield f"**{row.actor} + 7B, {row.context:,} tokens, {row.n_gpus} GPUs**"
        yield ""
        yield "| call | searched | seconds | heuristic | seconds |"
        yield "|---|---|---|---|---|"
        for call in row.job.graph.calls:
            mine = row.found.plan.calls[call.name]
            seconds = row.job.costs.call(call.name, mine).seconds
            cells = [call.name, _plan_text(mine), f"{seconds:.1f}", "", ""]
            if row.found.baseline is not None:
                other = row.found.baseline.calls[call.name]
                cells[3:] = [_plan_text(other), f"{row.job.costs.call(call.name, other).seconds:.1f}"]
            yield f"| {' | '.join(cells)} |"


def _plan_text(plan: Any) -> str:
    words = [plan.layout.short, *["offloaded"] * plan.offload, *["prefetched"] * plan.prefetch]
    if plan.max_tokens is not None:
        words.append(f"{plan.max_tokens:,} tokens")
    return ", ".join(words)


if __name__ == "__main__":
    main()
