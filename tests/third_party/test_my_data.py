"""The plugin of the tutorial, `reallm-my-data`: installed, listed, and used in this and in other processes."""

from __future__ import annotations

import json

HEAVY = "import sys; print([name for name in ('torch', 'transformers') if name in sys.modules])"

WORKER = """
import os
import torch
from reallm import Dataset, make_dataset
from reallm.plugins import registry

class Characters:
    eos_token_id = 0

    def encode(self, text):
        return [ord(character) for character in text]

class Seen(torch.utils.data.Dataset):
    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return os.getpid(), registry.names("dataset"), self.samples[index]

def first(batch):
    return batch[0]

if __name__ == "__main__":
    with open("lines.txt", "w") as file:
        file.write("ab")
    samples = make_dataset(
        Dataset("my-dataset", {"path": "lines.txt", "my_arg": 1}), seed=0, tokenizer=Characters()
    )
    loader = torch.utils.data.DataLoader(
        Seen(samples), num_workers=1, multiprocessing_context="spawn", collate_fn=first
    )
    for process, names, sample in loader:
        print(process != os.getpid(), names == registry.names("dataset"), "my-dataset" in names)
        print(sample.input_ids.tolist(), sample.loss_mask.tolist(), sample.metadata["ids"])
"""

TINY_MODEL = """
import tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

words = tokenizers.models.WordLevel({word: i for i, word in enumerate(["?", "</s>", *"abcd"])}, unk_token="?")
tokenizer = tokenizers.Tokenizer(words)
tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?", eos_token="</s>").save_pretrained("model")
sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
LlamaForCausalLM(LlamaConfig(vocab_size=6, bos_token_id=None, eos_token_id=1, **sizes)).save_pretrained("model")
"""


def test_it_is_found_and_shown_with_its_options(environment):
    done = environment("reallm-my-data").reallm("plugins", "show", "my-dataset")
    assert done.returncode == 0, done.stderr
    for words in (
        "dataset my-dataset",
        "the lines of a text file",
        "reallm-my-data 1.0",
        "reallm_my_data.dataset:MyDataset",
        "dataset.my_arg  int, default 0",
        "number of tokens at the start of each line",
    ):
        assert words in done.stdout


def test_listing_and_showing_it_imports_neither_torch_nor_transformers(environment):
    here = environment("reallm-my-data")
    for arguments in (["plugins"], ["plugins", "--json"], ["plugins", "show", "my-dataset"]):
        code = f"from reallm.cli.main import run; assert run({arguments}) == 0; {HEAVY}"
        assert here.evaluate(code).endswith("[]")


def test_its_editable_install_is_found_and_listed_as_such(editable):
    done = editable.reallm("plugins", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = [row for row in json.loads(done.stdout)["plugins"] if row["distribution"] == "reallm-my-data"]
    assert row["editable"]
    assert row["offers"] == [{"kind": "dataset", "name": "my-dataset"}]


def test_what_is_edited_in_an_editable_install_counts_at_once(editable, sources):
    plugin = sources / "reallm-my-data" / "src" / "reallm_my_data" / "plugin.py"
    before = plugin.read_text(encoding="utf-8")
    plugin.write_text(before.replace("the lines of a text file", "edited a moment ago"), encoding="utf-8")
    try:
        assert "edited a moment ago" in editable.reallm("plugins", "show", "my-dataset").stdout
    finally:
        plugin.write_text(before, encoding="utf-8")


def test_a_spawned_data_loader_worker_finds_the_same_plugins_and_reads_the_dataset(editable):
    (editable.folder / "worker.py").write_text(WORKER, encoding="utf-8")
    done = editable.run("worker.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "True True True",
        "[97, 98, 0] [False, True, True] ('lines.txt:1',)",
    ]


def test_a_plugin_that_is_slow_to_import_is_imported_only_when_it_is_asked_for(environment):
    here = environment("reallm-slow", "reallm-my-data")
    look = "import sys; from reallm.plugins import registry; {}; print('reallm_slow' in sys.modules)"
    assert here.evaluate(look.format("registry.get('dataset', 'my-dataset')")) == "False"
    assert here.evaluate(look.format("assert 'slow' in registry.declared('dataset')")) == "False"
    assert here.evaluate(look.format("registry.get('dataset', 'slow')")) == "True"
    assert here.evaluate(look.format("registry.names('dataset')")) == "True"


def test_showing_one_thing_does_not_import_the_slow_plugin_of_another(environment):
    code = "from reallm.cli.main import run; run(['plugins', 'show', 'my-dataset']); import sys"
    here = environment("reallm-slow", "reallm-my-data")
    assert here.evaluate(f"{code}; print('reallm_slow' in sys.modules)").endswith("False")


def test_naming_it_on_the_command_line_documents_and_checks_its_options(environment):
    here = environment("reallm-my-data")
    page = here.reallm("sft", "dataset.name=my-dataset", "--help").stdout
    assert "dataset.my_arg  int, default 0" in page
    assert "dataset.max_seqlen" not in page
    shown = here.reallm(
        "sft", "--print-config", "model.path=m", "dataset.name=my-dataset", "dataset.train_path=t", "dataset.my_arg=3"
    )
    assert "my_arg: 3" in shown.stdout
    wrong = here.reallm("sft", "model.path=m", "dataset.name=my-dataset", "dataset.train_path=t", "dataset.my_ar=3")
    assert wrong.returncode == 2
    assert "dataset.my_arg" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1


def test_a_model_is_fine_tuned_on_it(environment):
    here = environment("reallm-my-data")
    here.compute(TINY_MODEL)
    (here.folder / "lines.txt").write_text("a b c d\nb c d a\n\nc d a b\nd a b c\n", encoding="utf-8")
    done = here.reallm(
        "sft",
        "model.path=model",
        "dataset.name=my-dataset",
        "dataset.train_path=lines.txt",
        "dataset.valid_path=lines.txt",
        "dataset.my_arg=1",
        "epochs=2",
        "name=run",
        "loggers=[jsonl]",
    )
    assert done.returncode == 0, done.stderr
    metrics = [json.loads(line) for line in (here.folder / "runs" / "run" / "metrics.jsonl").read_text().splitlines()]
    # Four lines of four words and an end each, of which the first word is only read.
    assert [row["train/loss_tokens"] for row in metrics if "train/loss_tokens" in row] == [16, 16]
