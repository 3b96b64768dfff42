"""The check of how layers declare that their parameters are sharded by tensor parallelism."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from reallm.errors import PluginError
from reallm.model.parameter_names import (
    EMBEDDING_LAYER,
    block_layers,
    layer_path,
    module_of,
    path_in_layer,
    split_parameter_name,
)
from reallm.model.sharding import Shard
from reallm.model.transformer import Transformer
from reallm.parallel.tensor_parallel.apply import check_splits
from reallm.parallel.tensor_parallel.partial_grads import partial_grad_groups
from reallm.plugins.checked import record_split_checked
from reallm_devkit.testing.checks import CheckFailed, Skipped, check
from reallm_devkit.testing.families.closeness import is_close, max_difference
from reallm_devkit.testing.families.numerics import GRADIENT_TOLERANCE, packing
from reallm_devkit.testing.families.reference import pack
from reallm_devkit.testing.families.split_run import (
    CannotSplitError,
    DeclaredSharding,
    RankError,
    SplitRun,
    loss_of,
    run_split,
)
from reallm_devkit.testing.families.subject import FamilySubject, custom_layers_location
from reallm_devkit.testing.source import location

TP_SIZES = (2, 4)


class _Mismatch(NamedTuple):
    """Where results begin to differ, what is seen there, and, for gradients, what to look at."""

    where: str
    seen: str
    look_at: str = ""


class _Unsplit(NamedTuple):
    """The results of the unsplit network."""

    outputs: Mapping[str, Tensor]
    """Outputs of the embedding, of the modules of blocks, and of blocks, in the order of computation."""
    logits: Tensor
    gradients: Mapping[str, Tensor]


@check(needs=[packing])
def shards(subject: FamilySubject) -> str:
    """sharded over ranks as its layers declare, the network computes the same outputs and gradients"""
    model = subject.model
    declared = _declared_sharding(model, custom_layers_location(subject))
    done, obstacle = [], ""
    for n_ranks in TP_SIZES:
        try:
            mismatch = _find_mismatch(subject, declared, n_ranks)
        except CannotSplitError as reason:
            obstacle = obstacle or f"{n_ranks} ranks: {reason}"
            continue
        if mismatch is not None:
            results = "gradients" if mismatch.look_at else "logits"
            look_at = mismatch.look_at or _suggestion(subject, declared, n_ranks, mismatch.where)
            raise CheckFailed(f"on {n_ranks} ranks, the {results} of the whole", mismatch.seen, mismatch.where, look_at)
        done.append(str(n_ranks))
    if not done:
        raise Skipped(f"this configuration cannot be split ({obstacle}); give one with more heads: configs = ...")
    for reference in subject.config.custom_classes:
        record_split_checked(reference)
    n_split = sum(shard is not None for shard in declared.shards.values())
    return f"{' and '.join(done)} ranks, {n_split} of {len(declared.shards)} parameters split"


def _declared_sharding(model: Transformer, own_layers: str) -> DeclaredSharding:
    try:
        declared = DeclaredSharding.of(model)
    except PluginError as error:
        for path, module in model.named_modules():
            names = {name for name, _ in module.named_parameters(recurse=False)}
            for name in sorted(names ^ getattr(module, "shards", {}).keys()):
                expected = "how each parameter may be split, in `shards` of the module that has it"
                raise CheckFailed(expected, str(error), f"'{path}.{name}'", location(type(module))) from error
        raise
    try:
        check_splits(model, declared.shards, declared.splits)
    except PluginError as error:
        raise CheckFailed("a `split` only where a parameter is split", str(error), look_at=own_layers) from error
    return declared


def _find_mismatch(subject: FamilySubject, declared: DeclaredSharding, n_ranks: int) -> _Mismatch | None:
    """Where results of the split network begin to differ from those of the unsplit one; None if nowhere."""
    model = subject.model
    tokens, cu_seqlens = pack(subject.samples[1:4])
    whole = _run_unsplit(model, tokens, cu_seqlens)
    try:
        run = run_split(model, declared, n_ranks, tokens, cu_seqlens, list(whole.outputs))
    except RankError as error:
        return _Mismatch(_describe_module(model, error.path), f"raised {error}")
    if is_close(run.logits, whole.logits):
        return _find_gradient_mismatch(subject, declared, run, whole)
    for path, value in whole.outputs.items():
        if path in run.outputs and not is_close(run.outputs[path], value):
            return _Mismatch(
                _describe_module(model, path), f"its outputs on {n_ranks} ranks are not those of the whole"
            )
    if run.logits.shape != whole.logits.shape:
        return _Mismatch("the output head", f"logits of shape {list(run.logits.shape)}")
    return _Mismatch("the output head", f"logits differ by up to {max_difference(run.logits, whole.logits)[0]:.2g}")


def _run_unsplit(model: Transformer, tokens: Tensor, cu_seqlens: Tensor) -> _Unsplit:
    outputs: dict[str, Tensor] = {}

    def register(path: str) -> torch.utils.hooks.RemovableHandle:
        def record(_: object, __: object, out: object) -> None:
            if isinstance(out, Tensor):
                outputs[path] = out.detach()

        return model.get_submodule(path).register_forward_hook(record)

    blocks = [layer_path(layer) for layer in block_layers(model.config)]
    children = [f"{block}.{name}" for block in blocks for name, _ in model.get_submodule(block).named_children()]
    handles = [register(path) for path in (layer_path(EMBEDDING_LAYER), *children, *blocks)]
    try:
        logits = model(tokens, cu_seqlens)
    finally:
        for handle in handles:
            handle.remove()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(loss_of(logits), list(trained.values()), allow_unused=True)
    gradients = {name: gradient for name, gradient in zip(trained, found, strict=True) if gradient is not None}
    return _Unsplit(outputs, logits.detach(), gradients)


def _find_gradient_mismatch(
    subject: FamilySubject, declared: DeclaredSharding, run: SplitRun, whole: _Unsplit
) -> _Mismatch | None:
    """The last parameter whose gradient, reduced as in training, is not that of the unsplit network; None if all are.

    The last, since a wrong gradient makes those of all parameters before it wrong.
    """
    n_ranks, model = len(run.gradients), subject.model
    boxes = declared.boxes(model, n_ranks)
    floor = max(float(gradient.abs().max()) for gradient in whole.gradients.values()) / 100

    def same(found: Tensor, expected: Tensor, gradient: Tensor) -> bool:
        scale = max(float(gradient.abs().max()), floor)
        return found.shape == expected.shape and max_difference(found, expected)[0] <= GRADIENT_TOLERANCE * scale

    for name, gradient in reversed(list(whole.gradients.items())):
        where, owner = f"'{name}'", location(type(model.get_submodule(_author_module(model, module_of(name)))))
        by_rank = [each[name] for each in run.gradients if name in each]
        if len(by_rank) < n_ranks:
            return _Mismatch(where, f"no gradient on {n_ranks - len(by_rank)} of {n_ranks} ranks", owner)
        for rank in range(n_ranks):
            group = partial_grad_groups(model, declared.shards, boxes, rank).get(name, [rank])
            found = sum((by_rank[one] for one in group), torch.zeros(()))
            if same(found, gradient[boxes[rank][name].slices], gradient):
                continue
            seen = f"its gradient on {n_ranks} ranks is not that of the whole"
            if suggestion := _column_row_suggestion(subject, declared, n_ranks):
                return _Mismatch(where, seen, suggestion)
            is_whole = all(each.shape == gradient.shape for each in by_rank)
            if is_whole and same(sum(by_rank, torch.zeros(())), gradient, gradient):
                seen = "each rank has a summand of its gradient: what the layer acts on is a part of the whole"
                return _Mismatch(where, seen, f"{owner}: `partial_grad = True` in the class would do")
            return _Mismatch(where, seen, owner)
    return None


def _column_row_suggestion(subject: FamilySubject, declared: DeclaredSharding, n_ranks: int) -> str:
    """Suggests "column_row" for a module declared "row", if the results would then be right; empty otherwise."""
    alike: dict[str, list[str]] = {}
    for path, split in declared.splits.items():
        if split == "row":
            alike.setdefault(path_in_layer(path), []).append(path)
    for paths in alike.values():
        other = dataclasses.replace(declared, splits={**declared.splits, **dict.fromkeys(paths, "column_row")})
        if _find_mismatch(subject, other, n_ranks) is None:
            owner = location(type(subject.model.get_submodule(_author_module(subject.model, paths[0]))))
            return f'{owner}: it takes whole inputs; split="column_row" would do'
    return ""


def _describe_module(model: Transformer, path: str) -> str:
    return f"{path} ({type(model.get_submodule(path)).__qualname__})"


def _suggestion(subject: FamilySubject, declared: DeclaredSharding, n_ranks: int, where: str) -> str:
    """Suggests another declaration of one parameter with which the results are right; else lists the declarations."""
    for name, other, declaration in _alternatives(declared):
        try:
            if _find_mismatch(subject, other, n_ranks) is None:
                owner = location(type(subject.model.get_submodule(_author_module(subject.model, module_of(name)))))
                return f"{owner}: '{name}' is declared {_describe_declaration(declared, name)}; {declaration} would do"
        except CannotSplitError:
            continue
    path = where.partition(" ")[0]
    if not path.startswith("layers."):
        return subject.table
    path = _author_module(subject.model, path)
    declarations = ", ".join(
        f"'{name.removeprefix(f'{path}.')}' {_describe_declaration(declared, name)}"
        for name in declared.shards
        if name.startswith(f"{path}.")
    )
    return f"{location(type(subject.model.get_submodule(path)))}: declared are {declarations}"


def _alternatives(declared: DeclaredSharding) -> Iterator[tuple[str, DeclaredSharding, str]]:
    """Yields (parameter, declarations, text) with another declaration of one parameter, the same in all blocks."""
    for name in _one_of_each_kind(declared):
        shard, (path, parameter_name) = declared.shards[name], split_parameter_name(name)
        alike = [one for one in declared.shards if path_in_layer(one) == path_in_layer(name)]
        unit = 1 if shard is None else shard.unit
        for other in (Shard(0, unit), Shard(1, unit), None):
            if other == shard:
                continue
            shards = {**declared.shards, **dict.fromkeys(alike, other)}
            yield name, dataclasses.replace(declared, shards=shards), _describe_shard(other)
            if path in declared.splits and parameter_name == "weight" and other is not None:
                split = "column" if other.dim == 0 else "row"
                splits = dict.fromkeys(map(module_of, alike), split)
                both = DeclaredSharding(shards, {**declared.splits, **splits})
                yield name, both, f'{_describe_shard(other)} with split="{split}"'


def _one_of_each_kind(declared: DeclaredSharding) -> list[str]:
    found: dict[str, str] = {}
    for name in declared.shards:
        found.setdefault(path_in_layer(name), name)
    return list(found.values())


def _author_module(model: Transformer, path: str) -> str:
    """The innermost module around `path` whose class the plugin's author wrote, not the core."""
    while type(model.get_submodule(path)).__module__.startswith("reallm.model.") and path.count(".") > 2:
        path = path.rpartition(".")[0]
    return path


def _describe_declaration(declared: DeclaredSharding, name: str) -> str:
    split = declared.splits.get(module_of(name))
    return _describe_shard(declared.shards[name]) + (f' with split="{split}"' if split else "")


def _describe_shard(shard: Shard | None) -> str:
    if shard is None:
        return "None"
    return f"Shard({shard.dim})" if shard.unit == 1 else f"Shard({shard.dim}, unit={shard.unit})"
