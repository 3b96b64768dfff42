"""Moving a model's parameters from one layout to another, against other ways to do it.

Ranks of a job on gloo, each pinned to a core, move float32 parameters of a Llama-like model of 44 MB (`--quick`) or of
the sizes of SmolLM2-135M (520 MB), with 8 heads in place of its 9, which two ranks cannot share. Each side ends with
the same boxes of the parameters on each rank, which is checked before anything is timed, and is repeated with whatever
it can keep: plans, groups, buffers.

| side | what it does |
|---|---|
| reallm | `model.reallocate(layout, into=target)` |
| broadcast | each box of each parameter is broadcast by a rank that has it; all take what they need of it |
| all_gather | each parameter is gathered on all ranks, which take what they need |
| full_tensor | parameters are `DTensor`s; `full_tensor()`, of which all take what they need |
| dcp | `torch.distributed.checkpoint`: saved to memory (/dev/shm), and loaded in the new layout |

Layouts are those of training and of generation. `fsdp2_to_tp2` is the first: a model that was trained with FSDP
generates with tensor parallelism. `reallocation_over_<side>` is how many times as long a side takes for it; the figures
of other moves carry their names. `tp2_to_pp2` goes to a pipeline, `fsdp4_to_dp2tp2` has four ranks, two to a
core, and in `fsdp2_to_dp2` each rank needs the whole model: there all sides must send the same.

    python benchmarks/reallocation.py --quick --json figures.json
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import Ratio, machine, parser, write_json
from ranks import Ranks

SIDES = ("reallm", "broadcast", "all_gather", "full_tensor", "dcp")
MOVES = {
    "fsdp2_to_tp2": ("fsdp2", "tp2"),
    "tp2_to_pp2": ("tp2", "pp2"),
    "fsdp4_to_dp2tp2": ("fsdp4", "dp2tp2"),
    "fsdp2_to_dp2": ("fsdp2", "dp2"),
}
"""From which layout to which."""
BARS = {"broadcast": 3.0, "full_tensor": 5.0}
"""Of the first move."""
N_CORES = 2


@dataclass(frozen=True)
class Work:
    """Sizes of the model."""

    n_layers: int
    hidden: int
    n_q_heads: int
    n_kv_heads: int
    inner: int
    vocab: int


QUICK = Work(n_layers=6, hidden=384, n_q_heads=6, n_kv_heads=2, inner=1024, vocab=4096)
SMOLLM2 = Work(n_layers=30, hidden=576, n_q_heads=8, n_kv_heads=2, inner=1536, vocab=49152)
TINY = Work(n_layers=2, hidden=64, n_q_heads=4, n_kv_heads=2, inner=96, vocab=512)


def make(way: str, work: Work) -> Callable[[], Any]:
    """The move `way`, `<move>/<side>`, as a function that returns a sum over what this rank has then."""
    from reallm import ReaLModel, ReaLModelConfig
    from reallm.parallel.mesh import Mesh

    move, side = way.split("/")
    source, target = MOVES[move]
    config = ReaLModelConfig(
        n_layers=work.n_layers,
        hidden_size=work.hidden,
        n_q_heads=work.n_q_heads,
        n_kv_heads=work.n_kv_heads,
        head_dim=64 if work.hidden > 64 else 16,
        intermediate_size=work.inner,
        vocab_size=work.vocab,
        max_positions=2048,
        tied_embeddings=True,
    )
    model = ReaLModel(config, seed=0, mesh=Mesh.of(source))
    result = ReaLModel(config, seed=1, mesh=Mesh.of(target))
    moves: Mapping[str, Callable[..., Callable[[], Any]]] = {
        "reallm": by_reallm,
        "broadcast": by_broadcast,
        "all_gather": by_all_gather,
        "full_tensor": by_full_tensor,
        "dcp": by_dcp,
    }
    run = moves[side](model, result)
    run()
    expected = ReaLModel(config, seed=0, mesh=Mesh.of(target)).local_tensors()
    wrong = [name for name, tensor in result.local_tensors().items() if not tensor.equal(expected[name])]
    if wrong:
        raise SystemExit(f"{way}: '{wrong[0]}' is not what it should be")
    return run


def by_reallm(model: Any, result: Any) -> Callable[[], None]:
    """`model.reallocate`."""

    def run() -> None:
        model.reallocate(result.layout, into=result)

    return run


class BothModels:
    """The tensors of this rank in the source and the target model, and their boxes."""

    def __init__(self, model: Any, result: Any) -> None:
        from reallm.model.parameters import parameter_infos
        from reallm.parallel.sharding import local_boxes

        ranks = model.layout.ranks
        self.source_boxes = [local_boxes(model.config, model.layout, rank) for rank in ranks]
        self.shapes = {info.name: info.shape for info in parameter_infos(model.config)}
        self.source, self.target = model.local_tensors(), result.local_tensors()
        self.target_boxes = result.boxes

    def take(self, name: str, box: Any, values: Any) -> None:
        """Copy what this rank needs of a box into its tensors."""
        if name in self.target_boxes and (shared := box & self.target_boxes[name]).numel:
            view = self.target[name][shared.within(self.target_boxes[name]).slices]
            view.copy_(values[shared.within(box).slices])


def by_broadcast(model: Any, result: Any) -> Callable[[], None]:
    """Each distinct box from the first rank that has it."""
    import torch
    import torch.distributed as dist

    both, rank = BothModels(model, result), dist.get_rank()

    def run() -> None:
        for name in both.shapes:
            sources = {
                of_rank[name]: source
                for source, of_rank in reversed(list(enumerate(both.source_boxes)))
                if name in of_rank
            }
            for box, source in sources.items():
                buffer = both.source[name].contiguous() if rank == source else torch.empty(box.shape)
                dist.broadcast(buffer, source)
                both.take(name, box, buffer)

    return run


def by_all_gather(model: Any, result: Any) -> Callable[[], None]:
    """Each parameter that not all ranks have whole."""
    import torch
    import torch.distributed as dist

    from reallm.model.sharding import Box

    both = BothModels(model, result)

    def run() -> None:
        for name, shape in both.shapes.items():
            boxes = [of_rank[name] for of_rank in both.source_boxes]
            local = both.source[name].contiguous()
            if boxes[0] == boxes[-1]:
                both.take(name, boxes[0], local)
                continue
            gathered = [torch.empty(box.shape) for box in boxes]
            dist.all_gather(gathered, local)
            dim = next(dim for dim, size in enumerate(shape) if boxes[0].shape[dim] != size)
            both.take(name, Box.whole(shape), torch.cat(gathered, dim))

    return run


def dtensors(both: BothModels, layout: Any, boxes: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """`DTensor`s of a layout that splits parameters over data-parallel ranks or tensor-parallel ones, not both."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Replicate, Shard

    mesh, found = init_device_mesh("cpu", (layout.dp, layout.tp)), {}
    for name, tensor in tensors.items():
        box, shape = boxes[dist.get_rank()][name], both.shapes[name]
        dims = [dim for dim, size in enumerate(shape) if box.shape[dim] != size]
        split = Shard(dims[0]) if dims else Replicate()
        placements = [split, Replicate()] if layout.fsdp else [Replicate(), split]
        found[name] = DTensor.from_local(tensor, mesh, placements, run_check=False)
    return found


def by_full_tensor(model: Any, result: Any) -> Callable[[], None]:
    """Whole parameters, one after another."""
    from reallm.model.sharding import Box

    both = BothModels(model, result)
    sharded = dtensors(both, model.layout, both.source_boxes, both.source)

    def run() -> None:
        for name, tensor in sharded.items():
            both.take(name, Box.whole(both.shapes[name]), tensor.full_tensor())

    return run


def by_dcp(model: Any, result: Any) -> Callable[[], None]:
    """A checkpoint in memory in between."""
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp

    from reallm.parallel.sharding import local_boxes

    both = BothModels(model, result)
    sharded = dtensors(both, model.layout, both.source_boxes, both.source)
    target_boxes = [local_boxes(model.config, result.layout, rank) for rank in result.layout.ranks]
    is_pipeline = result.layout.pp > 1
    loaded = dict(both.target) if is_pipeline else dtensors(both, result.layout, target_boxes, both.target)
    process = torch.tensor(os.getpid())
    dist.broadcast(process, 0)
    folder = Path("/dev/shm") / f"reallocation-{process.item()}"

    def run() -> None:
        dcp.save(sharded, storage_writer=dcp.FileSystemWriter(folder, overwrite=True))
        dcp.load(loaded, storage_reader=dcp.FileSystemReader(folder))
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(folder)

    return run


def main() -> None:
    """Measure, print, and write the figures if asked to."""
    from reallm.parallel.layout import Layout

    arguments = parser(str(__doc__).splitlines()[0])
    arguments.add_argument("--tiny", action="store_true", help="only show that all still runs")
    options = arguments.parse_args()
    work = TINY if options.tiny else QUICK if options.quick else SMOLLM2
    rounds = 3 if options.tiny else 15
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < N_CORES:
        raise SystemExit(f"{N_CORES} cores are needed, and {socket.gethostname()} gives {len(cores)}")
    print(f"{machine()}; {work}; median and quartiles of the ratio")
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (move, (source, _)) in enumerate(MOVES.items()):
            of_ranks = [cores[rank % N_CORES] for rank in range(Layout.parse(source).size)]
            ranks = Ranks(of_ranks, str(Path(folder) / move), make, work)
            seconds: dict[str, list[float]] = {side: [] for side in SIDES}
            for turn in range(rounds + 1):
                names = list(SIDES)
                for side in names[turn % len(names) :] + names[: turn % len(names)]:
                    took, _ = ranks.do(f"{move}/{side}")
                    if turn:
                        seconds[side].append(took)
            ranks.close()
            print(f"{move.replace('_', ' ')}: reallm {1000 * sorted(seconds['reallm'])[rounds // 2]:.0f} ms")
            for side in SIDES[1:]:
                ratio = Ratio.of(seconds[side], seconds["reallm"])
                print(f"  {side:12s} {ratio} times as long")
                name = f"reallocation_over_{side}" + (f"_{move}" if number else "")
                figures[name] = ratio.median
                if not number and side in BARS:
                    figures[f"{name}_bar"] = BARS[side]
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
