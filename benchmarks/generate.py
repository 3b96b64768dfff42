"""Generation: reallm against transformers' `generate` and its continuous batching, on SmolLM2-135M in float32.

- `equal_1`, `equal_16`, `equal_64`: that many prompts of 32 tokens, 32 new tokens after each, greedy;
- `lognormal`: 64 prompts of 32 tokens; the numbers of new tokens are lognormal, with median 64, sigma 1, at most 512
  (`--quick`: a quarter of these lengths, and of the prompts);
- `samples`: 8 samples each of two prompts of 256 tokens, 32 new tokens;
- from the start of a process to its first token: a script and `reallm generate` against a script with transformers.

Each side is a process of its own, and they take turns; figures are ratios within a round. Numbers of new tokens are the
same for all sides. Before any speed is printed, the tokens of greedy runs are compared. The limit is what a run cannot
avoid: products by the fastest library, or with a single sequence reading the weights once for each token. reallm's
side is an engine that stays; `one_call` is `model.generate`, which prepares one for each call. With `--quick` some
sides are left out.

    python benchmarks/generate.py --quick --json figures.json
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers

from common import Ratio, machine, parser, write_json
from first_token import first_token
from generation_profile import profile
from generation_work import Job, RandomIds, Requests, Text, lognormal
from rounds import Pace, Steps, take_turns, timed
from workers import Step, Worker
from workloads import LLAMA_TINY, model_folder, random_llama

SIDES = {
    "reallm": "generation_sides:reallm",
    "limit": "generation_sides:limit",
    "one_call": "generation_sides:reallm_one_call",
    "eager": "generation_sides:reallm_eager",
    "static": "generation_sides:transformers_static",
    "continuous": "generation_sides:transformers_continuous",
}


@dataclass(frozen=True)
class Work:
    """One comparison: who takes part, and how often."""

    name: str
    title: str
    peers: tuple[str, ...]
    bars: Mapping[str, float]
    """Of the time of a peer divided by reallm's; of the limit, its share of reallm's time."""
    quick_rounds: int
    rounds: int
    warm_up: bool = True
    not_quick: tuple[str, ...] = ()
    """Peers that are left out with `--quick`."""
    same_tokens: float = 0.9
    """Share of the sequences that must be equal in all their tokens, if they are greedy. Where two tokens are almost
    equally likely, rounding decides, and from there on texts differ."""

    def shortened(self) -> Work:
        """The same with `--quick`."""
        peers = tuple(peer for peer in self.peers if peer not in self.not_quick)
        return replace(self, peers=peers, rounds=self.quick_rounds)


WORKS = (
    Work("equal_1", "1 sequence", ("limit", "one_call", "static", "continuous"), {"static": 2.0, "limit": 0.7}, 5, 9),
    Work("equal_16", "16 sequences", ("limit", "static", "continuous"), {"static": 1.8}, 2, 5),
    Work(
        "equal_64",
        "64 sequences",
        ("limit", "static", "continuous"),
        {"static": 1.8, "limit": 0.7},
        1,
        5,
        not_quick=("continuous",),
    ),
    Work(
        "lognormal",
        "64 sequences of lognormal lengths",
        ("static", "continuous"),
        {"static": 5.0, "continuous": 3.0},
        1,
        3,
        warm_up=False,
    ),
    Work("samples", "8 samples of two prompts", ("static", "continuous"), {"static": 3.0}, 2, 5, warm_up=False),
)
GPU_WORK = Work(
    "gpu",
    "256 requests of 100 to 1,024 tokens, as many new ones, 1.2B random weights, bfloat16",
    ("eager", "static", "continuous"),
    {"static": 5.0, "continuous": 3.0},
    1,
    3,
    same_tokens=0.0,  # of random weights in bfloat16, rounding decides everywhere
)
LLAMA_1B = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
QUICK_SECONDS = 380.0
"""When `--quick` begins no more rounds; the time to the first token is measured after them."""


def main() -> None:
    """Measure, print a table for each work, and write the figures if asked to."""
    started = time.monotonic()
    arguments_of = parser(str(__doc__).splitlines()[0])
    arguments_of.add_argument("--tiny", action="store_true", help="a tiny model, one round: does it all still run?")
    arguments_of.add_argument("--only", nargs="+", metavar="WORK", help="only these works (first_token is one)")
    arguments_of.add_argument(
        "--profile", action="store_true", help="instead: where the time of reallm's steps goes, by kind of work"
    )
    arguments_of.add_argument(
        "--gpu", action="store_true", help=f"instead: {GPU_WORK.title}, with CUDA graphs and without (never run yet)"
    )
    arguments_of.add_argument("--threads", type=int, help="threads of each side; by default all cores")
    arguments = arguments_of.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if arguments.threads:
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
        torch.set_num_threads(arguments.threads)

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.0f} s] {text}", flush=True)

    print(f"{machine()}; torch {torch.__version__}, transformers {transformers.__version__}")
    names = [*(work.name for work in WORKS), "first_token"]
    if unknown := set(arguments.only or ()) - set(names):
        raise SystemExit(f"--only {' '.join(unknown)}: choose from {', '.join(names)}")
    wanted = set(arguments.only or names)
    until = started + QUICK_SECONDS if arguments.quick else float("inf")
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.gpu:
            job, works = _gpu_job(Path(scratch)), [GPU_WORK]
        else:
            folder = model_folder("tiny" if arguments.tiny else "smollm2", Path(scratch))
            text = RandomIds(LLAMA_TINY["vocab_size"]) if arguments.tiny else Text(folder)
            job = Job(folder, _requests(text, scale=16 if arguments.tiny else 4 if arguments.quick else 1))
            works = [work for work in WORKS if work.name in wanted]
        if arguments.quick:
            works = [work.shortened() for work in works]
        if arguments.profile:
            profile(job, n_steps=4 if arguments.tiny else 16)
            return
        sides = {"reallm", *(peer for work in works for peer in work.peers)} if works else set()
        workers = {name: Worker(name, SIDES[name], job) for name in SIDES if name in sides}
        try:
            for worker in workers.values():
                worker.ready()
            for work in works:
                pace = Pace(1 if arguments.tiny else work.rounds, until, work.warm_up)
                figures |= _compare(work, job, workers, pace, say)
                write_json(arguments.json, figures)  # after each work: a run that is stopped leaves what it has
        finally:
            for worker in workers.values():
                worker.close()
        if "first_token" in wanted and not (arguments.tiny or arguments.gpu):
            say("from the start of a process to its first token")
            figures |= first_token(job.folder, rounds=5 if arguments.quick else 15)
            write_json(arguments.json, figures)
    say("done")


def _requests(text: Text | RandomIds, scale: int) -> dict[str, Requests]:
    """What is asked for in each work; `scale` divides the lengths of the lognormal one."""
    lengths = lognormal(64, 64 / scale, 1.0, 512 // scale)
    return {
        **{f"equal_{n}": Requests(text.prompts(n, 32), (32,) * n) for n in (1, 16, 64)},
        "lognormal": Requests(text.prompts(64, 32 // scale), lengths),
        "samples": Requests(text.prompts(2, 256), (32, 32), n=8),
    }


def _gpu_job(scratch: Path) -> Job:
    if not torch.cuda.is_available():
        raise SystemExit("--gpu: there is no GPU")
    draw, ids = random.Random(0), RandomIds(LLAMA_1B["vocab_size"])
    lengths = [(draw.randint(100, 1024), draw.randint(100, 1024)) for _ in range(256)]
    requests = Requests(tuple(ids.prompts(1, n)[0] for n, _ in lengths), tuple(n_new for _, n_new in lengths))
    return Job(random_llama(LLAMA_1B, scratch / "llama-1b"), {GPU_WORK.name: requests}, "cuda", "bfloat16")


def _compare(
    work: Work, job: Job, workers: Mapping[str, Worker], pace: Pace, say: Callable[[str], None]
) -> dict[str, float]:
    """Time one work, print its table and return its figures."""
    requests = job.requests[work.name]
    say(
        f"{work.name}: {len(requests.prompts)} prompts of up to {max(map(len, requests.prompts))} tokens, "
        f"{requests.n_generated:,} new tokens, up to {max(requests.new_tokens)} in a sequence"
    )
    sides = [workers[name] for name in ("reallm", *work.peers)]
    steps = take_turns(sides, pace, lambda steps: _check_tokens(steps, requests, work.same_tokens, say), say, work.name)
    ours = steps["reallm"]
    print(f"\n{work.title}; ratios are theirs over ours, medians of the rounds (quartiles)")
    print(f"  {'':14s}{'s':>7s}{'tokens/s':>10s}  {'time':22s} bar")
    print(f"  {'reallm':14s}{_median(ours):7.2f}{requests.n_generated / _median(ours):10.1f}")
    figures: dict[str, float] = {}
    for name in work.peers:
        ratio = Ratio.of(*timed(steps[name], ours))
        figure = f"generate_{work.name}_{'share_of_limit' if name == 'limit' else f'over_{name}'}"
        figures[figure] = ratio.median
        bar = work.bars.get(name)
        if bar is not None:
            figures[f"{figure}_bar"] = bar
        seconds = _median(steps[name])
        print(f"  {name:14s}{seconds:7.2f}{requests.n_generated / seconds:10.1f}  {ratio!s:22s} {bar or ''}")
    if "limit" in work.peers:
        most = Ratio.of(*timed(steps["static"], steps["limit"]))
        print(f"  static over the limit, the most that any engine could get: {most}")
    print(flush=True)
    return figures


def _check_tokens(steps: Steps, requests: Requests, same_tokens: float, say: Callable[[str], None]) -> None:
    """Stop if a side generates other numbers of tokens, or, without sampling, other tokens."""
    latest = {name: list(each.values())[-1].tokens for name, each in steps.items() if each and name != "limit"}
    lengths = [n_new for n_new in requests.new_tokens for _ in range(requests.n)]
    for name, tokens in latest.items():
        assert tokens is not None
        if [len(ids) for ids in tokens] != lengths:
            raise SystemExit(f"{name} generated {[len(ids) for ids in tokens]} tokens, not {lengths}")
        equal = sum(ids == ours for ids, ours in zip(tokens, latest["reallm"] or [], strict=True)) / len(tokens)
        if requests.n == 1 and equal < same_tokens:
            raise SystemExit(
                f"the sides do not compute the same: only {equal:.0%} of the sequences of {name} are equal"
            )
        if requests.n == 1 and equal < 1:
            say(f"{equal:.1%} of the sequences of {name} are equal to reallm's in all tokens")


def _median(steps: Mapping[int, Step]) -> float:
    """Seconds, the warm-up left out."""
    return statistics.median(step.seconds for turn, step in steps.items() if turn)


if __name__ == "__main__":
    main()
