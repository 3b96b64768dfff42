"""Search of execution plans: how many plans of PPO a core simulates a second, how long it searches for 1,024 ranks, and
how long `reallm plan` takes for 8 ranks.

Simulated are random plans of PPO with four 7B models on 8 GPUs, each only for its time and its memory; the bar is 2,000
a second. Searched is the plan of PPO with four 70B models on 1,024 GPUs, with empty caches, including the costs of all
calls; the bar is 60 s. Commands are timed from the start of the process to the end of the table: PPO with models of
several sizes, with and without gradient checkpointing, and on GPUs whose memory is so small that copies are offloaded;
the bar is 3 s for the slowest. The first command of each kind has an empty cache, and its time is printed as well; what
counts is the best of a few. All in process time, which a busy machine disturbs little, on one core and on stated
figures of H100s. Nothing is allocated and no rank is started.

    python benchmarks/plan_search.py --quick --json figures.json
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from common import machine, parser, write_json

if TYPE_CHECKING:
    from reallm.planning.job import PlannedJob

PLANS_PER_SECOND = 2000.0
SEARCH_SECONDS = 60.0
COMMAND_SECONDS = 3.0
SIZES: dict[str, dict[str, Any]] = {
    "7B": {"n_layers": 32, "hidden_size": 4096, "n_q_heads": 32, "n_kv_heads": 8, "intermediate_size": 14336},
    "1B": {"n_layers": 16, "hidden_size": 2048, "n_q_heads": 32, "n_kv_heads": 8, "intermediate_size": 8192},
    "13B": {"n_layers": 40, "hidden_size": 5120, "n_q_heads": 40, "n_kv_heads": 40, "intermediate_size": 13824},
    "70B": {"n_layers": 80, "hidden_size": 8192, "n_q_heads": 64, "n_kv_heads": 8, "intermediate_size": 28672},
}
"""Llama 3, and Llama 2 with 13B."""
N_MINIBATCHES = 8
WORK = ("dataset.train_bs_n_seqs=128", "ppo.gen.max_new_tokens=1024", "--prompt-lens", "512")
FULL = ("actor.gradient_checkpointing=full", "critic.gradient_checkpointing=full")
LITTLE_MEMORY = """
n_nodes: 1
ranks_per_node: 8
memory: 40e9
host_memory: 250e9
flops: 600e12
memory_bandwidth: 2.7e12
within_node: {bandwidth: 360e9, latency: 10e-6}
between_nodes: {bandwidth: 40e9, latency: 20e-6}
host: {bandwidth: 50e9, latency: 10e-6}
"""
COMMANDS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "1B": ("1B", "h100", ()),
    "7B": ("7B", "h100", ()),
    "13B": ("13B", "h100", FULL),
    "7B in little memory": ("7B", "little.yaml", FULL),
}
"""Name of each command -> size of the models, machine, and further arguments."""


def ppo(size: str, n_ranks: int, n_prompts: int) -> PlannedJob:
    """PPO with four models of a size; prompts and answers have 1,024 tokens."""
    from reallm import ReaLModelConfig
    from reallm.algorithms.graph import Graph
    from reallm.cli.algorithm import load_configuration
    from reallm.planning.cost_settings import CostSettings, RoleSettings
    from reallm.planning.job import PlannedJob
    from reallm.planning.known_machines import known_machine, with_ranks
    from reallm.planning.workload import Lengths, Workload
    from reallm.plugins import registry

    keys = ["reward.path=reward", f"ppo.ppo_n_minibatches={N_MINIBATCHES}"]
    config = load_configuration("ppo", [], keys).with_placeholders().build()
    graph = Graph.of(registry.get("algorithm", "ppo"), config)
    model = ReaLModelConfig(**SIZES[size], head_dim=128, vocab_size=128256, max_positions=8192)
    models = {role: model.replace(is_critic=role in ("critic", "reward")) for role in graph.roles}
    lengths = Lengths.constant(1024)
    workload = Workload(n_prompts, lengths, answers=lengths, n_minibatches=N_MINIBATCHES)
    settings = CostSettings({role: RoleSettings(gradient_checkpointing="full") for role in graph.roles})
    return PlannedJob(graph, models, with_ranks(known_machine("h100"), n_ranks), workload, settings)


def plans_per_second(n_plans: int) -> float:
    """Random plans that are simulated in a second of process time."""
    from reallm.planning.candidates import Candidates

    job, randomly = ppo("7B", 8, 128), random.Random(1)
    candidates = Candidates.of(job.graph, job.costs, job.machine, fits=job.check_fits)
    choices = [candidates.placed(call.name) for call in job.graph.calls]
    simulator = job.simulator
    plans = [
        simulator.shared([simulator.place(number, randomly.choice(one)) for number, one in enumerate(choices)])
        for _ in range(n_plans)
    ]
    for plan in plans[: n_plans // 4]:  # costs of moves are looked up from then on, as in a search
        simulator.outcome(plan)
    start = time.process_time()
    for plan in plans:
        simulator.outcome(plan)
    return n_plans / (time.process_time() - start)


def command_seconds(size: str, made: str, arguments: Sequence[str], folder: Path) -> float:
    """Process time of `reallm plan` with models of a size, from its start to its end."""
    sizes = SIZES[size]
    model = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "hidden_size": sizes["hidden_size"],
        "num_hidden_layers": sizes["n_layers"],
        "num_attention_heads": sizes["n_q_heads"],
        "num_key_value_heads": sizes["n_kv_heads"],
        "intermediate_size": sizes["intermediate_size"],
    }
    (folder / "config.json").write_text(json.dumps(model))
    (folder / "little.yaml").write_text(LITTLE_MEMORY)
    command = [sys.executable, "-m", "reallm", "plan", "ppo", "actor.path=.", "reward.path=.", "--machine", made]
    # modules are compiled in the first round and kept, as those of an installed package
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    before = os.times()
    subprocess.run(
        [*command, *WORK, *arguments],
        cwd=folder,
        env={**environment, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def slowest_command(n_rounds: int) -> float:
    """The time of the slowest command, each the best of some rounds."""
    slowest = 0.0
    for name, command in COMMANDS.items():
        with TemporaryDirectory() as folder:
            first, *others = [command_seconds(*command, Path(folder)) for _ in range(n_rounds)]
        best = min(first, *others)
        print(f"reallm plan, 8 ranks, {name}: {best:.2f} s (bar {COMMAND_SECONDS:g} s), the first one {first:.2f} s")
        slowest = max(slowest, best)
    return slowest


def main() -> None:
    """Measure, print, and write the figures if asked to."""
    options = parser(str(__doc__).splitlines()[0]).parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import torch

    from reallm.planning.search import search

    torch.set_num_threads(1)
    print(f"{machine()}; PPO on stated figures of H100s")
    rate = max(plans_per_second(2000 if options.quick else 10000) for _ in range(1 if options.quick else 3))
    print(f"8 ranks: {rate:,.0f} simulated plans a second (bar {PLANS_PER_SECOND:,.0f})")
    job = ppo("70B", 1024, 4096)
    start = time.process_time()
    found = search(job.simulator, fits=job.check_fits)
    seconds = time.process_time() - start
    print(
        f"1,024 ranks: searched in {seconds:.1f} s (bar {SEARCH_SECONDS:g} s): {found.n_evaluated:,} plans, a step of "
        f"{found.outcome.seconds:.1f} s, {found.gain or 0:.2f} times as fast as heuristic, at most {found.gap:.0%} "
        "above the best"
    )
    for assignment in found.plan.assignments(job.graph):
        print(f"  {assignment}")
    command = slowest_command(2 if options.quick else 5)
    figures = {
        "plan_command": COMMAND_SECONDS / command,
        "plan_command_bar": 1.0,
        "simulated_plans_per_second_over_bar": rate / PLANS_PER_SECOND,
        "simulated_plans_per_second_over_bar_bar": 1.0,
        "search_1024_ranks_speedup_over_bar": SEARCH_SECONDS / seconds,
        "search_1024_ranks_speedup_over_bar_bar": 1.0,
    }
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
