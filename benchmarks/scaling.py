"""Scaling: training by two data-parallel ranks, twice the tokens in the same time.

Each rank is pinned to a core of its own and has one thread; they talk through gloo. One process, pinned to one of these
cores, makes the same step with the tokens of a single rank. A figure `scaling_<way>` is how many tokens two ranks get
through in the time that one process needs for one token: 2 would be perfect. `copies` has the model on both ranks and
adds up gradients once a step; `zero_1`, `zero_2` and `zero_3` split it with FSDP2.

A step is that of a Llama-like model of 40 million parameters, with as many tokens a rank as `--tokens` says, in two
micro-batches.

    python benchmarks/scaling.py --quick --json figures.json
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common import Ratio, machine, parser, write_json
from ranks import Ranks

WAYS = {"copies": ("dp2", 1), "zero_1": ("fsdp2", 1), "zero_2": ("fsdp2", 2), "zero_3": ("fsdp2", 3)}
"""Layout and level of FSDP2."""
BAR = 1.7
N_RANKS = 2


@dataclass(frozen=True)
class Work:
    """Sizes of a step."""

    tokens: int
    """Of each rank."""
    hidden: int
    n_layers: int
    inner: int
    vocab: int
    sample: int = 256


FULL = Work(tokens=4096, hidden=512, n_layers=8, inner=1408, vocab=16384)
TINY = Work(tokens=256, hidden=64, n_layers=2, inner=96, vocab=512, sample=32)


def make_step(way: str, work: Work) -> Callable[[], float]:
    """A function that makes one optimizer step and gives its loss."""
    import torch
    import torch.distributed as dist

    from reallm import OptimizerConfig, ReaLModel, ReaLModelConfig
    from reallm.algorithms.sft.interface import SFTInterface
    from reallm.data.batching import gather
    from reallm.data.namedarray import NamedArray
    from reallm.parallel.mesh import Mesh
    from reallm.training.engine import TrainEngine

    config = ReaLModelConfig(
        n_layers=work.n_layers,
        hidden_size=work.hidden,
        n_q_heads=8,
        n_kv_heads=4,
        head_dim=work.hidden // 8,
        intermediate_size=work.inner,
        vocab_size=work.vocab,
        max_positions=work.sample,
    )
    layout, zero = WAYS.get(way, (None, 1))
    model = ReaLModel(config, seed=0, mesh=None if layout is None else Mesh.of(layout), zero=zero)
    optimizer = OptimizerConfig(lr=1e-4, schedule="constant", warmup_steps=0)
    engine = TrainEngine(model, optimizer, total_steps=1000, max_tokens_per_microbatch=work.tokens // 2)
    generator = torch.Generator().manual_seed(0)
    seqlens = {"input_ids": [[work.sample]], "loss_mask": [[work.sample]]}
    ids = torch.randint(0, work.vocab, (work.tokens // work.sample, work.sample), generator=generator)
    mask = torch.arange(work.sample) >= work.sample * 6 // 10  # 40 % of the tokens carry loss
    samples = [NamedArray(input_ids=row, loss_mask=mask).with_metadata(seqlens=seqlens) for row in ids]
    n_ranks = dist.get_world_size() if dist.is_initialized() else 1
    batch = gather(samples * n_ranks)  # the same mean loss, whatever the number of ranks

    def step() -> float:
        return engine.train_batch(batch, SFTInterface())["loss"]

    return step


def main() -> None:
    """Measure, print, and write the figures if asked to."""
    arguments = parser(str(__doc__).splitlines()[0])
    arguments.add_argument("--tokens", type=int, help="tokens of each rank in a step")
    arguments.add_argument("--tiny", action="store_true", help="only show that all still runs")
    options = arguments.parse_args()
    work = TINY if options.tiny else FULL
    if options.tokens:
        work = Work(**{**vars(work), "tokens": options.tokens})
    rounds = 2 if options.tiny else 5 if options.quick else 15
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < N_RANKS:
        raise SystemExit(f"{N_RANKS} ranks need as many cores, and {socket.gethostname()} gives {len(cores)}")
    print(f"{machine()}; a core for each rank; {work.tokens} tokens a rank; median and quartiles of the ratio")
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        alone = Ranks(cores[:1], None, make_step, work)
        together = Ranks(cores[:N_RANKS], store, make_step, work)
        seconds: dict[str, list[float]] = {"alone": [], **{way: [] for way in WAYS}}
        for turn in range(rounds + 1):
            names = list(seconds)
            losses = {}
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                took, (losses[name], *_) = (alone if name == "alone" else together).do(name)
                if turn:
                    seconds[name].append(took)
            check(losses)
        for side in (alone, together):
            side.close()
    figures: dict[str, float] = {}
    print(f"one process: {sorted(seconds['alone'])[rounds // 2]:.2f} s a step")
    for way in WAYS:
        ratio = Ratio.of([N_RANKS * each for each in seconds["alone"]], seconds[way])
        print(f"  {way:8s} {ratio}   {sorted(seconds[way])[rounds // 2]:.2f} s a step")
        figures[f"scaling_{way}"], figures[f"scaling_{way}_bar"] = ratio.median, BAR
    write_json(options.json, figures)


def check(losses: dict[str, float]) -> None:
    """Refuse to time what does not agree: the same mean loss, summed in another order."""
    for way, loss in losses.items():
        if abs(loss - losses["alone"]) > 1e-4 * losses["alone"]:
            raise SystemExit(f"{way} computes another loss than one process: {loss} instead of {losses['alone']}")


if __name__ == "__main__":
    main()
