"""Machines whose figures are known from data sheets: `h100`, `a100` and others. Imports no torch.

Speeds of devices and links are the data sheets', times the share of them that well-written programs reach:

- `FLOPS_SHARE` of the dense bfloat16 peak: what the matrix products of whole transformer blocks reach in published
  training runs without recomputation and communication counted (Llama 3 report, table 4: 38-43 % of the peak for whole
  steps with both; FlashAttention-3 and cuBLAS alone: 65-75 %).
- `MEMORY_SHARE` of the memory bandwidth, as STREAM-like kernels and decoding reach it.
- `LINK_SHARE` of a link's bandwidth in one direction, as the large messages of nccl-tests reach it.
"""

from __future__ import annotations

import dataclasses

from reallm.errors import ConfigError, did_you_mean
from reallm.planning.machine import Link, Machine

FLOPS_SHARE = 0.6
MEMORY_SHARE = 0.8
LINK_SHARE = 0.8
USABLE_MEMORY = 0.92
"""Share of a device's memory that tensors can take: the rest goes to the context, the libraries and fragmentation."""
GB = 10**9
GIB = 2**30
NODE = 8
HOST_MEMORY = 2 * 2**40 // NODE
"""Bytes of host memory for each rank: nodes of eight such devices are sold with 2 TiB."""


def _machine(
    name: str, memory: float, tflops: float, memory_bandwidth: float, within: float, between: float, host: float
) -> Machine:
    """A node of eight devices from figures of data sheets: bytes, TFLOP/s, and bytes per second in one direction."""
    return Machine(
        name=name,
        n_nodes=1,
        ranks_per_node=NODE,
        memory=int(memory * USABLE_MEMORY),
        host_memory=HOST_MEMORY,
        flops=tflops * 1e12 * FLOPS_SHARE,
        memory_bandwidth=memory_bandwidth * MEMORY_SHARE,
        within_node=Link(within * LINK_SHARE, 10e-6),
        between_nodes=Link(between * LINK_SHARE, 20e-6),
        host=Link(host * LINK_SHARE, 10e-6),
    )


# Dense bfloat16 peaks. NVLink: half of the total that data sheets give, which counts both directions; NVSwitch connects
# all eight devices. Networks: one card for each device, as in DGX systems. Host: PCIe, 16 lanes.
KNOWN = {
    machine.name: machine
    for machine in (
        # NVIDIA A100 80GB SXM data sheet: 312 TFLOP/s, 2,039 GB/s, NVLink 600 GB/s; DGX A100: 8 x 200 Gbit/s; PCIe 4
        _machine("a100", 80 * GIB, 312, 2039 * GB, 300 * GB, 25 * GB, 32 * GB),
        # NVIDIA H100 SXM data sheet: 989 TFLOP/s, 3,350 GB/s, NVLink 900 GB/s; DGX H100: 8 x 400 Gbit/s; PCIe 5
        _machine("h100", 80 * GIB, 989, 3350 * GB, 450 * GB, 50 * GB, 64 * GB),
        # NVIDIA H200 SXM data sheet: 141 GB, 4,800 GB/s, the rest as H100; DGX H200: 8 x 400 Gbit/s
        _machine("h200", 141 * GB, 989, 4800 * GB, 450 * GB, 50 * GB, 64 * GB),
        # NVIDIA B200 (DGX B200 data sheet, an eighth): 180 GB, 2,250 TFLOP/s, 8,000 GB/s, NVLink 1,800 GB/s; PCIe 5
        _machine("b200", 180 * GB, 2250, 8000 * GB, 900 * GB, 50 * GB, 64 * GB),
        # NVIDIA L40S data sheet: 48 GB, 362 TFLOP/s, 864 GB/s, no NVLink: PCIe 4; a 400 Gbit/s card for two devices
        _machine("l40s", 48 * GB, 362, 864 * GB, 32 * GB, 25 * GB, 32 * GB),
    )
}


def known_machine(name: str, key: str = "--machine ") -> Machine:
    """One node of a known machine.

    Args:
        name: its name.
        key: what an error writes before a name that is not known.

    Raises:
        ConfigError: there is none of this name; lists them.
    """
    found = KNOWN.get(name.lower())
    if found is None:
        hint = did_you_mean(name, KNOWN) or f"; known are {', '.join(sorted(KNOWN))}"
        raise ConfigError(f"{key}{name}: not a known machine{hint}, or give a file such as machine.yaml")
    return found


def with_ranks(machine: Machine, n_ranks: int) -> Machine:
    """The same machine with as many nodes as so many ranks take.

    Fewer ranks than a node has are a part of one node.

    Raises:
        ConfigError: the ranks do not fill whole nodes.
    """
    per_node = machine.ranks_per_node
    if n_ranks < 1:
        raise ConfigError(f"--ranks {n_ranks}: must be at least 1")
    if n_ranks <= per_node:
        return dataclasses.replace(machine, n_nodes=1, ranks_per_node=n_ranks)
    if n_ranks % per_node:
        raise ConfigError(f"--ranks {n_ranks}: nodes of {machine.name} have {per_node} ranks; give a multiple of it")
    return dataclasses.replace(machine, n_nodes=n_ranks // per_node)
