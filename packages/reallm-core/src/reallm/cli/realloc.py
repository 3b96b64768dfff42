"""`reallm realloc`: the cost of a reallocation between two layouts, computed before anything is started."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from reallm.errors import ConfigError, did_you_mean
from reallm.options import REQUIRED, option

if TYPE_CHECKING:
    from reallm.model.config import ReaLModelConfig
    from reallm.parallel.layout import Layout

BANDWIDTH = "25GB/s"
"""Bandwidth of a 200 Gbit/s network card, in each direction."""
ITEMSIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
DEFAULT_DTYPE = "bfloat16"
UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
         "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}  # fmt: skip


@dataclass
class PlannedModel:
    """The model whose reallocation is planned."""

    path: str = option(REQUIRED, "HuggingFace checkpoint, of which config.json is enough: a folder, or a hub id")


@dataclass
class PlannedModels:
    """The keys of `reallm realloc`."""

    model: PlannedModel = field(default_factory=PlannedModel, metadata={"help": "the model to move"})


def realloc(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="model.path=PATH", help="Checkpoint; a folder with a config.json is enough."),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", metavar="LAYOUT", help="Layout to move from. Required.")
    ] = None,
    target: Annotated[str | None, typer.Option("--to", metavar="LAYOUT", help="Layout to move to. Required.")] = None,
    bandwidth: Annotated[
        str, typer.Option(metavar="RATE", help="Bandwidth of a rank in each direction: 25GB/s, 200Gbit/s.")
    ] = BANDWIDTH,
    dtype: Annotated[
        str | None, typer.Option(metavar="NAME", help="float32, bfloat16 or float16; by default that of config.json.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")] = False,
) -> None:
    """Show what moving a model between two layouts would send; nothing is started or loaded.

    A layout is written tp2pp2dp4; fsdp8 is dp8 with each parameter sharded,
    and tp4@4-7 lies on ranks 4 to 7 instead of the first ones.

    \b
      reallm realloc --from tp2pp2dp2 --to fsdp8 model.path=PATH
      reallm realloc --from fsdp4 --to tp4@4-7 model.path=PATH
    """
    from reallm.parallel.layout import Layout

    layouts: dict[str, Layout] = {}
    for name, text in (("--from", source), ("--to", target)):
        if text is None:
            raise ConfigError(f"{name} LAYOUT is required, such as {name} tp2pp2dp4")
        try:
            layouts[name] = Layout.parse(text)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
    rate = bytes_per_second(bandwidth)
    if dtype is not None and dtype not in ITEMSIZES:
        raise ConfigError(f"--dtype {dtype}: must be {', '.join(ITEMSIZES)}{did_you_mean(dtype, ITEMSIZES)}")
    path, config, stored_dtype = _read_model(arguments or [])
    for name, layout in layouts.items():
        _check_fits(name, config, layout)

    from reallm.cli.realloc_view import Move, print_move, to_json
    from reallm.reallocation.cost import PlanCost
    from reallm.reallocation.plan import plan

    used = dtype or stored_dtype or DEFAULT_DTYPE
    if not (dtype or stored_dtype):
        typer.echo(f"note: {path} names no dtype; {DEFAULT_DTYPE} is assumed, or give --dtype", err=True)
    cost = PlanCost(plan(config, layouts["--from"], layouts["--to"]), ITEMSIZES[used], rate)
    move = Move(path, used, layouts["--from"], layouts["--to"], cost)
    if as_json:
        typer.echo(json.dumps(to_json(move), indent=2))
    else:
        print_move(move)


def bytes_per_second(text: str) -> float:
    """Parse a rate such as `25GB/s`, `12.5GiB/s` or `200Gbit/s`.

    Raises:
        ConfigError: the text is not a rate; shows an example.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i|[kKMGT]?)(B|bit|b)(?:/s|ps)?", text.strip())
    if not match or not float(match[1]):
        raise ConfigError(f"--bandwidth {text}: must be a rate such as 25GB/s, or 200Gbit/s (B: bytes, bit: bits)")
    return float(match[1]) * UNITS[match[2]] / (1 if match[3] == "B" else 8)


def _read_model(arguments: list[str]) -> tuple[str, ReaLModelConfig, str | None]:
    """The path, the architecture, and the dtype in `config.json` if it is one of `ITEMSIZES`."""
    from reallm.config.load import load

    path = load(PlannedModels, arguments=arguments).build().model.path

    from reallm.hf.checkpoint_folder import read_hf_config, resolve_path
    from reallm.hf.conversion.config import load_model_config

    config = load_model_config(path)
    raw = read_hf_config(resolve_path(path, weights=False))
    stored = str(raw.get("dtype") or raw.get("torch_dtype")).removeprefix("torch.")
    return path, config, stored if stored in ITEMSIZES else None


def _check_fits(name: str, config: ReaLModelConfig, layout: Layout) -> None:
    from reallm.parallel.sharding import check_fits

    try:
        check_fits(config, layout)
    except ConfigError as error:
        raise ConfigError(f"{name} {layout.short}: {error}") from None
