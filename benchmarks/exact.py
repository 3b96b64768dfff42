"""Exact mode: what it costs, and that it holds, on SmolLM2-135M in float32.

In exact mode the log-probabilities of completions are those that a packed forward pass gives for the same tokens, bit
for bit. `exact_<work>` is the time of the usual mode divided by that of exact mode; the bar of 0.667 says that exact
mode takes at most 1.5 times as long. `exact_difference_usual` is the largest difference of a log-probability in the
usual mode; that in exact mode is checked to be 0 in each run, or the benchmark stops.

    python benchmarks/exact.py --quick --json figures.json
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from common import Ratio, interleave, machine, parser, write_json
from generation_work import Requests, Text, lognormal
from reallm import ReaLModel
from reallm.generation.config import GenerationConfig
from reallm.generation.mismatch import logprob_mismatch
from reallm.generation.request import Completion, Request
from reallm.model.exact import why_not_exact
from workloads import model_folder

BAR = 1 / 1.5
LARGEST = "sampling/sampling_logp_difference/max"


def main() -> None:
    """Measure, print, and write the figures if asked to."""
    arguments = parser(str(__doc__).splitlines()[0]).parse_args()
    rounds = 3 if arguments.quick else 9
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        folder = model_folder("smollm2", Path(scratch))
        model, text = ReaLModel.from_pretrained(folder), Text(folder)
    if reason := why_not_exact(model.network):
        raise SystemExit(f"exact mode is not possible here: {reason}")
    works = {
        "1": Requests(text.prompts(1, 32), (32,)),
        "16": Requests(text.prompts(16, 32), (32,) * 16),
        "64": Requests(text.prompts(64, 32), (32,) * 64),
        "lognormal": Requests(text.prompts(16, 32), lognormal(16, 64, 1.0, 256)),
        "samples": Requests(text.prompts(2, 256), (32,) * 2, n=8),
    }
    figures: dict[str, float] = {}
    usual: list[float] = []
    for name, work in works.items():
        latest: dict[bool, list[Completion]] = {}
        ratio = compare(
            lambda exact, w=work, kept=latest: kept.update({exact: generate(model, w, exact=exact)}), rounds
        )
        differences = {exact: difference(model, completions, exact=exact) for exact, completions in latest.items()}
        if differences[True] != 0:
            raise SystemExit(f"{name}: log-probabilities differ by up to {differences[True]:.1e} in exact mode")
        usual.append(differences[False])
        figures |= {f"exact_{name}": ratio.median, f"exact_{name}_bar": BAR}
        print(f"{name:9s} usual / exact {ratio}; differences {differences[False]:.1e} / 0", flush=True)
    packed = packed_tokens(latest[True])
    ratio = compare(lambda exact: model.token_logprobs(*packed, exact=exact), rounds)
    figures |= {"exact_logprobs": ratio.median, "exact_logprobs_bar": BAR, "exact_difference_usual": max(usual)}
    print(f"logprobs  usual / exact {ratio} ({len(packed[0])} tokens in one packed pass)")
    write_json(arguments.json, figures)


def compare(run: Callable[[bool], object], rounds: int) -> Ratio:
    """Time of the usual mode divided by that of exact mode."""
    seconds = interleave({"usual": lambda: run(False), "exact": lambda: run(True)}, rounds)
    return Ratio.of(seconds["usual"], seconds["exact"])


def generate(model: ReaLModel, work: Requests, *, exact: bool) -> list[Completion]:
    """Continue all prompts of a work in one engine."""
    with model.generation_engine(exact=exact) as engine:
        for key, (prompt, n_new) in enumerate(zip(work.prompts, work.new_tokens, strict=True)):
            settings = GenerationConfig(max_new_tokens=n_new, n=work.n, temperature=1.0, stop_token_ids=())
            engine.add(Request(prompt, settings, key=key))
        return engine.run()


def difference(model: ReaLModel, completions: Sequence[Completion], *, exact: bool) -> float:
    """The largest difference of a log-probability from that of a packed pass."""
    tokens, bounds = packed_tokens(completions)
    scored = model.token_logprobs(tokens, bounds, exact=exact)
    starts = [int(bound) + len(each.prompt_ids) for bound, each in zip(bounds, completions, strict=False)]
    training = torch.cat([scored[a:b] for a, b in zip(starts, bounds[1:].tolist(), strict=True)])
    rollout = torch.tensor([value for each in completions for value in each.logprobs])
    return logprob_mismatch(rollout, training)[LARGEST]


def packed_tokens(completions: Sequence[Completion]) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of all prompts and completions, and the bounds of the sequences."""
    sequences = [[*each.prompt_ids, *each.token_ids] for each in completions]
    lengths = torch.tensor([0, *map(len, sequences)])
    return torch.tensor([token for sequence in sequences for token in sequence]), lengths.cumsum(0)


if __name__ == "__main__":
    main()
