"""Reads a machine from a YAML file. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from reallm.config.load import load
from reallm.errors import ConfigError
from reallm.options import REQUIRED, option
from reallm.planning.machine import Link, Machine


@dataclass
class LinkKeys:
    """The keys of a link."""

    bandwidth: float = option(REQUIRED, "bytes per second of a rank in each direction")
    latency: float = option(REQUIRED, "seconds before the first byte")


@dataclass
class MachineKeys:
    """The keys of a machine's file."""

    name: str | None = option(None, "what it is called in tables; null: the name of the file")
    n_nodes: int = option(1, "number of nodes")
    ranks_per_node: int = option(REQUIRED, "devices of a node, one rank for each")
    memory: float = option(REQUIRED, "bytes that a rank can allocate on its device")
    host_memory: float = option(REQUIRED, "bytes of host memory for each rank")
    flops: float = option(REQUIRED, "floating-point operations per second that large matrix products reach")
    memory_bandwidth: float = option(REQUIRED, "bytes per second that a rank reads from its device's memory")
    within_node: LinkKeys = field(default_factory=LinkKeys, metadata={"help": "messages between ranks of a node"})
    between_nodes: LinkKeys = field(
        default_factory=LinkKeys, metadata={"help": "messages between nodes, all ranks at once"}
    )
    device: Literal["cuda", "cpu"] = option("cuda", "kind of the devices")
    host: LinkKeys = field(default_factory=LinkKeys, metadata={"help": "copies between a device and host memory"})


def read_machine(path: Path) -> Machine:
    """The machine that a YAML file describes.

    Raises:
        ConfigError: the file cannot be read, a key is missing or unknown, or a value is not allowed; names file and
            line.
    """
    if not path.is_file():
        raise ConfigError(f"--machine {path}: {'is a folder' if path.is_dir() else 'there is no such file'}")
    configuration = load(MachineKeys, [path])
    try:
        keys: MachineKeys = configuration.build()
        return Machine(
            name=keys.name or path.stem,
            n_nodes=keys.n_nodes,
            ranks_per_node=keys.ranks_per_node,
            memory=int(keys.memory),
            host_memory=int(keys.host_memory),
            flops=keys.flops,
            memory_bandwidth=keys.memory_bandwidth,
            within_node=_built("within_node", keys.within_node),
            between_nodes=_built("between_nodes", keys.between_nodes),
            host=_built("host", keys.host),
            device=keys.device,
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _built(name: str, keys: LinkKeys) -> Link:
    try:
        return Link(keys.bandwidth, keys.latency)
    except ConfigError as error:
        raise ConfigError(f"{name}.{error}") from error
