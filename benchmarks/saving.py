"""Saving: how much of the time that a save takes is hidden behind training.

A 40M-parameter Llama is trained on packs of 2,048 tokens and saved with its training state, into a folder in `--dir`.
In each round, in turn: two steps without a save, two steps with a save in the background that begins before them, and
two steps after a save that is waited for; then saves with checksums and without, in turn. `saving_share_hidden` is the
share of the waited save's time that the one in the background does not take: 1 if saving costs nothing, 0 if it costs
as much as waiting. `saving_without_checksums` is the time of a waited save without checksums over that of one with.
The one without computes none and writes no lists of them.

    python benchmarks/saving.py --quick --json figures.json
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import reallm
from common import Ratio, interleave, machine, parser, write_json
from reallm.algorithms.sft.interface import SFTInterface
from reallm.checkpoint import save as writing
from reallm.data.batching import gather
from reallm.experiments.checkpointing import checkpointer
from reallm.experiments.checkpointing.checkpointer import Checkpointer
from reallm.experiments.checkpointing.state_file import Generators
from reallm.experiments.checkpointing.train_state import TrainState
from reallm.experiments.runs.folder import RunFolder
from reallm.training.engine import TrainEngine
from workloads import LLAMA_40M, all_trained

LENGTHS = (512,) * 4
N_STEPS = 2


class Trainer:
    """A model in training, and its saves into a folder."""

    def __init__(self, folder: Path) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        raw = {"model_type": "llama", "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, **LLAMA_40M}
        self.model = reallm.ReaLModel.from_llama(raw, dtype=dtype, device=device)
        settings = reallm.OptimizerConfig(lr=1e-5, schedule="constant", warmup_steps=0)
        self.engine = TrainEngine(self.model, settings, total_steps=1000, max_tokens_per_microbatch=sum(LENGTHS))
        self.batch = gather([sample.for_reallm() for sample in all_trained(LENGTHS, self.model.config.vocab_size)])
        self.savers = {
            kind: Checkpointer(RunFolder(folder / kind), keep_last=1, in_background=kind == "background")
            for kind in ("background", "waited")
        }
        self.engine.before_optimizer_step = self.savers["background"].wait_until_read

    def steps(self) -> None:
        for _ in range(N_STEPS):
            self.engine.train_batch(self.batch, SFTInterface())

    def save(self, kind: str) -> None:
        engine = self.engine.state(weights=self.engine.has_masters)
        state = TrainState(self.engine.step, None, {"model": engine}, {}, None, 0, 0.0, "", Generators.capture())
        self.savers[kind].save({"model": self.model.export()}, state)

    def save_and_wait(self) -> None:
        self.save("waited")
        self.savers["waited"].finish()

    def save_without_checksums(self) -> None:
        def write(path: Path, pieces: Sequence[memoryview]) -> None:
            with path.open("wb") as file:
                file.writelines(pieces)

        with (
            mock.patch.object(writing, "write_with_checksum", write),
            mock.patch.object(checkpointer, "write_checksums"),
        ):
            self.save_and_wait()

    def steps_after(self, kind: str) -> None:
        if kind == "waited":
            self.save_and_wait()
        else:
            self.save(kind)
        self.steps()
        self.savers[kind].finish()


def main() -> None:
    """Measure, print, and write the figures if asked to."""
    arguments = parser(str(__doc__).splitlines()[0])
    arguments.add_argument("--dir", type=Path, help="where to save; the folder for temporary files if left out")
    options = arguments.parse_args()
    rounds = 5 if options.quick else 21
    scratch = Path(tempfile.mkdtemp(prefix="reallm-saving-", dir=options.dir))
    try:
        trainer = Trainer(scratch)
        seconds = interleave(
            {
                "plain": trainer.steps,
                "background": lambda: trainer.steps_after("background"),
                "waited": lambda: trainer.steps_after("waited"),
            },
            rounds,
        )
        seconds |= interleave(  # by themselves, in either order: the first save after a step takes longer
            {"save": trainer.save_and_wait, "without": trainer.save_without_checksums}, 8 * rounds
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    median: dict[str, Any] = {name: statistics.median(values) for name, values in seconds.items()}
    hidden = 1 - (median["background"] - median["plain"]) / (median["waited"] - median["plain"])
    print(f"{machine()}; torch {torch.__version__}; medians of {rounds} rounds, over {N_STEPS} steps without a save")
    for name in ("background", "waited"):
        print(f"  {name:10s} {median[name] / median['plain']:.2f}")
    print(f"share of a save's time that is hidden behind training: {hidden:.2f}")
    without = Ratio.of(seconds["without"], seconds["save"])
    print(f"time of a save without checksums over one with them: {without}")
    write_json(
        options.json,
        {
            "saving_share_hidden": hidden,
            "saving_without_checksums": without.median,
            "saving_without_checksums_bar": 0.97,
        },
    )


if __name__ == "__main__":
    main()
