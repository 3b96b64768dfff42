"""Planning: how long one process takes, on one core, to plan the reallocation of a 70B model between many ranks.

A plan says for every rank what it sends, to whom, and what it keeps; each rank of a job makes it for itself, once for a
pair of layouts. Timed are the plan of Llama 3 70B (723 parameters) with empty caches, including the shapes of the
network, and the transfers of the busiest sender, without importing torch; in process time, which a busy machine
disturbs little.
Nothing is allocated and no rank is started. The bars are 2 s for 128 ranks and 20 s for 1,024.
`planning_<ranks>_ranks_speedup_over_bar` is how many times as fast the slowest of the moves is. That each plan sends as
little as can be is checked before its time is printed.

    python benchmarks/planning.py --quick --json figures.json
"""

from __future__ import annotations

import os
import statistics
import time
from typing import TYPE_CHECKING

from common import machine, parser, write_json

if TYPE_CHECKING:
    from reallm.reallocation.plan import Plan

BARS_S = {128: 2.0, 1024: 20.0}
"""By the number of ranks."""
MOVES = {
    128: [("tp8pp4dp4", "tp4dp32"), ("tp8pp8dp2", "fsdp128"), ("fsdp128", "tp8dp16"), ("fsdp64", "tp8dp8@64-127")],
    1024: [
        ("tp8pp16dp8", "tp4dp256"),
        ("tp8pp8dp16", "fsdp1024"),
        ("fsdp1024", "tp8dp128"),
        ("fsdp512", "tp8dp64@512-1023"),
    ],
}
"""From which layout to which: pipelines and FSDP train, tensor parallelism generates; the last has ranks of its own."""


def timed_plan(source: str, target: str) -> tuple[float, Plan]:
    """Process time in seconds and the plan, made with empty caches."""
    from reallm import Layout, ReaLModelConfig
    from reallm.model.parameters import parameter_infos
    from reallm.reallocation.plan import plan

    parameter_infos.cache_clear()
    plan.cache_clear()
    config = ReaLModelConfig(
        n_layers=80,
        hidden_size=8192,
        n_q_heads=64,
        n_kv_heads=8,
        head_dim=128,
        intermediate_size=28672,
        vocab_size=128256,
        max_positions=8192,
    )
    start = time.process_time()
    made = plan(config, Layout.parse(source), Layout.parse(target))
    made.for_rank(max(made.ranks, key=made.sent_elements))
    return time.process_time() - start, made


def main() -> None:
    """Measure, print a table, and write the figures if asked to."""
    options = parser(str(__doc__).splitlines()[0]).parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import torch

    torch.set_num_threads(1)
    print(f"{machine()}; Llama 3 70B in bfloat16; seconds are medians (least to most)")
    print(f"{'ranks':>5}  {'from':12} {'to':18} {'sent':>8} {'messages':>11}  busiest sender  seconds")
    figures: dict[str, float] = {}
    for n_ranks, moves in MOVES.items():
        slowest = 0.0
        for source, target in moves:
            seconds = []
            for _ in range(3 if options.quick else 9):
                took, made = timed_plan(source, target)
                seconds.append(took)
            if made.total_elements != made.lower_bound:
                raise SystemExit(f"{source} to {target} sends more than it must")
            median = statistics.median(seconds)
            slowest = max(slowest, median)
            above = 100 * (made.max_sent / made.min_max_sent - 1)
            print(
                f"{n_ranks:5,}  {source:12} {target:18} {2e-12 * made.total_elements:5.1f} TB {made.n_messages:11,}  "
                f"{above:4.1f} % above it  {median:.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
            )
        name = f"planning_{n_ranks}_ranks_speedup_over_bar"
        figures[name], figures[f"{name}_bar"] = BARS_S[n_ranks] / slowest, 1.0
        print(f"{n_ranks:,} ranks: {figures[name]:.1f} times as fast as the bar of {BARS_S[n_ranks]:g} s")
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
