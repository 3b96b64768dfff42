"""`reallm sft --help`: every key of an algorithm with type, default and help, in 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import typer

from reallm.config.schema import Group, Key, groups
from reallm.field_types import type_text, value_text
from reallm.specs import Algorithm

WIDTH = 80

OPTIONS = """\
Options:
  --config FILE   read keys from a YAML file; may be given more than once.
                  Files override defaults, key=value overrides files.
  --print-config  print all keys with their values as YAML, and exit
  --preview N     show the first N rows of the data as training gets them, and
                  exit; `reallm preview --help` has more
  --dry-run       check everything, print the plan and the memory it takes, and
                  exit; nothing is trained or written
  --trust-code    let these files, and the run that is resumed, name code that
                  is run (rows.py:load) and read environment variables
  --help, -h      this page; with dataset.name=NAME, the keys of that dataset
"""


EVALUATION = """\
Usage: reallm eval [OPTIONS] key=value ...

Compute loss, perplexity and accuracy of a checkpoint on rows, as training
does. Keys are those of `reallm {name}`; rows are given by dataset.path.

  reallm eval model.path=PATH dataset.path=rows.jsonl
  reallm eval model.path=runs/my-run dataset.path=rows.jsonl --json result.json
  reallm eval model.path=PATH --lm-eval hellaswag,arc_easy

With the keys of a training run instead of dataset.path, the rows are those
that the run evaluates: dataset.valid_path, or what dataset.valid_fraction
holds out.

Options:
  --config FILE     read keys from a YAML file; may be given more than once
  --lm-eval TASKS   evaluate on tasks of the LM Evaluation Harness instead of
                    rows: names, patterns or YAML files, separated by commas;
                    needs pip install "reallm-core[lm-eval]"
  --num-fewshot N, --limit N, --include-path DIR, --apply-chat-template
                    of the harness: examples in each prompt, documents of each
                    task, tasks of your own, prompts as chat messages
  --json FILE       write the result as JSON; -: to standard output
  --trust-code      let these files name code that is run (rows.py:load) and
                    read environment variables
  --algorithm NAME  algorithm whose metrics are computed, default sft
  --help, -h        this page; with dataset.name=NAME, the keys of that dataset
"""


def help_text(name: str, algorithm: Algorithm, arguments: Sequence[str], files: Sequence[Path]) -> str:
    """The help page of an algorithm's command.

    `arguments` and `files` are read only for the names of datasets, whose keys are then listed.
    """
    config_class = algorithm.config_class()
    found = groups(config_class, _chosen(config_class, arguments, files), tolerate=True)
    found.sort(key=lambda group: group.name == "")  # the algorithm's own keys last
    required = " ".join(f"{key.name}=..." for group in found for key in group.keys if key.required)
    sections = [
        f"Usage: reallm {name} [--config FILE] [--print-config] key=value ...\n",
        f"{_wrap(_sentence(algorithm.description), '')}\n" if algorithm.description else "",
        f"  reallm {name} {required}\n" if required else "",
        OPTIONS,
        *(_group_text(group) for group in found),
    ]
    return "\n".join(section for section in sections if section).rstrip()


def evaluation_help(name: str, algorithm: Algorithm, arguments: Sequence[str], files: Sequence[Path]) -> str:
    """The help page of `reallm eval` for the algorithm of this name; see `help_text`."""
    from reallm.config.evaluation import evaluation_class

    config_class = evaluation_class(algorithm.config_class())
    found = groups(config_class, _chosen(config_class, arguments, files), tolerate=True)
    found.sort(key=lambda group: group.name == "")
    return "\n".join([EVALUATION.format(name=name), *(_group_text(group) for group in found)]).rstrip()


def _chosen(config_class: type, arguments: Sequence[str], files: Sequence[Path]) -> dict[str, str]:
    if not (files or arguments):
        return {}
    from reallm.config.load import chosen_datasets  # imports OmegaConf

    return chosen_datasets(config_class, files, [item for item in arguments if "=" in item])


def _group_text(group: Group) -> str:
    title = group.name or "the run"
    about = group.help + (f": {group.dataset}" if group.dataset else "")
    lines = [typer.style(f"{title}" + (f" - {about}" if about else ""), bold=True)]
    if group.problem:
        lines.append(_wrap(group.problem, "  "))
    for key in group.keys:
        lines += _key_lines(key)
    return "\n".join(lines) + "\n"


def _key_lines(key: Key) -> list[str]:
    default = "required" if key.required else f"default {value_text(key.default)}"
    head = f"  {typer.style(key.name, fg='cyan')}  {type_text(key.type)}, {default}"
    return [head, _wrap(key.help, "      ")] if key.help else [head]


def _wrap(text: str, indent: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
