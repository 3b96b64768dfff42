"""One optimizer step with transformers alone, as a short script does it; `load.py` measures when the step is done.

python first_step_transformers.py MODEL_FOLDER ROWS.jsonl OUTPUT_FOLDER
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

IGNORED = -100


def main() -> None:
    folder, rows_file, output = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    batch = []
    for line in Path(rows_file).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["prompt"]).input_ids
        answer = [*tokenizer(row["answer"]).input_ids, tokenizer.eos_token_id]
        batch.append({"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer})
    inputs = tokenizer.pad([{"input_ids": sample["input_ids"]} for sample in batch], return_tensors="pt")
    labels = torch.full_like(inputs["input_ids"], IGNORED)
    for row, sample in zip(labels, batch, strict=True):
        row[: len(sample["labels"])] = torch.tensor(sample["labels"])

    loss = model(**inputs, labels=labels, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    (Path(output) / "step.json").write_text(json.dumps({"loss": loss.item()}), encoding="utf-8")
    model.save_pretrained(Path(output) / "checkpoint")
    tokenizer.save_pretrained(Path(output) / "checkpoint")


if __name__ == "__main__":
    main()
