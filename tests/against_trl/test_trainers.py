"""Step by step, losses are those of TRL's trainers, with the same model, rows, order and optimizer, in float32."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from reallm.algorithms.dpo.config import DPOConfig
from reallm.algorithms.dpo.interface import DPOInterface
from reallm.algorithms.dpo.loss_types import LOSS_TYPES
from reallm.algorithms.rw.config import RWConfig
from reallm.algorithms.rw.interface import RWInterface
from reallm.config.args import CriticArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.data.batching import gather
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.training.engine import TrainEngine
from tests.experiments.conftest import HF_CONFIG
from tests.helpers.preferences import ACTOR, Data, context, scored
from tests.helpers.tokenizers import tiny_tokenizer

trl = pytest.importorskip("trl", reason="runs where TRL is installed: tox run -e trl")
datasets = pytest.importorskip("datasets")

STEPS, BATCH = 8, 6
LR, BETA = 2e-3, 0.2
TOLERANCE = 1e-4
CONSTANT = OptimizerConfig(lr=LR, schedule="constant", warmup_steps=0, max_grad_norm=1.0)
Row = dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    ReaLModel.from_llama({**HF_CONFIG, "pad_token_id": 0}, seed=5).save_pretrained(folder, tokenizer=tiny_tokenizer())
    return folder


@pytest.fixture(scope="module")
def reward_checkpoint(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    critic = ReaLModel.from_pretrained(checkpoint, is_critic=True, seed=7)
    critic.save_pretrained(folder, tokenizer=tiny_tokenizer())
    return folder


def rows(n: int = 2 * BATCH) -> list[Row]:
    """Tokens of prompts with two answers, of different lengths."""
    found = []
    for number in range(n):
        draw = random.Random(number)
        prompt, chosen, rejected = (
            [draw.randrange(4, 500) for _ in range(length)]
            for length in (3 + number % 3, 2 + number % 5, 6 - number % 4)
        )
        found.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected, "margin": 0.1 * number})
    return found


def batches(samples: Sequence[NamedArray]) -> Iterator[NamedArray]:
    """Batches in the order of the rows, again and again."""
    chunks = [gather(samples[start : start + BATCH]) for start in range(0, len(samples), BATCH)]
    return itertools.islice(itertools.cycle(chunks), STEPS)


def pair_sample(row: Row) -> NamedArray:
    prompt = row["prompt_ids"]
    sequences = [prompt + row["chosen_ids"], prompt + row["rejected_ids"]]
    return sample(sequences, len(prompt), margins=torch.tensor([row["margin"]]))


def sample(sequences: list[list[int]], *prompt_lens: int, **fields: torch.Tensor) -> NamedArray:
    lengths = [len(sequence) for sequence in sequences]
    lens = list(prompt_lens) * (2 // len(prompt_lens))
    array = NamedArray(
        input_ids=torch.tensor(list(itertools.chain(*sequences))), prompt_lens=torch.tensor(lens), **fields
    )
    ones = {name: [[1] * len(value)] for name, value in {"prompt_lens": lens, **fields}.items()}
    return array.with_metadata(seqlens={"input_ids": [lengths], **ones})


def our_dpo_losses(config: DPOConfig, checkpoint: Path, samples: Sequence[NamedArray]) -> list[float]:
    policy, reference = (ReaLModel.from_pretrained(checkpoint) for _ in range(2))
    engine, interface = TrainEngine(policy, CONSTANT, STEPS, 8192), DPOInterface(config)
    return [
        interface.train_step(engine, scored(config, batch, policy, reference), context(step=step + 1))["loss"]
        for step, batch in enumerate(batches(samples))
    ]


def recording(cls: type) -> type:
    """A trainer that takes tokens as they are, and keeps the loss of each step."""

    class Recording(cls):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.losses: list[float] = []
            super().__init__(*args, **kwargs)

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            self.losses.append(loss.item())
            return loss

    return Recording


def trl_losses(
    trainer_class: type, config_class: type, model: Any, data: list[Row], folder: Path, **settings: Any
) -> Any:
    arguments = config_class(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        train_sampling_strategy="sequential",
        learning_rate=LR,
        lr_scheduler_type="constant",
        adam_beta1=0.9,
        adam_beta2=0.95,
        adam_epsilon=1e-8,
        weight_decay=0.0,
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    trainer = recording(trainer_class)(
        model=model, args=arguments, train_dataset=datasets.Dataset.from_list(data), processing_class=tiny_tokenizer()
    )
    trainer.train()
    return trainer.losses


PAIR_TYPES = [name for name, one in LOSS_TYPES.items() if not one.unpaired and name not in ("simpo", "orpo")]


@pytest.mark.filterwarnings("ignore")  # of TRL and what it uses
@pytest.mark.parametrize("names", [*PAIR_TYPES, ["sigmoid", "bco_pair", "sft"]], ids=str)
def test_preference_optimisation(names: str | list[str], checkpoint: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"beta": BETA}
    smoothed = {"robust": 0.1, "exo_pair": 1e-3, "aot": 0.1, "aot_unpaired": 0.1}
    if isinstance(names, str) and names in smoothed:
        settings["label_smoothing"] = smoothed[names]
    if isinstance(names, list):
        settings["loss_weights"] = [0.8, 0.2, 1.0]
    config = DPOConfig(actor=ACTOR, dataset=Data(), loss_type=names, **settings)
    ours = our_dpo_losses(config, checkpoint, [pair_sample(row) for row in rows()])
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    data = [{name: row[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")} for row in rows()]
    theirs = trl_losses(trl.DPOTrainer, trl.DPOConfig, model, data, tmp_path, loss_type=names, **settings)
    assert len(theirs) == STEPS
    assert ours == pytest.approx(theirs, rel=TOLERANCE, abs=TOLERANCE)
    assert max(theirs) - min(theirs) > 100 * TOLERANCE  # they train


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_single_answers(loss_type: str, checkpoint: Path, tmp_path: Path) -> None:
    """Each prompt's other answer is that of the row before, among the rows of a batch, as in TRL."""
    labelled = [
        {
            "prompt_ids": row["prompt_ids"],
            "completion_ids": row["chosen_ids" if i % 2 else "rejected_ids"],
            "label": bool(i % 2),
        }
        for i, row in enumerate(rows())
    ]
    for start in range(0, len(labelled), BATCH):
        of_batch = labelled[start : start + BATCH]
        for row, before in zip(of_batch, [of_batch[-1], *of_batch[:-1]], strict=True):
            row["KL_completion_ids"] = before["completion_ids"]
    samples = [
        sample(
            [row["prompt_ids"] + row["completion_ids"], row["prompt_ids"] + row["KL_completion_ids"]],
            len(row["prompt_ids"]),
            labels=torch.tensor([row["label"]]),
        )
        for row in labelled
    ]
    settings = {"loss_type": loss_type, "beta": BETA, "desirable_weight": 1.5, "undesirable_weight": 0.8}
    config = DPOConfig(actor=ACTOR, dataset=Data(name="unpaired_preference"), **settings)
    ours = our_dpo_losses(config, checkpoint, samples)
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    theirs = trl_losses(trl.KTOTrainer, trl.KTOConfig, model, labelled, tmp_path, **settings)
    assert ours == pytest.approx(theirs, rel=TOLERANCE, abs=TOLERANCE)
    assert max(theirs) - min(theirs) > 100 * TOLERANCE


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("margins", [False, True])
@pytest.mark.parametrize("center", [None, 0.05])
def test_reward_models(margins: bool, center: float | None, reward_checkpoint: Path, tmp_path: Path) -> None:
    data = [
        {
            "chosen_ids": row["prompt_ids"] + row["chosen_ids"],
            "rejected_ids": row["prompt_ids"] + row["rejected_ids"],
            **({"margin": row["margin"]} if margins else {}),
        }
        for row in rows()
    ]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(reward_checkpoint, dtype=torch.float32)
    theirs = trl_losses(trl.RewardTrainer, trl.RewardConfig, model, data, tmp_path, center_rewards_coefficient=center)
    config = RWConfig(model=CriticArgs(path="m"), dataset=Data(), center_coef=center or 0.0)
    engine = TrainEngine(ReaLModel.from_pretrained(reward_checkpoint), CONSTANT, STEPS, 8192)
    samples = [pair_sample(row if margins else {**row, "margin": 0.0}) for row in rows()]
    interface = RWInterface(config)
    ours = [interface.train_step(engine, batch, context())["loss"] for batch in batches(samples)]
    assert ours == pytest.approx(theirs, rel=TOLERANCE, abs=TOLERANCE)
    assert max(theirs) - min(theirs) > 100 * TOLERANCE
