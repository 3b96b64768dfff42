"""Why a plan does not fit into memory, as one line."""

from __future__ import annotations

from reallm.planning.offloading import Fitted
from reallm.planning.simulator import Simulator
from reallm.training.memory import size_text

LARGEST = 3
"""Number of items that are named."""


def misfit(simulator: Simulator, found: Fitted) -> str:
    """The rank that needs the most memory, the call in which it does, and what takes the most of it."""
    machine, simulation = simulator.machine, simulator.simulate(found.plan(simulator.graph))
    rank = max(simulation.memory, key=lambda rank: simulation.memory[rank].peak)
    memory = simulation.memory[rank]
    if memory.peak <= machine.memory:
        rank = max(simulation.memory, key=lambda rank: simulation.memory[rank].host_peak)
        needed = simulation.memory[rank].host_peak
        room = size_text(machine.host_memory)
        return f"rank {rank} offloads {size_text(needed)} to host memory, of which each rank has {room}"
    items = ", ".join(f"{what} {size_text(n)}" for what, n in list(memory.peak_items.items())[:LARGEST])
    return (
        f"rank {rank} needs {size_text(memory.peak)} of {size_text(machine.memory)} in the call '{memory.peak_call}' "
        f"({items})"
    )
