"""The outputs of precomputed calls: from the run folder, from the cache, or computed before training.

A file in the cache has the outputs of one call for all samples of one dataset. Its name follows from all that they
depend on: the samples, the weights, the settings, and the code that computed them. What a run began with stays in its
folder, so that a resumed run continues with the same bits, whatever has become of the cache.

A file is written under a temporary name and renamed. Two runs that need the same file both compute it, and each goes on
with its own.
"""

from __future__ import annotations

import gc
import hashlib
import inspect
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from reallm.algorithms.context import CallContext
from reallm.algorithms.executor import GraphExecutor
from reallm.algorithms.graph import Graph
from reallm.algorithms.precompute import input_hash, precompute
from reallm.arguments import as_path
from reallm.atomic_files import atomic_write
from reallm.config.training import max_tokens_per_microbatch, model_args
from reallm.data.cache_folder import cache_folder, can_write, is_unused, named_cache, user_cache
from reallm.data.datasets import Samples, own_cache_key
from reallm.data.sample_fields import SampleField, load_fields, save_fields, sources_of, with_fields
from reallm.data.tokenization.cache import AUTO
from reallm.data.tokenization.progress import RowProgress
from reallm.data.tokenization.source_files import fingerprint
from reallm.errors import ConfigError, DataError, PluginError, counted, one_line
from reallm.experiments.checkpointing.train_state import versions
from reallm.experiments.preflight.device import choose_device, choose_dtype
from reallm.experiments.preflight.memory import explained_shortage
from reallm.experiments.reports.number_format import duration
from reallm.experiments.run.plan import Plan
from reallm.experiments.run.progress import print_line
from reallm.experiments.run.setup import load_roles, min_vocab_size
from reallm.experiments.runs.folder import RunFolder
from reallm.hf.checkpoint_folder import files_of, resolve_adapter, resolve_path
from reallm.hf.file_names import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME, CONFIG_NAME
from reallm.launch.job import Job
from reallm.source_hash import source_hash
from reallm.specs import ModelFunctionCall

FOLDER = "precomputed"
"""Name of the folder in the cache."""

DATA, WEIGHTS, SETTINGS, CODE, COMPUTATION = "data", "weights", "settings", "code", "computation"
"""What a file says about its outputs: hashes of what they depend on, and a name for the computation itself."""


@dataclass(frozen=True)
class Outputs:
    """The outputs of a call for all samples of a dataset."""

    name: str
    """`ref_inf/train`: the call, the split and, in a mixture, the source."""
    fields: Mapping[str, SampleField]
    about: Mapping[str, str]


@dataclass(frozen=True)
class _Part:
    """A dataset for which the outputs of a call are needed."""

    call: ModelFunctionCall
    split: str
    source: str
    samples: Samples

    @property
    def name(self) -> str:
        return f"{self.call.name}/{self._dataset}"

    @property
    def title(self) -> str:
        """`49 samples of train`, for messages."""
        return f"{counted(len(self.samples), 'sample')} of {self._dataset}"

    @property
    def _dataset(self) -> str:
        return f"{self.split}-{self.source}" if self.source else self.split

    @property
    def is_done(self) -> bool:
        """Whether the dataset gives the outputs itself."""
        return all(key in self.samples[0] for key in self.call.outputs)


@dataclass(frozen=True)
class Precomputation:
    """Finds or computes the outputs of a run's precomputed calls. All ranks of a job make the same calls to it.

    Args:
        plan: plan of the run.
        graph: graph of the algorithm.
        folder: folder of the run, of which nothing but `precomputed` is read.
        job: the processes that train together.
        console: where to show progress, and to say where outputs come from.
    """

    plan: Plan
    graph: Graph
    folder: RunFolder
    job: Job
    console: Console

    def run(self) -> tuple[Plan, list[Outputs]]:
        """The plan, in which the outputs are fields of the samples, and the outputs, for `keep`.

        The models are loaded for the calls alone, and freed again.

        Raises:
            ReallmError: a model cannot be loaded, or the resumed run was started with other weights.
        """
        data, kept = self.plan.data, []
        for call in self.graph.calls:
            if call.precompute:
                splits = {"train": data.train, "valid": data.valid}
                found = self._outputs(call, {split: one for split, one in splits.items() if one is not None})
                kept += [one for of_split in found.values() for one in of_split.values()]
                train = _extended(data.train, found["train"])
                valid = None if data.valid is None else _extended(data.valid, found["valid"])
                data = replace(data, train=train, valid=valid)
        return replace(self.plan, data=data), kept

    def _outputs(self, call: ModelFunctionCall, splits: Mapping[str, Samples]) -> dict[str, dict[str, Outputs]]:
        """The outputs of a call by split and source; none for samples that have them."""
        parts = [
            part
            for split, samples in splits.items()
            for source, of_source in sources_of(samples).items()
            if not (part := _Part(call, split, source, of_source)).is_done
        ]
        found = {part.name: self._find(part) for part in parts}
        missing = [part for part in parts if found[part.name].fields is None]
        if missing:
            found |= self._compute(call, missing, found)
        results: dict[str, dict[str, Outputs]] = {split: {} for split in splits}
        for part in parts:
            one = found[part.name]
            assert one.fields is not None
            results[part.split][part.source] = Outputs(part.name, one.fields, one.about)
        return results

    def _find(self, part: _Part) -> _Found:
        """The outputs in the run folder or the cache, the same on all ranks."""
        found: dict[str, Any] = self.job.broadcast_from_rank0(
            lambda: self._find_file(part), self.plan.config.parallel.timeout
        )
        about, path, fields = found["about"], found["path"], None
        if path is not None:
            with suppress(DataError):  # a cache that this machine does not have, or with outputs of another computation
                fields, there = load_fields(path)
                fields = fields if there == about else None
            if self.job.any(fields is None):
                fields = None
        if fields is not None and found["line"]:
            self._say(found["line"])
        return _Found(fields, about, found["cache"])

    def _find_file(self, part: _Part) -> dict[str, Any]:
        """The file with the outputs, what it says about them, and the file in the cache to write; on rank 0."""
        about = self._about(part)
        cache = self._cache_file(part.call, about)
        kept = _run_file(self.folder, part.name)
        if self.plan.point is not None and self.plan.point.state is not None and kept.exists():
            there = _read_about(kept, self._say)
            if there is not None and not self._is_other_data(part, there, about):
                _refuse_others(part.call, there, about)
                return {"about": there, "path": str(kept), "cache": None, "line": ""}
        if cache is not None and cache.exists():
            there = _read_about(cache, self._say)
            if there is not None:
                with suppress(OSError):
                    os.utime(cache)  # when it was last used
                line = f"{part.call.name}: outputs for {part.title} are read from the cache: {cache}"
                return {"about": there, "path": str(cache), "cache": str(cache), "line": line}
        return {"about": about, "path": None, "cache": None if cache is None else str(cache), "line": ""}

    def _is_other_data(self, part: _Part, there: Mapping[str, str], about: Mapping[str, str]) -> bool:
        """Whether the validation data of a resumed run are other ones; the training data may not be.

        Raises:
            ConfigError: the training data are.
        """
        if there.get(DATA) == about[DATA]:
            return False
        if part.split == "valid":
            return True
        raise ConfigError(
            f"{part.call.name}: the samples are not those that this run was started with; put the old data back, or "
            "start a new run from the checkpoint"
        )

    def _compute(
        self, call: ModelFunctionCall, parts: Sequence[_Part], found: Mapping[str, _Found]
    ) -> dict[str, _Found]:
        """Load the role's model, compute the outputs for some datasets, and write them into the cache."""
        plan, config, data = self.plan, self.plan.config, self.plan.data
        roles = load_roles(config, self.graph, [call.role], data.tokenizer, self.job, plan.placement, horizons=None)
        executor = GraphExecutor(self.graph, roles, plan.interfaces, plan.placement)
        max_tokens = max_tokens_per_microbatch(config, call.role, call.name)
        context = CallContext(data.tokenizer, config.seed, 0, data.sampler.total_steps, max_tokens, training=False)
        layout = plan.placement.layouts[call.name]
        max_tokens *= layout.dp * layout.pp
        computed: dict[str, _Found] = {}
        for part in parts:
            started = time.monotonic()
            count = partial(len, part.samples)
            with (
                explained_shortage(f"the call '{call.name}'", roles, config),
                RowProgress(call.name, count, console=self.console) as progress,
                torch.no_grad(),
            ):
                fields = precompute(
                    call,
                    part.samples,
                    self.graph.trained_keys,
                    partial(executor.with_outputs, call, context=context),
                    max_tokens,
                    progress.advance,
                )
            about = found[part.name].about
            self._say(f"{call.name}: computed for {part.title} in {duration(time.monotonic() - started)}")
            self._write_cache(call, found[part.name].cache, fields, about)
            computed[part.name] = _Found(fields, about, None)
        executor, roles = None, {}  # type: ignore[assignment]  # the model is freed before the others are loaded
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return computed

    def _write_cache(
        self, call: ModelFunctionCall, path: str | None, fields: Mapping[str, SampleField], about: Mapping[str, str]
    ) -> None:
        if path is None or not self.job.is_rank0:
            return
        _remove_unused(Path(path).parent.glob("*.safetensors"))
        try:
            save_fields(fields, Path(path), about)
        except DataError as error:
            self._say(f"{call.name}: outputs are not cached: {error}")

    def _about(self, part: _Part) -> dict[str, str]:
        """Hashes of all that the outputs for a dataset depend on, and a new name for the computation."""
        call, config = part.call, self.plan.config
        args, interface = model_args(config, call.role), self.plan.interfaces[call.role]
        folder = resolve_path(args.path)
        files = {path.name: path for path in files_of(folder, (CONFIG_NAME, "*.safetensors"))}
        if args.lora.path is not None:
            adapter = resolve_adapter(args.lora.path)
            files |= {name: adapter / name for name in (ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME)}
        n_rows = min_vocab_size(config, self.graph, self.plan.data.tokenizer, call.role)
        is_drawn = n_rows is not None or args.is_critic  # rows or a head that the checkpoint may not have
        settings = [
            str(choose_dtype(args.dtype, choose_device(args.device, self.job.gpu))),
            args.is_critic,
            n_rows,
            config.seed if is_drawn else None,
            args.lora.quantize_base,
            _own_key(call.role, interface),
        ]
        return {
            DATA: self._input_hash(part),
            WEIGHTS: fingerprint(files, _memo_folder("files")),
            SETTINGS: json.dumps(settings, sort_keys=True),
            CODE: _code(interface) or "",
            COMPUTATION: secrets.token_hex(8),
        }

    def _input_hash(self, part: _Part) -> str:
        """The hash of what the call reads; that of cached tokens is remembered, so that they are not read again."""
        key = own_cache_key(part.samples)
        about = json.dumps([key, part.call.inputs, versions()], sort_keys=True)
        folder = None if key is None else _memo_folder("inputs")
        memo = None if folder is None else folder / hashlib.sha256(about.encode()).hexdigest()[:32]
        if memo is not None:
            with suppress(OSError, ValueError):
                known = memo.read_text(encoding="ascii")
                if re.fullmatch(r"[0-9a-f]{64}", known):
                    os.utime(memo)  # when it was last used
                    return known
        with RowProgress("comparing samples", partial(len, part.samples), console=self.console) as progress:
            found = input_hash(part.call, part.samples, progress.advance)
        if memo is not None:
            _remove_unused(memo.parent.glob("*"))
            with suppress(DataError), atomic_write(memo) as temporary:
                temporary.write_text(found, encoding="ascii")
        return found

    def _cache_file(self, call: ModelFunctionCall, about: Mapping[str, str]) -> Path | None:
        """The file in the cache; None if outputs are not to be cached."""
        cache_dir = getattr(self.plan.config.dataset, "cache_dir", AUTO)
        if cache_dir is None or not about[CODE]:
            return None
        top = user_cache(FOLDER) if cache_dir == AUTO else _named_cache(as_path(cache_dir))
        if top is None:
            where = cache_folder(FOLDER) if cache_dir == AUTO else cache_dir
            self._say(f"{call.name}: outputs are not cached, {where} cannot be written to")
            return None
        key = [call.name, call.outputs, *(about[name] for name in (DATA, WEIGHTS, SETTINGS, CODE))]
        return top / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]}.safetensors"

    def _say(self, line: str) -> None:
        print_line(self.console, line)


@dataclass(frozen=True)
class _Found:
    fields: Mapping[str, SampleField] | None
    about: Mapping[str, str]
    cache: str | None
    """The file in the cache to write; None: none."""


def keep(outputs: Sequence[Outputs], folder: RunFolder, echo: Callable[[str], None]) -> None:
    """Write outputs into the folder of a run, on rank 0, unless they are there."""
    for one in outputs:
        path = _run_file(folder, one.name)
        with suppress(DataError):
            if load_fields(path)[1] == one.about:
                continue
        try:
            save_fields(one.fields, path, one.about)
        except DataError as error:
            echo(f"{one.name.partition('/')[0]}: outputs are not kept for resuming: {error}")


def _extended(samples: Samples, outputs: Mapping[str, Outputs]) -> Samples:
    """Samples with outputs as fields, by source; unchanged if there are none, because they have them already."""
    if not outputs:
        return samples
    return with_fields(samples, {source: one.fields for source, one in outputs.items()})


def _run_file(folder: RunFolder, name: str) -> Path:
    return folder.precomputed / f"{name}.safetensors"


def _read_about(path: Path, say: Callable[[str], None]) -> dict[str, str] | None:
    """What a file says about its outputs; None if it is damaged."""
    try:
        return load_fields(path)[1]
    except DataError as error:
        say(f"outputs that were computed before cannot be used, and are computed again ({error})")
        return None


def _memo_folder(name: str) -> Path | None:
    """The folder in the user's cache of hashes that are remembered; None if they cannot be."""
    top = user_cache(FOLDER)
    return None if top is None else top / name


def _named_cache(folder: Path) -> Path | None:
    """The folder of outputs in a cache that the configuration names; None if it cannot be written."""
    with suppress(OSError):
        top = named_cache("dataset.cache_dir", folder) / FOLDER
        return top if can_write(top) else None
    return None


def _remove_unused(files: Iterable[Path]) -> None:
    for file in files:
        with suppress(OSError):
            if is_unused(file):
                file.unlink()


def _refuse_others(call: ModelFunctionCall, there: Mapping[str, str], about: Mapping[str, str]) -> None:
    """Raise an error if a resumed run would compute other outputs than it was started with.

    Raises:
        ConfigError: weights or settings differ.
    """
    for name, what in {WEIGHTS: f"{call.role}.path: the weights", SETTINGS: f"{call.role}: the settings"}.items():
        if there.get(name) != about[name]:
            raise ConfigError(
                f"{what} are not those with which the outputs of '{call.name}' were computed when this run was "
                "started; put them back, or start a new run from the checkpoint"
            )


def _own_key(role: str, interface: Any) -> Any:
    """What an interface says that its outputs depend on besides inputs and weights.

    Raises:
        PluginError: it is not made of JSON's types.
    """
    key = getattr(interface, "precompute_key", None)
    try:
        return json.loads(json.dumps(key))
    except (TypeError, ValueError) as error:
        raise PluginError(
            f"the interface of '{role}' has a precompute_key that is not made of JSON's types: {one_line(error)}"
        ) from error


def _code(interface: Any) -> str | None:
    """The versions of packages, the interface's class, and a hash of its package and the core; None if it is in no
    file."""
    cls = type(interface)
    try:
        places = {Path(inspect.getfile(cls))}
    except (OSError, TypeError):
        return None
    for package in {"reallm", cls.__module__.partition(".")[0]}:
        top = getattr(sys.modules.get(package), "__file__", None)
        if top is not None and Path(top).name == "__init__.py":
            places.add(Path(top).parent)
    return json.dumps([versions(), f"{cls.__module__}:{cls.__qualname__}", source_hash(places)], sort_keys=True)
