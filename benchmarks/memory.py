"""Memory: what `reallm sft` says before training that it will take, against what the process then took.

Each case is a process of its own: two optimizer steps of two micro-batches each, of random tokens that all carry loss.
Measured is the peak of resident memory (on a GPU: of allocated memory) above what the process held before the model was
there, after steps of a tiny model have brought all code into memory. A figure is the smaller of estimate and
measurement over the larger; the bar is 0.85, within 15 %.

    python benchmarks/memory.py --quick --json figures.json
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from common import parser, write_json
from workloads import LLAMA_40M, LLAMA_TINY, SMOLLM2_135M, all_trained, hf_config

BAR = 0.85


@dataclass(frozen=True)
class Case:
    model: str
    lengths: tuple[int, ...]
    gradient_checkpointing: str
    rank: int | None = None
    """Rank of adapters on all linear layers, which alone are trained; None: all parameters are."""

    @property
    def name(self) -> str:
        lora = "" if self.rank is None else f"_lora{self.rank}"
        return f"{self.model}_{sum(self.lengths)}_{self.gradient_checkpointing}{lora}"


MODELS = {"llama_40m": LLAMA_40M, "smollm2_135m": SMOLLM2_135M}
QUICK = (
    Case("llama_40m", (1024, 512, 256, 256), "none"),
    Case("llama_40m", (1024, 512, 256, 256), "full"),
    Case("smollm2_135m", (512, 256, 256), "none"),
    Case("smollm2_135m", (512, 256, 256), "none", rank=16),
)
FULL = (
    *QUICK,
    Case("llama_40m", (1024, 512, 256, 256), "selective"),
    Case("llama_40m", (2048,) * 4, "none"),
    Case("llama_40m", (2048,) * 4, "full"),
    Case("smollm2_135m", (512, 256, 256), "selective"),
    Case("smollm2_135m", (2048, 2048), "full"),
    Case("smollm2_135m", (2048, 2048), "full", rank=16),
    Case("smollm2_135m", (2048, 2048), "none"),
)


def measure(case: Case) -> dict[str, float]:
    """Bytes estimated and taken, in this process."""
    import torch

    import reallm
    from peaks import peak, start_counting
    from reallm.training.memory import estimate

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = reallm.ReaLModel.config_from_llama(hf_config(MODELS[case.model]))
    if case.rank is not None:
        layers = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down")
        config = config.replace(lora=reallm.LoRAConfig(case.rank, 2.0 * case.rank, layers))
    told = estimate(config, dtype, device, case.lengths, gradient_checkpointing=case.gradient_checkpointing)

    _train(reallm.ReaLModel.config_from_llama(hf_config(LLAMA_TINY)), dtype, device, (64,), "none")
    before = start_counting(device)
    model = _train(config, dtype, device, case.lengths, case.gradient_checkpointing)
    measured = peak(device) - before
    del model
    return {"estimated": told.total, "measured": measured}


def _train(config: Any, dtype: Any, device: Any, lengths: tuple[int, ...], gradient_checkpointing: Any) -> Any:
    """Two steps of two micro-batches; the model, still in memory."""
    import reallm
    from reallm.algorithms.sft.interface import SFTInterface
    from reallm.data.batching import gather
    from reallm.training.engine import TrainEngine

    model = reallm.ReaLModel(config, dtype=dtype, device=device)
    model.gradient_checkpointing = gradient_checkpointing
    settings = reallm.OptimizerConfig(lr=1e-5, schedule="constant", warmup_steps=0)
    engine = TrainEngine(model, settings, total_steps=10, max_tokens_per_microbatch=sum(lengths))
    batch = gather([sample.for_reallm() for sample in all_trained(lengths * 2, config.vocab_size)])
    for _ in range(2):
        engine.train_batch(batch, SFTInterface())
    return model


def main() -> None:
    arguments = parser(__doc__.partition("\n")[0])
    arguments.add_argument("--case", help="measure one case in this process and print it as JSON")
    options = arguments.parse_args()
    if options.case:
        print(json.dumps(measure(next(case for case in FULL if case.name == options.case))))
        return
    figures: dict[str, float] = {}
    print("GiB: estimated, measured, the smaller over the larger")
    for case in QUICK if options.quick else FULL:
        command = [sys.executable, __file__, "--case", case.name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        sizes = json.loads(done.stdout)
        share = min(sizes.values()) / max(sizes.values())
        print(
            f"  {case.name:32s} {sizes['estimated'] / 2**30:6.2f} {sizes['measured'] / 2**30:6.2f}   {share:.3f}",
            flush=True,
        )
        figures |= {f"memory_{case.name}": share, f"memory_{case.name}_bar": BAR}
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
