"""Offloading: a model out to host memory and back, against plain copies, and a forward pass while layers come back.

On a GPU `out` and `back` are the bandwidth of an offload as a share of that of one plain copy to and from pinned memory
(1: as fast as can be). Everywhere `overlap_whole` and `overlap_stream` say how many times as long it takes to bring the
model back first and compute afterwards, as a forward pass that brings layers back while it computes: once for good, or
letting each layer go again. On a GPU one such pass is traced too, into the file that `--trace` names or one among
temporary files, to be seen in chrome://tracing; `hidden` is the share of the time of the shorter of both, copying or
computing, in which the other one goes on as well.

    python benchmarks/offload.py --quick --json figures.json
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import Ratio, interleave, machine, parser, write_json
from reallm.engine.real_model import ReaLModel
from reallm.model.config import ReaLModelConfig


def make_model(device: torch.device) -> ReaLModel:
    """0.2 billion parameters on a CPU, 3 billion in bfloat16 on a GPU."""
    on_gpu = device.type == "cuda"
    hidden = 3072 if on_gpu else 1024
    config = ReaLModelConfig(
        n_layers=24 if on_gpu else 16,
        hidden_size=hidden,
        n_q_heads=hidden // 128,
        n_kv_heads=hidden // 512,
        head_dim=128,
        intermediate_size=hidden * 8 // 3 // 64 * 64,
        vocab_size=1000,
        max_positions=8192,
    )
    return ReaLModel(config, device=device, dtype=torch.bfloat16 if on_gpu else torch.float32).eval()


class Work:
    """A model, a pack of tokens, and what is timed."""

    def __init__(self, device: torch.device, n_tokens: int) -> None:
        self.model, self.device = make_model(device), device
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(0, 1000, (n_tokens,), generator=generator).to(device)
        self.bounds = torch.tensor([0, n_tokens])
        self.expected = self.forward()
        self.size = sum(parameter.nbytes for parameter in self.model.parameters())
        self.flat = torch.empty(self.size, dtype=torch.uint8, device=device)
        self.pinned = torch.empty(self.size, dtype=torch.uint8, pin_memory=True) if device.type == "cuda" else None

    @torch.no_grad()
    def forward(self) -> Tensor:
        hidden = self.model.hidden(self.tokens, self.bounds)
        self.wait()
        return hidden

    def out(self, *, stream: bool = False) -> None:
        self.model.async_offload(stream=stream)
        self.model.wait_for_offload()

    def back(self) -> None:
        self.model.reload()
        self.wait()

    def plain_out(self) -> None:
        assert self.pinned is not None
        self.pinned.copy_(self.flat, non_blocking=True)
        self.wait()

    def plain_back(self) -> None:
        assert self.pinned is not None
        self.flat.copy_(self.pinned, non_blocking=True)
        self.wait()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def timed(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    return interleave({"it": run}, rounds=1, warm_up=0)["it"][0]


def bandwidth(work: Work, rounds: int) -> dict[str, float]:
    """Shares of the bandwidth of one plain copy."""
    ours_out, ours_back, plain_out, plain_back = [], [], [], []
    for _ in range(rounds + 1):
        plain_out.append(timed(work.plain_out))
        plain_back.append(timed(work.plain_back))
        ours_out.append(timed(work.out))
        ours_back.append(timed(work.back))
    figures = {}
    for name, plain, ours in (("out", plain_out, ours_out), ("back", plain_back, ours_back)):
        ratio = Ratio.of(plain[1:], ours[1:])
        print(f"  {name:15s} {ratio}  {work.size / sorted(ours[1:])[rounds // 2] / 1e9:.1f} GB/s")
        figures |= {name: ratio.median, f"{name}_bar": 0.9}
    return figures


def overlap(work: Work, rounds: int) -> dict[str, float]:
    """Bringing all back and then computing, over both at once."""
    first, whole, streamed = [], [], []
    for _ in range(rounds + 1):
        work.out()
        first.append(timed(lambda: (work.back(), work.forward())))
        work.out()
        whole.append(timed(work.forward))
        work.out(stream=True)
        streamed.append(timed(work.forward))
        if not torch.equal(work.forward(), work.expected):
            raise SystemExit("an offloaded model computes something else")
    figures = {}
    for name, ours in (("overlap_whole", whole), ("overlap_stream", streamed)):
        ratio = Ratio.of(first[1:], ours[1:])
        print(f"  {name:15s} {ratio}")
        figures[name] = ratio.median
    return figures


def trace(work: Work, file: Path) -> dict[str, float]:
    """Write what the GPU does in a forward pass that brings the model back, and say how much of it is at once."""
    work.out()
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profile:
        work.forward()
    profile.export_chrome_trace(str(file))
    events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    copies, kernels = (union(events, category) for category in ("gpu_memcpy", "kernel"))
    shorter = min(length(copies), length(kernels))
    both = length(copies) + length(kernels) - length(merged([*copies, *kernels]))
    print(f"  {'hidden':15s} {both / shorter:.2f}  of {shorter / 1e3:.1f} ms; trace: {file}")
    return {"hidden": both / shorter}


def union(events: list[dict[str, Any]], category: str) -> list[tuple[float, float]]:
    """When something of a category goes on, in microseconds."""
    return merged([(each["ts"], each["ts"] + each["dur"]) for each in events if each.get("cat") == category])


def merged(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Spans (start, stop) without what they have in common: `[(0, 3), (2, 5)]` -> `[(0, 5)]`."""
    found: list[tuple[float, float]] = []
    for start, stop in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return found


def length(spans: list[tuple[float, float]]) -> float:
    """Of all spans together."""
    return sum(stop - start for start, stop in spans)


def main() -> None:
    """Measure, print, and write the figures if asked to."""
    arguments = parser(str(__doc__).splitlines()[0])
    default = Path(tempfile.gettempdir()) / "offload-trace.json"
    arguments.add_argument("--trace", type=Path, metavar="FILE", default=default, help="where the trace of a GPU goes")
    options = arguments.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rounds = 5 if options.quick else 21
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else machine()
    work = Work(device, n_tokens=4096 if device.type == "cuda" else 128)
    print(f"{where}; torch {torch.__version__}; {work.size / 2**30:.2f} GiB of parameters; median and quartiles")
    figures = overlap(work, rounds)
    if device.type == "cuda":
        figures |= bandwidth(work, rounds)
        figures |= trace(work, options.trace)
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
