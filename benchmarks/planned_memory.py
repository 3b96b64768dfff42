"""Memory of the calls of PPO: what plans say that a rank takes, against what it then took.

Each call to a model, and a whole step with the models of all roles, is measured in processes of its own: the peak of
resident memory (on a GPU: of allocated memory) above what the process held before its models were there. A figure is
the smaller of plan and measurement over the larger; the bar is 0.85, within 15 %.

    python benchmarks/planned_memory.py --quick --json figures.json
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from common import parser, write_json
from planned_memory_work import CALLS, STEP, Case, make
from ranks import Ranks

BAR = 0.85
ON_TWO_RANKS = [(call, layout) for call in ("actor_train", "critic_train", STEP) for layout in ("dp2", "fsdp2", "tp2")]
QUICK = (
    *(Case("llama_40m", call) for call in (*CALLS, STEP)),
    Case("llama_40m", "actor_train", "fsdp2"),
    Case("smollm2_135m", "actor_gen"),
    Case("smollm2_135m", "ref_inf"),
)
FULL = (
    *(Case(model, call) for model in ("llama_40m", "smollm2_135m") for call in (*CALLS, STEP)),
    *(Case("llama_40m", call, layout) for call, layout in ON_TWO_RANKS),
)


def main() -> None:
    """Measure, print, and write the figures if asked to."""
    options = parser(__doc__.partition("\n")[0]).parse_args()
    figures: dict[str, float] = {}
    print("GiB: planned, measured, the smaller over the larger")
    for case in QUICK if options.quick else FULL:
        planned, measured = measured_on_ranks(case)
        share = min(planned, measured) / max(planned, measured)
        print(f"  {case.name:32s} {planned / 2**30:6.2f} {measured / 2**30:6.2f}   {share:.3f}", flush=True)
        figures |= {f"planned_memory_{case.name}": share, f"planned_memory_{case.name}_bar": BAR}
    write_json(options.json, figures)


def measured_on_ranks(case: Case) -> tuple[int, int]:
    """Bytes planned and taken, on the rank that took the most."""
    n_ranks = 1 if case.layout == "dp1" else 2
    with tempfile.TemporaryDirectory() as scratch:
        store = None if n_ranks == 1 else str(Path(scratch) / "store")
        ranks = Ranks(list(range(n_ranks)), store, make, case)
        _, found = ranks.do("measure")
        ranks.close()
    return max(found, key=lambda one: one[1])


if __name__ == "__main__":
    main()
