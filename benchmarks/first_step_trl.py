"""One optimizer step with TRL, as its quick start does it; `load.py` measures when the step is done.

python first_step_trl.py MODEL_FOLDER ROWS.jsonl OUTPUT_FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer


class Trainer(SFTTrainer):
    """Remembers the loss of the last step."""

    loss = torch.zeros(())

    def training_step(self, *args, **kwargs):
        self.loss = super().training_step(*args, **kwargs)
        return self.loss


class StepDone(TrainerCallback):
    def __init__(self, trainer: Trainer, output: Path) -> None:
        self.trainer, self.output = trainer, output

    def on_step_end(self, *args, **kwargs):
        (self.output / "step.json").write_text(json.dumps({"loss": self.trainer.loss.item()}), encoding="utf-8")


def main() -> None:
    folder, rows_file, output = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    rows = [json.loads(line) for line in rows_file.read_text(encoding="utf-8").splitlines()]
    dataset = Dataset.from_list([{"prompt": row["prompt"], "completion": row["answer"]} for row in rows])
    arguments = SFTConfig(
        output_dir=str(output / "run"),
        max_steps=1,
        per_device_train_batch_size=len(rows),
        learning_rate=1e-4,
        adam_beta2=0.95,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
    )
    trainer = Trainer(model=folder, args=arguments, train_dataset=dataset)
    trainer.add_callback(StepDone(trainer, output))
    trainer.train()
    trainer.save_model(str(output / "checkpoint"))


if __name__ == "__main__":
    main()
