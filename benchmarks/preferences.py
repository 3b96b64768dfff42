"""Preference learning: optimizer steps of DPO and reward models, reallm against TRL, on the same pairs and weights.

SmolLM2-135M, six pairs of lognormal lengths that share their prompt, 40 % of a sequence is its answer; float32, AdamW,
clipping. Three works: DPO with the reference's log-probabilities cached and live, and reward modelling. The peers:

- `trl`: DPOTrainer or RewardTrainer as they come (padding, gradient checkpointing), cached with
  `precompute_ref_log_probs=True`;
- `trl_no_checkpointing`: the same with `gradient_checkpointing=False`;
- `padding_free`: transformers with all sequences packed into one row. TRL 1.16 has no trainer of preferences without
  padding: its DPOTrainer says that `padding_free=True` is unavailable and pads, and RewardTrainer has no such setting.

Each side is a process of its own, and they make their steps in turns; figures are ratios within a round. Before any
speed is printed, the losses of the first steps are compared. `runner_share_of_step` is the share of a step of
`reallm dpo` that is not spent in `TrainEngine.train_batch`: loading, the graph, moving data, logging.

    python benchmarks/preferences.py --quick --json figures.json --threads 1
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from common import Ratio, machine, parser, write_json
from preference_work import PreferenceJob, lognormal_pairs
from rounds import Pace, Steps, check_losses, run_sides, timed
from workers import Worker
from workloads import LOGNORMAL, Work, model_folder, why_not

TOLERANCE = 1e-3
"""Of the losses of the first steps, in nats."""
RUNNER_SHARE = 0.02
"""The most of a step that the runner may take."""
QUICK_SECONDS = 420.0
"""When `--quick` begins no more rounds."""


@dataclass(frozen=True)
class Comparison:
    """Sides of one work, the first of which is reallm."""

    name: str
    title: str
    sides: Mapping[str, str]
    bars: Mapping[str, float]
    quick: bool = True


COMPARISONS = (
    Comparison(
        "dpo",
        "DPO, the reference's log-probabilities cached",
        {
            "reallm": "preference_sides:reallm_dpo_cached",
            "padding_free": "preference_sides:padding_free_dpo",
            "trl": "preference_trl:trl_dpo_cached",
            "trl_no_checkpointing": "preference_trl:trl_dpo_cached_no_checkpointing",
        },
        {"trl": 3.0, "padding_free": 2.0},
    ),
    Comparison(
        "rw",
        "reward modelling",
        {
            "reallm": "preference_sides:reallm_rw",
            "padding_free": "preference_sides:padding_free_rw",
            "trl": "preference_trl:trl_rw",
        },
        {"trl": 3.0, "padding_free": 2.0},
    ),
    Comparison(
        "dpo_live",
        "DPO, the reference scoring each batch",
        {"reallm": "preference_sides:reallm_dpo_live", "trl": "preference_trl:trl_dpo_live"},
        {},
        quick=False,
    ),
)


def main() -> None:
    """Measure, print a table for each work, and write the figures if asked to."""
    started = time.monotonic()
    arguments_of = parser(str(__doc__).splitlines()[0])
    arguments_of.add_argument("--tiny", action="store_true", help="a tiny model, one round: does it all still run?")
    arguments_of.add_argument("--threads", type=int, default=None, metavar="N", help="threads of each side")
    arguments = arguments_of.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if arguments.threads is not None:
        os.environ |= {"OMP_NUM_THREADS": str(arguments.threads), "MKL_NUM_THREADS": str(arguments.threads)}

    import torch  # after the number of threads is set
    import transformers

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {text}", flush=True)

    work = Work("", "tiny", LOGNORMAL, 6, 4) if arguments.tiny else Work("", "smollm2", LOGNORMAL, 6, 14)
    if missing := why_not(work):
        raise SystemExit(missing)
    has_trl = find_spec("trl") is not None
    if not has_trl:
        say("TRL is not installed (pip install trl): its sides are left out")
    print(f"{machine()}; torch {torch.__version__}, transformers {transformers.__version__}")
    chosen = [one for one in COMPARISONS if one.quick or not arguments.quick]
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        job = _job(work, Path(scratch))
        say(f"{len(job.pairs)} pairs, {job.n_tokens:,} tokens")
        figures |= _runner(job, say)
        write_json(arguments.json, figures)
        for number, comparison in enumerate(chosen, 1):
            say(f"work {number} of {len(chosen)}: {comparison.title}")
            until = started + QUICK_SECONDS * number / len(chosen)
            pace = Pace(1) if arguments.tiny else Pace(3, until) if arguments.quick else Pace(7)
            sides = {name: run for name, run in comparison.sides.items() if has_trl or not name.startswith("trl")}
            if arguments.quick:
                sides.pop("trl_no_checkpointing", None)
            steps = run_sides(sides, job, pace, lambda steps: check_losses(steps, TOLERANCE, say), say)
            figures |= _report(comparison, steps)
            write_json(arguments.json, figures)  # after each work: a long run that is stopped leaves what it has
    say("done")


def _job(work: Work, scratch: Path) -> PreferenceJob:
    import torch

    from reallm import ReaLModel
    from reallm.demo.tokenizer import byte_tokenizer

    folder = model_folder(work.model, scratch)
    if not (folder / "tokenizer.json").is_file():
        byte_tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    reward = scratch / "reward"
    ReaLModel.from_pretrained(folder, is_critic=True, dtype=torch.float32, seed=1).save_pretrained(reward)
    vocab_size = 257 if work.model == "tiny" else config["vocab_size"]
    return PreferenceJob(folder, reward, lognormal_pairs(work.n_sequences, vocab_size), scratch)


def _runner(job: PreferenceJob, say: Callable[[str], None]) -> dict[str, float]:
    worker = Worker("runner", "preference_sides:runner_share", job)
    try:
        worker.ready()
        share = worker.step().loss
    finally:
        worker.close()
    say(f"the runner takes {share:.2%} of a step of DPO")
    return {"runner_share_of_step": share, "runner_share": RUNNER_SHARE / max(share, 1e-6), "runner_share_bar": 1.0}


def _report(comparison: Comparison, steps: Steps) -> dict[str, float]:
    """Print the table of a work and return its figures."""
    figures: dict[str, float] = {}
    ours = steps["reallm"]
    print(f"\n{comparison.title}; ratios are theirs over ours, medians of the rounds (quartiles)")
    print(f"  {'reallm':24s}{_median(ours):7.2f} s/step")
    for name, theirs in steps.items():
        if name == "reallm":
            continue
        ratio, bar = Ratio.of(*timed(theirs, ours)), comparison.bars.get(name)
        figures[f"{comparison.name}_over_{name}"] = ratio.median
        if bar is not None:
            figures[f"{comparison.name}_over_{name}_bar"] = bar
        print(f"  {name:24s}{_median(theirs):7.2f} s/step  {ratio!s:22s}{'' if bar is None else f'bar {bar:g}'}")
    print(flush=True)
    return figures


def _median(steps: Mapping[int, object]) -> float:
    """Seconds, the warm-up left out."""
    return statistics.median(step.seconds for turn, step in steps.items() if turn)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
