"""The machine that this process runs on, as far as it is known without measuring."""

from __future__ import annotations

import torch

from reallm.launch.cores import n_cores
from reallm.machine_memory import available_memory
from reallm.planning.known_machines import GIB, KNOWN, LINK_SHARE, USABLE_MEMORY
from reallm.planning.machine import Link, Machine

CORE_FLOPS = 30e9
"""Floating-point operations per second of a core in float32: cautious, AVX2 cores reach two to three times as many."""
CPU_MEMORY_BANDWIDTH = 10e9
"""Bytes per second that all cores together read: cautious, two channels of DDR4 reach twice as much."""
LOOPBACK = Link(1e9, 200e-6)
"""gloo between processes of one machine."""
UNKNOWN_GPU = Machine(
    name="unknown GPU",
    n_nodes=1,
    ranks_per_node=1,
    memory=8 * GIB,
    host_memory=16 * GIB,
    flops=20e12,
    memory_bandwidth=300e9,
    within_node=Link(16e9 * LINK_SHARE, 20e-6),
    between_nodes=Link(3e9, 50e-6),
    host=Link(16e9 * LINK_SHARE, 10e-6),
)
"""Cautious figures for a GPU that is not among the known ones; its memory is asked from the device."""


def this_machine(n_ranks: int | None = None) -> Machine:
    """This machine as one node: its GPUs, or else its CPU, which the ranks share.

    The numbers of devices and the memory are asked; speeds are stated: those of a known GPU of the same name, or else
    cautious ones. Only measurements are better, see `reallm.planning.profiling`.

    Args:
        n_ranks: number of ranks; None: one for each GPU, or one on a CPU.
    """
    if torch.cuda.is_available():
        return _gpus(n_ranks or torch.cuda.device_count())
    return _cpu(n_ranks or 1)


def _gpus(n_ranks: int) -> Machine:
    properties = torch.cuda.get_device_properties(0)
    name = properties.name
    like = next((machine for known, machine in KNOWN.items() if known in name.lower()), UNKNOWN_GPU)
    host = available_memory(torch.device("cpu")) or like.host_memory * n_ranks
    return Machine(
        name=f"this machine ({name})",
        n_nodes=1,
        ranks_per_node=n_ranks,
        memory=int(properties.total_memory * USABLE_MEMORY),
        host_memory=host // n_ranks,
        flops=like.flops,
        memory_bandwidth=like.memory_bandwidth,
        within_node=like.within_node,
        between_nodes=like.between_nodes,
        host=like.host,
    )


def _cpu(n_ranks: int) -> Machine:
    cores = n_cores()
    memory = (available_memory(torch.device("cpu")) or 4 * GIB) // n_ranks
    return Machine(
        name=f"this machine ({cores} CPU cores)",
        n_nodes=1,
        ranks_per_node=n_ranks,
        memory=memory,
        host_memory=memory,
        flops=CORE_FLOPS * max(1, cores / n_ranks),
        memory_bandwidth=CPU_MEMORY_BANDWIDTH / n_ranks,
        within_node=LOOPBACK,
        between_nodes=LOOPBACK,
        host=Link(CPU_MEMORY_BANDWIDTH / n_ranks / 2, 10e-6),
        device="cpu",
    )
