"""The check of what layers say of how their parameters may be split."""

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
from reallm.parallel.tensor_parallel.partial_grads import partial_grad_groups
from reallm_devkit.testing.checks import CheckFailed, Skipped, check
from reallm_devkit.testing.families.closeness import is_close, largest
from reallm_devkit.testing.families.numbers import MOST_GRADIENTS, packing
from reallm_devkit.testing.families.reference import packed
from reallm_devkit.testing.families.split_run import CannotSplitError, Declared, RankError, SplitRun, loss_of, run_split
from reallm_devkit.testing.families.subject import FamilySubject
from reallm_devkit.testing.source import location

RANKS = (2, 4)


class _Fault(NamedTuple):
    """Where results begin to differ, what is seen there, and for gradients where to look and what would do."""

    where: str
    seen: str
    look_at: str = ""


class _Whole(NamedTuple):
    """What the network gives where it is whole."""

    heard: Mapping[str, Tensor]
    """Outputs of the embedding, of the parts of blocks, and of blocks, in the order in which they come."""
    logits: Tensor
    gradients: Mapping[str, Tensor]


@check(needs=[packing])
def shards(subject: FamilySubject) -> str:
    """split among ranks as its layers declare, the network computes what it computes whole, gradients too"""
    model = subject.ours
    declared = _declared(model)
    done, why_not = [], ""
    for n_ranks in RANKS:
        try:
            fault = _fault(subject, declared, n_ranks)
        except CannotSplitError as reason:
            why_not = why_not or f"{n_ranks} ranks: {reason}"
            continue
        if fault is not None:
            what = "gradients" if fault.look_at else "logits"
            look_at = fault.look_at or _culprit(subject, declared, n_ranks, fault.where)
            raise CheckFailed(f"on {n_ranks} ranks, the {what} of the whole", fault.seen, fault.where, look_at)
        done.append(str(n_ranks))
    if not done:
        raise Skipped(f"this configuration cannot be split ({why_not}); give one with more heads: configs = ...")
    n_split = sum(shard is not None for shard in declared.shards.values())
    return f"{' and '.join(done)} ranks, {n_split} of {len(declared.shards)} parameters split"


def _declared(model: Transformer) -> Declared:
    try:
        return Declared.of(model)
    except PluginError as error:
        for path, module in model.named_modules():
            own = {name for name, _ in module.named_parameters(recurse=False)}
            for name in sorted(own ^ getattr(module, "shards", {}).keys()):
                expected = "how each parameter may be split, in `shards` of the module that has it"
                raise CheckFailed(expected, str(error), f"'{path}.{name}'", location(type(module))) from error
        raise


def _fault(subject: FamilySubject, declared: Declared, n_ranks: int) -> _Fault | None:
    """Where results begin to differ; None if they are those of the whole."""
    model = subject.ours
    tokens, cu_seqlens = packed(subject.samples[1:4])
    whole = _whole(model, tokens, cu_seqlens)
    try:
        run = run_split(model, declared, n_ranks, tokens, cu_seqlens, list(whole.heard))
    except RankError as error:
        return _Fault(_described(model, error.path), f"raised {error}")
    if is_close(run.logits, whole.logits):
        return _gradient_fault(subject, declared, run, whole)
    for path, value in whole.heard.items():
        if path in run.heard and not is_close(run.heard[path], value):
            return _Fault(_described(model, path), f"its outputs on {n_ranks} ranks are not those of the whole")
    if run.logits.shape != whole.logits.shape:
        return _Fault("the output head", f"logits of shape {list(run.logits.shape)}")
    return _Fault("the output head", f"logits differ by up to {largest(run.logits, whole.logits)[0]:.2g}")


def _whole(model: Transformer, tokens: Tensor, cu_seqlens: Tensor) -> _Whole:
    heard: dict[str, Tensor] = {}

    def listen(path: str) -> torch.utils.hooks.RemovableHandle:
        def note(_: object, __: object, out: object) -> None:
            if isinstance(out, Tensor):
                heard[path] = out.detach()

        return model.get_submodule(path).register_forward_hook(note)

    blocks = [layer_path(layer) for layer in block_layers(model.config)]
    children = [f"{block}.{name}" for block in blocks for name, _ in model.get_submodule(block).named_children()]
    handles = [listen(path) for path in (layer_path(EMBEDDING_LAYER), *children, *blocks)]
    try:
        logits = model(tokens, cu_seqlens)
    finally:
        for handle in handles:
            handle.remove()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = torch.autograd.grad(loss_of(logits), list(trained.values()), allow_unused=True)
    gradients = {name: gradient for name, gradient in zip(trained, found, strict=True) if gradient is not None}
    return _Whole(heard, logits.detach(), gradients)


def _gradient_fault(subject: FamilySubject, declared: Declared, run: SplitRun, whole: _Whole) -> _Fault | None:
    """The last parameter whose gradients, added up as training adds them up, are not those of the whole: what is wrong
    there is wrong in all that comes before."""
    n_ranks, model = len(run.gradients), subject.ours
    parts = declared.parts(model, n_ranks)
    floor = max(float(gradient.abs().max()) for gradient in whole.gradients.values()) / 100

    def same(found: Tensor, expected: Tensor, gradient: Tensor) -> bool:
        scale = max(float(gradient.abs().max()), floor)
        return found.shape == expected.shape and largest(found, expected)[0] <= MOST_GRADIENTS * scale

    for name, gradient in reversed(list(whole.gradients.items())):
        where, owner = f"'{name}'", location(type(model.get_submodule(_authors(model, module_of(name)))))
        of_ranks = [each[name] for each in run.gradients if name in each]
        if len(of_ranks) < n_ranks:
            return _Fault(where, f"no gradient on {n_ranks - len(of_ranks)} of {n_ranks} ranks", owner)
        for rank in range(n_ranks):
            summed_over = partial_grad_groups(model, declared.shards, parts, rank).get(name, [rank])
            found = sum((of_ranks[one] for one in summed_over), torch.zeros(()))
            if same(found, gradient[parts[rank][name].slices], gradient):
                continue
            seen = f"its gradient on {n_ranks} ranks is not that of the whole"
            if taking := _that_takes_whole_inputs(subject, declared, n_ranks):
                return _Fault(where, seen, taking)
            is_whole = all(each.shape == gradient.shape for each in of_ranks)
            if is_whole and same(sum(of_ranks, torch.zeros(())), gradient, gradient):
                seen = "each rank has a summand of its gradient: what the layer acts on is a part of the whole"
                return _Fault(where, seen, f"{owner}: `partial_grad = True` in the class would do")
            return _Fault(where, seen, owner)
    return None


def _that_takes_whole_inputs(subject: FamilySubject, declared: Declared, n_ranks: int) -> str:
    """The module that says "row" and with which all would be well if it said "column_row"."""
    alike: dict[str, list[str]] = {}
    for path, split in declared.splits.items():
        if split == "row":
            alike.setdefault(path_in_layer(path), []).append(path)
    for paths in alike.values():
        other = dataclasses.replace(declared, splits={**declared.splits, **dict.fromkeys(paths, "column_row")})
        if _fault(subject, other, n_ranks) is None:
            owner = location(type(subject.ours.get_submodule(_authors(subject.ours, paths[0]))))
            return f'{owner}: it takes whole inputs; split="column_row" would do'
    return ""


def _described(model: Transformer, path: str) -> str:
    return f"{path} ({type(model.get_submodule(path)).__qualname__})"


def _culprit(subject: FamilySubject, declared: Declared, n_ranks: int, where: str) -> str:
    """The one parameter with which all would be well if it were declared otherwise; else all that are declared."""
    for name, other, said in _otherwise(declared):
        try:
            if _fault(subject, other, n_ranks) is None:
                owner = location(type(subject.ours.get_submodule(_authors(subject.ours, module_of(name)))))
                return f"{owner}: '{name}' is declared {_said(declared, name)}; {said} would do"
        except CannotSplitError:
            continue
    path = where.partition(" ")[0]
    if not path.startswith("layers."):
        return subject.table
    path = _authors(subject.ours, path)
    said = ", ".join(
        f"'{name.removeprefix(f'{path}.')}' {_said(declared, name)}"
        for name in declared.shards
        if name.startswith(f"{path}.")
    )
    return f"{location(type(subject.ours.get_submodule(path)))}: declared are {said}"


def _otherwise(declared: Declared) -> Iterator[tuple[str, Declared, str]]:
    """Declarations in which one parameter, in all blocks alike, is split otherwise."""
    for name in _first_of_each(declared):
        shard, (path, own_name) = declared.shards[name], split_parameter_name(name)
        alike = [one for one in declared.shards if path_in_layer(one) == path_in_layer(name)]
        unit = 1 if shard is None else shard.unit
        for other in (Shard(0, unit), Shard(1, unit), None):
            if other == shard:
                continue
            shards = {**declared.shards, **dict.fromkeys(alike, other)}
            yield name, dataclasses.replace(declared, shards=shards), _shown(other)
            if path in declared.splits and own_name == "weight" and other is not None:
                split = "column" if other.dim == 0 else "row"
                of_all = dict.fromkeys(map(module_of, alike), split)
                both = Declared(shards, {**declared.splits, **of_all})
                yield name, both, f'{_shown(other)} with split="{split}"'


def _first_of_each(declared: Declared) -> list[str]:
    found: dict[str, str] = {}
    for name in declared.shards:
        found.setdefault(path_in_layer(name), name)
    return list(found.values())


def _authors(model: Transformer, path: str) -> str:
    """The module whose class the author wrote: the core's own small layers are made by another."""
    while type(model.get_submodule(path)).__module__.startswith("reallm.model.") and path.count(".") > 2:
        path = path.rpartition(".")[0]
    return path


def _said(declared: Declared, name: str) -> str:
    split = declared.splits.get(module_of(name))
    return _shown(declared.shards[name]) + (f' with split="{split}"' if split else "")


def _shown(shard: Shard | None) -> str:
    if shard is None:
        return "None"
    return f"Shard({shard.dim})" if shard.unit == 1 else f"Shard({shard.dim}, unit={shard.unit})"
