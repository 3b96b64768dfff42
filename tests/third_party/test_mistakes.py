"""The usual mistakes of plugin authors, made in the examples of the documentation, and what is printed for each.

The pages include what is printed from the files in `printed/`; see `tests.helpers.printed`.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.helpers.printed import PRINTED, hold
from workspace import ROOT

LINES = "the first line\nthe second\nand one that is a little longer\nfour\nx\n"

CHECK_DATASET = ("plugins", "check", "my-dataset", "dataset.train_path=lines.txt")

CHECK_LOGGER = ("plugins", "check", "csv")

CHECK_ALGORITHM = (
    *("plugins", "check", "raft", "dataset.train_path=prompts.jsonl"),
    *("n=3", "max_new_tokens=6"),
)

PROMPTS = "".join(f'{{"prompt": "Say {n}.", "wanted": "{n}"}}\n' for n in range(9))

CHECK_FAMILY = ("plugins", "check", "hyperclovax")

PYTEST = ("pytest",)
"""The example's own test suite, instead of a command of reallm."""


class Mistake(NamedTuple):
    """A change of an example's source, and the command that says what is wrong with it."""

    package: str
    name: str
    command: tuple[str, ...] = CHECK_DATASET
    file: str = ""
    old: str = ""
    new: str = ""
    imports: tuple[str, str] = ("", "")
    """The same for what the change needs to be imported."""

    def __str__(self) -> str:
        return f"{self.package}-{self.name}"


MISTAKES = [
    Mistake(
        "my-data",
        "promise",
        ("plugins",),
        "plugin.py",
        '        "my-dataset": DatasetSpec(',
        '        "my_dataset": DatasetSpec(',
    ),
    Mistake("my-data", "hookimpl", ("plugins",), "plugin.py", "@hookimpl\n", ""),
    Mistake(
        "my-data",
        "key",
        ("sft", "model.path=m", "dataset.name=my-dataset", "dataset.train_path=lines.txt", "dataset.my_ar=3"),
    ),
    Mistake(
        "my-data",
        "import",
        CHECK_DATASET,
        "plugin.py",
        "from reallm import DatasetSpec, hookimpl\n",
        "from reallm import DatasetSpec, hookimpl\nfrom reallm_my_data.dataset import MyDataset\n",
    ),
    Mistake(
        "my-data",
        "seqlens",
        CHECK_DATASET,
        "dataset.py",
        '"loss_mask": [[length]]}',
        '"loss_mask": [[length - 1]]}',
    ),
    Mistake("my-data", "ranks", CHECK_DATASET, "dataset.py", "self.rows = util.shard(rows)", "self.rows = rows"),
    Mistake(
        "raft",
        "key",
        ("raft", "actor.path=m", "dataset.train_path=prompts.jsonl"),
        "config.py",
        'outputs=("scores",)',
        'outputs=("score",)',
    ),
    Mistake(
        "raft",
        "method",
        CHECK_ALGORITHM,
        "interface.py",
        "def reward(self, batch: NamedArray, context: CallContext)",
        "def reward(self, batch: NamedArray)",
    ),
    Mistake(
        "raft",
        "seqlens",
        CHECK_ALGORITHM,
        "interface.py",
        'return NamedArray(scores=torch.tensor(scores)).with_metadata(seqlens={"scores": [(1,) * n for n in counts]})',
        "return NamedArray(scores=torch.tensor(scores))",
    ),
    Mistake(
        "raft",
        "nan",
        CHECK_ALGORITHM,
        "config.py",
        'if not 0 < self.temperature < float("inf"):',
        "if self.temperature <= 0:",
    ),
    Mistake(
        "raft",
        "mean",
        CHECK_ALGORITHM,
        "interface.py",
        "return LossOutput(-answers.sums.sum(), ",
        "return LossOutput(-answers.sums.mean(), ",
    ),
    Mistake(
        "raft",
        "weight",
        CHECK_ALGORITHM,
        "interface.py",
        "return float(answer_lengths(batch).sum())",
        "return 1.0",
    ),
    Mistake("csv", "append", CHECK_LOGGER, "logger.py", 'self.path.open("a", ', 'self.path.open("w", '),
    Mistake("csv", "flush", PYTEST, "logger.py", "        self._file.flush()\n", ""),
    Mistake("csv", "resume", PYTEST, "logger.py", "<= step]", "< step]"),
    Mistake(
        "hf-hyperclovax",
        "row",
        CHECK_FAMILY,
        "plugin.py",
        '            Key("residual_multiplier", float, "residual_multiplier", default=1.0),\n',
        "",
    ),
    Mistake(
        "hf-hyperclovax",
        "conversion",
        CHECK_FAMILY,
        "plugin.py",
        '            Key("logits_scaling", float, "logit_multiplier", default=1.0),',
        '            Key("logits_scaling", float, "logit_multiplier", default=1.0, conversion=RECIPROCAL),',
        imports=("import ConfigTable, Key", "import RECIPROCAL, ConfigTable, Key"),
    ),
    Mistake("hf-hyperclovax", "default", CHECK_FAMILY, "plugin.py", "max_positions=2048)", "max_positions=4096)"),
    Mistake(
        "hf-hyperclovax",
        "names",
        CHECK_FAMILY,
        "plugin.py",
        'block={"attn_post_norm": "model.layers.{}.post_norm1",',
        'block={"attn_post_norm": "model.layers.{}.post_norm_1",',
    ),
    Mistake(
        "hf-hyperclovax",
        "swapped",
        CHECK_FAMILY,
        "plugin.py",
        'block={"attn_post_norm": "model.layers.{}.post_norm1", "mlp_post_norm": "model.layers.{}.post_norm2"}',
        'block={"attn_post_norm": "model.layers.{}.post_norm2", "mlp_post_norm": "model.layers.{}.post_norm1"}',
    ),
    Mistake(
        "hf-apertus",
        "partial",
        ("plugins", "check", "apertus"),
        "layers.py",
        "    partial_grad = True  # of the features between the two linear layers\n",
        "",
    ),
]

PASSES = [
    ("my-data", CHECK_DATASET),
    ("csv", CHECK_LOGGER),
    ("hf-hyperclovax", CHECK_FAMILY),
    ("raft", CHECK_ALGORITHM),
]

EXAMPLES = ["my-data", "csv", "hf-hyperclovax", "hf-apertus", "raft"]
"""Packages with a test suite of their own."""


def printed(environment, package: str, command: tuple[str, ...], change: Mistake | None = None):
    """Run a command where an example, changed or not, is installed."""
    here = environment(f"reallm-{package}")
    (installed,) = here.path
    copy = Path(shutil.copytree(installed, here.folder / "src"))
    if change is not None and change.file:
        source = copy / f"reallm_{package.replace('-', '_')}" / change.file
        text = source.read_text(encoding="utf-8")
        assert text.count(change.old) == 1, change
        text = text.replace(change.old, change.new).replace(*change.imports)
        source.write_text(text, encoding="utf-8")
    (here.folder / "lines.txt").write_text(LINES, encoding="utf-8")
    (here.folder / "prompts.jsonl").write_text(PROMPTS, encoding="utf-8")
    here = dataclasses.replace(here, path=(copy,))
    if command == PYTEST:
        suite = shutil.copytree(ROOT / "tests" / "installable" / f"reallm-{package}" / "tests", here.folder / "tests")
        return here.run("-m", "pytest", "-c", os.devnull, str(suite), COLUMNS="100")
    return here.reallm(*command, COLUMNS="100")


def told(done) -> str:
    """Of all that is printed, what is wrong: the error, the lines `failed`, or what follows the list of checks."""
    if done.returncode == 2:
        return done.stderr
    if "= FAILURES =" in done.stdout:
        _title, _, after = done.stdout.partition("= FAILURES =")[2].partition("\n")
        return re.split("^=", after, maxsplit=1, flags=re.MULTILINE)[0]
    failed = [line for line in done.stdout.splitlines() if re.match(r"failed reallm-", line)]
    if failed:
        return "".join(f"{line}\n" for line in failed)
    _head, _checks, *failures, _sum = done.stdout.strip().split("\n\n")
    return "\n\n".join(failure for failure in failures if not re.match(r"[\w-]+\[tied\]", failure)) + "\n"


def of_one_case(page: str) -> str:
    """The page of a kit without what it says of a family with tied embeddings, which it says without as well."""
    return "".join(f"{line}\n" for line in page.splitlines() if "[tied]" not in line)


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_mistake_is_told_as_the_page_says(environment, mistake):
    done = printed(environment, mistake.package, mistake.command, mistake)
    assert done.returncode in (1, 2), done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    hold(str(mistake), told(done))


@pytest.mark.parametrize(("package", "command"), PASSES)
def test_the_example_without_a_mistake_passes_as_the_page_says(environment, package, command):
    done = printed(environment, package, command)
    assert done.returncode == 0, done.stdout + done.stderr
    hold(f"{package}-check", of_one_case(done.stdout))


@pytest.mark.parametrize("package", EXAMPLES)
def test_the_example_without_a_mistake_passes_its_own_tests(environment, package):
    done = printed(environment, package, PYTEST)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_the_pages_include_all_that_is_printed_and_show_the_lines_that_are_wrong():
    pages = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    for path in sorted(PRINTED.glob("*.txt")):
        assert f'--8<-- "{path.relative_to(ROOT)}"' in pages
    for mistake in MISTAKES:
        for line in set(mistake.new.splitlines()) - set(mistake.old.splitlines()):
            assert line.strip() in pages, mistake
