"""Adapters: optimizer steps of LoRA in reallm, against TRL with PEFT, on the same data, weights and initial adapter.

SmolLM2-135M-Instruct, six sequences of lognormal lengths, 40 % of the tokens carry loss, float32 on a CPU, adapters of
rank 16 on all linear layers, AdamW, clipping. The peers:

- `trl_default`: TRL's SFTTrainer as it comes (padding, gradient checkpointing), with a model of PEFT;
- `trl_padding_free`: with `padding_free=True`, as its documentation recommends.

Each side is a process of its own, and they make their steps in turns; figures are ratios within a round. Before any
speed is printed, the losses of the first steps are compared. Memory is the most that a process held during its first
two steps, above what it held before the model was built. What `reallm sft` says before training that adapters take is
compared with what they took by `memory.py`.

    python benchmarks/lora.py --quick --json figures.json
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers

from common import Ratio, machine, parser, write_json
from reallm import LoRAArgs, ReaLModel
from rounds import Pace, Steps, check_losses, run_sides, timed
from workloads import ALL, TINY, LoRAJob, Work, model_folder, samples, why_not

SIDES = {
    "reallm": "lora_sides:reallm",
    "trl_default": "lora_trl:trl_default",
    "trl_padding_free": "lora_trl:trl_padding_free",
}
RANK, ALPHA = 16, 32
MAIN = next(work for work in ALL if work.name == "smollm2_lognormal")
SPEED_BARS = {"trl_default": 3.0}
MEMORY_BARS = {"trl_default": 2.0}
TOLERANCE = {"cpu": 1e-4, "cuda": 2e-2}
"""Of the mean loss in nats, as in `sft.py`; adapters move less than all weights do."""
QUICK_SECONDS = 400.0
"""When `--quick` begins no more rounds."""


def main() -> None:
    """Measure, print a table, and write the figures if asked to."""
    started = time.monotonic()
    arguments_of = parser(str(__doc__).splitlines()[0])
    arguments_of.add_argument("--tiny", action="store_true", help="a tiny model, one round: does it all still run?")
    arguments = arguments_of.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {text}", flush=True)

    work = TINY if arguments.tiny else MAIN
    pace = Pace(1) if arguments.tiny else Pace(4, started + QUICK_SECONDS) if arguments.quick else Pace(7)
    sides = dict(SIDES)
    if any(find_spec(name) is None for name in ("trl", "peft")):
        say("TRL or PEFT is not installed (pip install trl peft): its sides are left out")
        sides = {"reallm": SIDES["reallm"]}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{machine()}; torch {torch.__version__}, transformers {transformers.__version__}")
    missing = why_not(work)
    if missing:
        raise SystemExit(f"left out: {missing}")
    with tempfile.TemporaryDirectory() as scratch:
        job = _job(work, Path(scratch), device)
        say(f"{work.title}: {job.n_tokens:,} tokens, {job.n_targets:,} carry loss; starting {len(sides)} processes")

        def check(steps: Steps) -> None:
            check_losses(steps, TOLERANCE[device], say)

        figures = _report(run_sides(sides, job, pace, check, say))
    write_json(arguments.json, figures)
    say("done")


def _job(work: Work, scratch: Path, device: str) -> LoRAJob:
    folder, adapter = model_folder(work.model, scratch), scratch / "adapter"
    ReaLModel.from_pretrained(folder, lora=LoRAArgs(rank=RANK, alpha=ALPHA)).save_pretrained(adapter)
    vocab_size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    return LoRAJob(folder, samples(work, vocab_size), device, adapter)


def _report(steps: Steps) -> dict[str, float]:
    """Print the table and return the figures."""
    figures: dict[str, float] = {}
    ours = steps["reallm"]
    memory = {name: max(step.peak_mb for turn, step in mine.items() if turn <= 1) for name, mine in steps.items()}
    print("\nratios are theirs over ours, medians of the rounds (quartiles)")
    for name, theirs in steps.items():
        if name == "reallm":
            print(f"  {name:20s}{memory[name]:8.0f} MB")
            continue
        speed, less = Ratio.of(*timed(theirs, ours)), memory[name] / memory["reallm"]
        print(f"  {name:20s}{memory[name]:8.0f} MB, {less:.2f} of ours; time {speed}")
        for figure, value, bar in (
            (f"lora_over_{name}", speed.median, SPEED_BARS.get(name)),
            (f"lora_memory_{name}_over_reallm", less, MEMORY_BARS.get(name)),
        ):
            figures[figure] = value
            if bar is not None:
                figures[f"{figure}_bar"] = bar
    return figures


if __name__ == "__main__":
    main()
