"""The training state of a run, from which it resumes as if it had never stopped, and its files.

    checkpoints/step-000100/                     the model, as transformers loads it
    checkpoints/step-000100/training_state/      state.json: step, metrics, random generators
                                                 rank-2.json: the generators and callbacks of rank 2
                                      <role>/    the optimizer's tensors, in safetensors files
                                      models/<role>/  the model of a role whose weights follow those of a trained one
                                      rollouts/  what calls have written of the rollouts of later steps

Tensors are whole, whatever the number of files that the ranks wrote: any layout can read another layout's files.
Nothing is pickled. The data order is not saved: it follows from the seed and the step.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reallm.checkpoint.adapter_save import ModelExport
from reallm.checkpoint.distributed_save import save_optimizer_tensors
from reallm.checkpoint.hashing import Checksums
from reallm.checkpoint.reader import open_checkpoint
from reallm.checkpoint.save import Export, write_tensors
from reallm.data.namedarray import NamedArray
from reallm.data.serialization import load, save
from reallm.errors import CheckpointError, did_you_mean
from reallm.experiments.checkpointing.state_file import Best, Generators, RankFile, StateFile
from reallm.experiments.runs.folder import TRAINING_STATE, RunFolder, rank_file, step_of
from reallm.experiments.runs.settings import path_key
from reallm.foreign_files import parse_json, read_bytes, reading
from reallm.loggers.jsonl import finite
from reallm.model.parameters import parameter_shapes
from reallm.model.sharding import Box, Shape
from reallm.parallel.mesh import Mesh
from reallm.parallel.object_collectives import all_gather_json, fail_together, is_leader
from reallm.training.engine import EngineState

ROLLOUTS = "rollouts"
FORMAT = 1
"""Version of the file format; incremented when an older reader would misread the files."""


_OTHER_RUN = "does the run belong to another model or algorithm?"


@dataclass(frozen=True)
class TrainState:
    """The state of a run after a step."""

    step: int
    evaluated_step: int | None
    """The step of the last evaluation."""
    engines: Mapping[str, EngineState]
    """State of each engine, by role."""
    metrics: Mapping[str, float]
    """The last value of each metric."""
    best: Best | None
    evals_without_gain: int
    """Evaluations since the best one."""
    seconds: float
    """Time spent on the run so far."""
    data: str
    """Fingerprint of the training data."""
    generators: Generators
    interfaces: Mapping[str, Any] = field(default_factory=dict)
    """State of each interface that has one, as JSON types, by role."""
    callbacks: Mapping[str, Any] = field(default_factory=dict)
    """State of each callback of this rank, as JSON types, by name."""
    rollouts: Mapping[tuple[int, str], NamedArray] = field(default_factory=dict)
    """Of the rollouts of later steps, by step and call, what this rank saves, or all ranks have saved."""


def write_state(
    folder: Path,
    state: TrainState,
    exports: Mapping[str, ModelExport | None],
    mesh: Mesh | None,
    checksums: Checksums,
) -> None:
    """Write the state into the folder of a checkpoint, which exists; the caller makes it atomic.

    Args:
        folder: folder of the checkpoint.
        state: state of the run; the engines of sharded models hold the shards of this rank.
        exports: exports of the models, by role, the same roles on all ranks; None on a rank that holds nothing of one.
        mesh: mesh of all ranks of the job, which call this together; None: this process is alone.
        checksums: those of the files with tensors of engines that this rank writes are added to it.
    """
    top = folder / TRAINING_STATE
    with fail_together(mesh):
        for role in exports:
            (top / role).mkdir(parents=True, exist_ok=True)
    for role, export in exports.items():
        with fail_together(mesh):
            if export is not None and role in state.engines:
                _write_tensors(top / role, state.engines[role], export, checksums)
    with fail_together(mesh):
        if state.rollouts:
            (top / ROLLOUTS).mkdir(exist_ok=True)
        for (step, call), outputs in state.rollouts.items():
            save(outputs, top / ROLLOUTS / f"{step}.{call}.safetensors")
    content = {
        "format": FORMAT,
        "step": state.step,
        "evaluated_step": state.evaluated_step,
        "engines": _engine_steps(state, mesh),
        "metrics": finite(state.metrics),
        "best": None if state.best is None else asdict(state.best),
        "evals_without_gain": state.evals_without_gain,
        "seconds": state.seconds,
        "data": state.data,
        "interfaces": dict(state.interfaces),
        "versions": versions(),
    }
    of_rank = {"generators": asdict(state.generators), "callbacks": dict(state.callbacks)}
    with fail_together(mesh):
        if is_leader(mesh):
            (top / "state.json").write_text(json.dumps(content | of_rank), encoding="utf-8")
        elif mesh is not None:
            (top / rank_file(mesh.rank)).write_text(json.dumps(of_rank), encoding="utf-8")


def _write_tensors(folder: Path, engine: EngineState, export: ModelExport, checksums: Checksums) -> None:
    """Write the tensors of an engine; all ranks of its model's layout call this."""
    tensors = {f"moments/{name}": tensor for name, tensor in engine.moments.items()}
    tensors |= {f"weights/{name}": tensor for name, tensor in engine.weights.items()}
    if not isinstance(export, Export) and export.mesh is not None and export.mesh.layout.size > 1:
        save_optimizer_tensors(folder, export.mesh, export.config, tensors, checksums)
    elif tensors:
        write_tensors(folder, tensors, checksums=checksums)


def _engine_steps(state: TrainState, mesh: Mesh | None) -> dict[str, Any]:
    """The numbers of steps of each engine, by role, whichever ranks have it."""
    local = {
        role: {"step": engine.step, "skipped_steps": engine.skipped_steps} for role, engine in state.engines.items()
    }
    if mesh is None or mesh.layout.size == 1:
        return local
    found: dict[str, Any] = {}
    for of_rank in all_gather_json(local, mesh.all).values():
        found |= of_rank
    return found


def follower_folder(checkpoint: Path, role: str) -> Path:
    """The folder in a checkpoint with the model of a role whose weights follow those of a trained one."""
    return checkpoint / TRAINING_STATE / "models" / role


def read_state(checkpoint: Path, rank: int = 0) -> tuple[TrainState, dict[str, str]]:
    """Read the state in a checkpoint's folder, its tensors as views of the files, and the versions that wrote it.

    Args:
        checkpoint: folder of the checkpoint.
        rank: rank whose random generators and callbacks are read; rank 0's for a rank that did not exist when they were
            saved.

    Raises:
        CheckpointError: the state is damaged, or was written by a later reallm; names the file.
    """
    folder, remedy = checkpoint / TRAINING_STATE, _remedy(checkpoint)
    path = folder / "state.json"
    with reading(path, remedy, problem="is damaged"):
        content = parse_json(read_bytes(path))
        if isinstance(content, dict) and isinstance(content.get("format"), int) and content["format"] > FORMAT:
            raise CheckpointError(f"{path} was written by a later reallm-core; pip install --upgrade reallm-core")
        found = StateFile.of(content)
        if step_of(checkpoint.name) not in (None, found.step):
            raise ValueError(f"'step' is {found.step}, in the checkpoint {checkpoint.name}")
        of_first = RankFile.of(content)
    of_rank = read_rank_file(checkpoint, rank) or of_first
    with reading(folder, remedy, problem="is damaged"):
        state = TrainState(
            found.step,
            found.evaluated_step,
            {role: _read_engine(folder / role, numbers) for role, numbers in found.engines.items()},
            found.metrics,
            found.best,
            found.evals_without_gain,
            found.seconds,
            found.data,
            of_rank.generators,
            found.interfaces,
            of_rank.callbacks,
            _read_rollouts(folder / ROLLOUTS),
        )
    return state, dict(found.versions)


def read_rank_file(checkpoint: Path, rank: int) -> RankFile | None:
    """Read what a rank other than 0 has for itself in a checkpoint; None if it did not exist when that was saved.

    Raises:
        CheckpointError: the file is damaged; names it.
    """
    path = checkpoint / TRAINING_STATE / rank_file(rank)
    if not path.is_file():
        return None
    with reading(path, _remedy(checkpoint), problem="is damaged"):
        return RankFile.of(parse_json(read_bytes(path)))


def _remedy(checkpoint: Path) -> str:
    weights = f"{path_key(RunFolder(checkpoint.parent.parent).config)}={checkpoint}"
    return f"the optimizer's state is lost: start a new run from the weights, {weights}"


def _read_engine(folder: Path, numbers: Mapping[str, int]) -> EngineState:
    tensors = open_checkpoint(folder) if any(folder.iterdir()) else {}
    moments, weights = (
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for prefix in ("moments/", "weights/")
    )
    return EngineState(numbers["step"], numbers["skipped_steps"], moments, weights)


def load_engine(role: str, engine: Any, state: TrainState, source: Path) -> None:
    """Load the state of a role into its `TrainEngine`.

    Raises:
        CheckpointError: the state does not belong to this model.
    """
    what = f"{source / TRAINING_STATE}: the saved state"
    with reading(what, _OTHER_RUN, problem=f"does not fit the role '{role}'"):
        if role not in state.engines:
            raise ValueError(f"it has none of it{did_you_mean(role, state.engines)}")
        saved = state.engines[role]
        shapes = parameter_shapes(engine.model.config)
        _check_shapes(saved, shapes, engine.state_shapes())
        if engine.model.mesh is not None:
            saved = _shard(saved, shapes, engine.model.boxes)
        engine.load_state(saved)


def _check_shapes(saved: EngineState, parameters: Mapping[str, Shape], moments: Mapping[str, Shape]) -> None:
    """Raise ValueError if a tensor has another shape than it should: a slice of it might fit by accident.

    Moments of other pipeline stages are checked there, and kinds that the optimizer does not keep are refused when they
    are loaded.
    """
    for name, tensor in (*saved.moments.items(), *saved.weights.items()):
        parameter = parameters[_parameter_of(name)]
        shape = moments.get(name) if name in saved.moments else parameter
        if shape is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"'{name}' has the shape {list(tensor.shape)}, not {list(shape)}")


def _shard(saved: EngineState, shapes: Mapping[str, Shape], boxes: Mapping[str, Box]) -> EngineState:
    """Slice whole tensors to the boxes of this rank's parameters; those of another shape are whole on every rank."""

    def slice_all(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: tensor[boxes[parameter].slices] if tuple(tensor.shape) == shapes[parameter] else tensor
            for name, tensor in tensors.items()
            if (parameter := _parameter_of(name)) in boxes
        }

    return dataclasses.replace(saved, moments=slice_all(saved.moments), weights=slice_all(saved.weights))


def _parameter_of(name: str) -> str:
    """The parameter that a tensor of the optimizer belongs to: `embedding.weight` of `embedding.weight/exp_avg`."""
    return name.partition("/")[0]


def _read_rollouts(folder: Path) -> dict[tuple[int, str], NamedArray]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        step, _, call = path.stem.partition(".")
        found[int(step), call] = load(path)
    return found


def versions() -> dict[str, str]:
    """The versions of packages that may change the last bits of a result."""
    return {"reallm-core": version("reallm-core"), "torch": torch.__version__}
