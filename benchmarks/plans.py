"""Predicted times of execution plans against measured ones: PPO and GRPO on two gloo ranks.

The ranks measure the models, one alone and both at once, as `reallm plan --profile` does. Then steps are trained under
many plans, in several rounds in which each plan has its turn, and the median time of a step under a plan is compared
with what the simulator predicts. Figures:

- `spearman_<algorithm>`: rank correlation of predicted and measured times of a step, over the plans (at least 0.8);
- `best_over_chosen_<algorithm>`: time of the fastest plan over that of the plan that is predicted to be the fastest
  (at least 0.9);
- `call_accuracy_<algorithm>`: 1 - the median relative error of the time of a call (at least 0.75);
- `spearman_of_halves_<algorithm>`: rank correlation of the times measured in half of the rounds with those measured in
  the others: what noise leaves of the order of the plans.

    python benchmarks/plans.py --quick --json figures.json
"""

from __future__ import annotations

import itertools
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import machine, parser, write_json
from ranks import Ranks

N_RANKS = 2
BARS = {"spearman": 0.8, "best_over_chosen": 0.9, "call_accuracy": 0.75}
LAYOUTS = ("dp1@0", "dp1@1", "dp2", "tp2", "pp2")


def main() -> None:
    """Measure, print, and write the figures if asked to."""
    arguments = parser("Predicted times of execution plans against measured ones.").parse_args()
    quick = arguments.quick
    print(machine())
    figures: dict[str, float] = {}
    for algorithm, n_plans in (("ppo", 24 if quick else 100), ("grpo", 20 if quick else 125)):
        figures |= validate(algorithm, n_plans, rounds=3 if quick else 6, profile_seconds=40 if quick else 180)
    bars = {f"{name}_bar": BARS[kind] for name in figures if (kind := name.rpartition("_")[0]) in BARS}
    write_json(arguments.json, figures | bars)


def validate(algorithm: str, n_plans: int, rounds: int, profile_seconds: float) -> dict[str, float]:
    """Figures of one algorithm."""
    from plans_work import PROFILE, Work, call_times, make, median_step

    work = all_plans(Work(algorithm, profile_seconds=profile_seconds))
    with tempfile.TemporaryDirectory() as scratch:
        ranks = Ranks(list(range(N_RANKS)), str(Path(scratch) / "store"), make, work)
        seconds, (profile, _) = ranks.do(PROFILE)
        print(f"{algorithm}: measured the models in {seconds:.0f} s")
        predicted = predict(work, profile)
        names = chosen_plans(predicted, n_plans)
        visits: dict[str, list[Any]] = {name: [] for name in names}
        for turn in range(rounds):
            for name in random.Random(turn).sample(names, len(names)):
                visits[name].append(ranks.do(f"{turn} {name}")[1][0])
        ranks.close()
    steps = {name: list(itertools.chain.from_iterable(found)) for name, found in visits.items()}
    measured = {name: median_step(steps[name]) for name in names}
    halves = [
        [median_step(list(itertools.chain.from_iterable(visits[name][half::2]))) for name in names] for half in (0, 1)
    ]
    errors: dict[str, list[float]] = {}
    for name in names:
        for call, real in call_times(steps[name]).items():
            if call in predicted[name][1]:
                errors.setdefault(call, []).append(abs(predicted[name][1][call] - real) / real)
    for name in sorted(names, key=measured.__getitem__):
        fastest, slowest = (choose(seconds for seconds, _ in steps[name]) for choose in (min, max))
        print(
            f"  {measured[name]:7.3f} s ({fastest:.3f} to {slowest:.3f}), predicted {predicted[name][0]:7.3f} s: {name}"
        )
    for call, of_call in errors.items():
        for layout in LAYOUTS:
            pairs = [
                (call_times(steps[name])[call], predicted[name][1][call])
                for name in names
                if work.plans[name][call].replace("fsdp", "dp") == layout
            ]
            if pairs:
                real, guess = (statistics.median(each) for each in zip(*pairs, strict=True))
                print(f"  {call} in {layout}: {real:.3f} s, predicted {guess:.3f} s")
        print(f"  {call}: median error {statistics.median(of_call):.0%} of {len(of_call)}")
    guesses = [predicted[name][0] for name in names]
    chosen = min(names, key=lambda name: predicted[name][0])
    figures = {
        f"spearman_{algorithm}": spearman(guesses, list(measured.values())),
        f"best_over_chosen_{algorithm}": min(measured.values()) / measured[chosen],
        f"call_accuracy_{algorithm}": 1 - statistics.median(itertools.chain.from_iterable(errors.values())),
        f"spearman_of_halves_{algorithm}": spearman(*halves),
    }
    print("\n".join(f"  {name}: {value:.3f}" for name, value in figures.items()))
    return figures


def all_plans(work: Any) -> Any:
    """The work with every plan: each call that has a model in each layout."""
    import dataclasses

    calls = [call.name for call in work.graph.calls if call.kind != "reward"]
    fixed = {call.name: "dp1@0" for call in work.graph.calls if call.kind == "reward"}
    plans = {}
    for layouts in itertools.product(LAYOUTS, repeat=len(calls)):
        of_calls = dict(zip(calls, layouts, strict=True))
        for name, layout in of_calls.items():
            if name.endswith("_train"):
                of_calls[name] = layout.replace("dp2", "fsdp2")  # as `parallel.zero` shards what is trained
        plans[" ".join(f"{call}={layout}" for call, layout in of_calls.items())] = of_calls | fixed
    return dataclasses.replace(work, plans=plans)


def predict(work: Any, profile: Any) -> dict[str, tuple[float, dict[str, float]]]:
    """Predicted seconds of a step under each plan, and of each of its calls with a model."""
    from reallm.planning.profiling.use import with_profile

    job = with_profile(work.job(N_RANKS), profile, Path("profile"))
    with_model = [call.name for call in work.graph.calls if call.kind != "reward"]
    found = {}
    for name in work.plans:
        plan = work.plan(name)
        simulation = job.simulator.simulate(plan)
        calls = {call: end - start for call, (start, end) in simulation.calls.items() if call in with_model}
        found[name] = simulation.seconds, calls
    return found


def chosen_plans(predicted: dict[str, tuple[float, Any]], n: int) -> list[str]:
    """Some plans: the one that is predicted to be the fastest, and others that are spread over the predicted times."""
    ordered = sorted(predicted, key=lambda name: predicted[name][0])
    draw = random.Random(1)
    parts = [ordered[len(ordered) * index // n : len(ordered) * (index + 1) // n] for index in range(n)]
    return [ordered[0], *(draw.choice(part) for part in parts[1:])]


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """The correlation of ranks."""

    def ranks(values: Sequence[float]) -> list[float]:
        ordered = sorted(values)
        return [float(ordered.index(value)) for value in values]

    return statistics.correlation(ranks(first), ranks(second))


if __name__ == "__main__":
    main()
