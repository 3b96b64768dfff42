"""The check of what layers say of how their parameters may be split."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from reallm.errors import PluginError
from reallm.model.shard import Shard
from reallm.model.transformer import Transformer
from reallm.testing.checks import CheckFailed, Skipped, check
from reallm.testing.families.closeness import is_close, largest
from reallm.testing.families.numbers import packing
from reallm.testing.families.reference import packed
from reallm.testing.families.split_run import CannotSplitError, Declared, RankError, run_split
from reallm.testing.families.subject import FamilySubject, run_packed
from reallm.testing.source import location

RANKS = (2, 4)


@check(needs=[packing])
def shards(subject: FamilySubject) -> str:
    """split among ranks as its layers declare, the network computes what it computes whole"""
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
            where, seen = fault
            raise CheckFailed(
                f"on {n_ranks} ranks, the logits of the whole", seen, where, _culprit(subject, declared, n_ranks, where)
            )
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


def _fault(subject: FamilySubject, declared: Declared, n_ranks: int) -> tuple[str, str] | None:
    """Where results begin to differ and what is seen there; None if they are those of the whole."""
    model = subject.ours
    tokens, cu_seqlens = packed(subject.samples[1:4])
    whole, expected = _heard(model, tokens, cu_seqlens)
    try:
        run = run_split(model, declared, n_ranks, tokens, cu_seqlens, list(whole))
    except RankError as error:
        return _described(model, error.path), f"raised {error}"
    if is_close(run.logits, expected):
        return None
    for path, value in whole.items():
        if path in run.heard and not is_close(run.heard[path], value):
            return _described(model, path), f"its outputs on {n_ranks} ranks are not those of the whole"
    if run.logits.shape != expected.shape:
        return "the output head", f"logits of shape {list(run.logits.shape)}"
    return "the output head", f"logits differ by up to {largest(run.logits, expected)[0]:.2g}"


@torch.no_grad()
def _heard(model: Transformer, tokens: Tensor, cu_seqlens: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Outputs of the embedding, of the parts of blocks, and of blocks, in the order in which they come; and logits."""
    heard: dict[str, Tensor] = {}

    def listen(path: str) -> torch.utils.hooks.RemovableHandle:
        def note(_: object, __: object, out: object) -> None:
            if isinstance(out, Tensor):
                heard[path] = out

        return model.get_submodule(path).register_forward_hook(note)

    blocks = [f"layers.{layer}" for layer in range(1, model.config.n_layers + 1)]
    children = [f"{block}.{name}" for block in blocks for name, _ in model.get_submodule(block).named_children()]
    handles = [listen(path) for path in ("layers.0", *children, *blocks)]
    try:
        logits = run_packed(model, tokens, cu_seqlens)
    finally:
        for handle in handles:
            handle.remove()
    return heard, logits


def _described(model: Transformer, path: str) -> str:
    return f"{path} ({type(model.get_submodule(path)).__qualname__})"


def _culprit(subject: FamilySubject, declared: Declared, n_ranks: int, where: str) -> str:
    """The one parameter with which all would be well if it were declared otherwise; else all that are declared."""
    for name, other, said in _otherwise(declared):
        try:
            if _fault(subject, other, n_ranks) is None:
                owner = location(type(subject.ours.get_submodule(_authors(subject.ours, name.rpartition(".")[0]))))
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
        shard, path, own_name = declared.shards[name], name.rpartition(".")[0], name.rpartition(".")[2]
        alike = [one for one in declared.shards if _within(one) == _within(name)]
        unit = 1 if shard is None else shard.unit
        for other in (Shard(0, unit), Shard(1, unit), None):
            if other == shard:
                continue
            shards = {**declared.shards, **dict.fromkeys(alike, other)}
            yield name, dataclasses.replace(declared, shards=shards), _shown(other)
            if path in declared.splits and own_name == "weight" and other is not None:
                split = "out" if other.dim == 0 else "in"
                of_all = dict.fromkeys((one.rpartition(".")[0] for one in alike), split)
                both = Declared(shards, {**declared.splits, **of_all})
                yield name, both, f'{_shown(other)} with split="{split}"'


def _first_of_each(declared: Declared) -> list[str]:
    found: dict[str, str] = {}
    for name in declared.shards:
        found.setdefault(_within(name), name)
    return list(found.values())


def _within(name: str) -> str:
    """A parameter's name in its layer."""
    return name.split(".", 2)[2]


def _authors(model: Transformer, path: str) -> str:
    """The module whose class the author wrote: the core's own small layers are made by another."""
    while type(model.get_submodule(path)).__module__.startswith("reallm.model.") and path.count(".") > 2:
        path = path.rpartition(".")[0]
    return path


def _said(declared: Declared, name: str) -> str:
    split = declared.splits.get(name.rpartition(".")[0])
    return _shown(declared.shards[name]) + (f' with split="{split}"' if split else "")


def _shown(shard: Shard | None) -> str:
    if shard is None:
        return "None"
    return f"Shard({shard.dim})" if shard.unit == 1 else f"Shard({shard.dim}, unit={shard.unit})"
