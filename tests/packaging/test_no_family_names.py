"""The core knows no family of models by name: what it does, it does for all alike, and a new one needs no edit there.

Looked at are the words of the core's code: identifiers, and what stands in string literals. Not code are comments,
docstrings, the texts under fields, and the help of command-line options; these may give examples. Words are split as
`split_words` says, so that `from_llama`, `LlamaForCausalLM` and `"model.llama"` all hold the word `llama`, while
`llama3`, which is how every `config.json` calls one kind of RoPE, is another word.

The data files of the core are held to the same. The one exception is `plugins/known.json`, which says of packages that
are not installed what they would offer.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Iterator

import pytest

from reallm.plugins import registry
from workspace import ROOT

CORE = ROOT / "packages" / "reallm-core" / "src" / "reallm"
KNOWN = CORE / "plugins" / "known.json"
WORDS = CORE / "demo" / "words.json"
"""English words, some of which are names of families as well."""
HELP_ARGUMENTS = {"help", "show_default", "metavar"}
FAMILIES = registry.offers("family")


def split_words(text: str) -> str:
    """`from_llama` -> "from llama"; `Qwen3MoeForCausalLM` -> "qwen3 moe for causal lm"; `GPT2LMHeadModel` -> "gpt2 lm
    head model"."""
    return " ".join(re.findall(r"[A-Z]+\d+|[A-Z]+(?![a-z])|[A-Z]?[a-z]+\d*|\d+", text)).lower()


@functools.cache
def family_names() -> frozenset[str]:
    """The words of every name, model type and architecture that the family packages offer.

    Of an architecture also what stands before its kind: of `GemmaForCausalLM`, `gemma`.
    """
    names: set[str] = set()
    for family in set(FAMILIES.values()):
        architectures = (*family.architectures, *family.critic_architectures)
        kinds = [re.sub(r"(LMHeadModel|(Text)?For[A-Z]\w+)$", "", name) for name in architectures]
        names.update(map(split_words, (*family.names, family.model_type, *architectures, *kinds)))
    return frozenset(names)


def code_texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The line and the text of each identifier and each string literal that is code."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in HELP_ARGUMENTS:
            prose.update(id(inner) for inner in ast.walk(node.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str) and id(node) not in prose:
                yield node.lineno, node.value
            continue
        for field in ("id", "attr", "arg", "name", "asname", "module", "rest"):
            text = getattr(node, field, None)
            if isinstance(text, str):
                yield getattr(node, "lineno", 0), text
        if isinstance(node, ast.Global | ast.Nonlocal):
            yield from ((node.lineno, name) for name in node.names)
        if isinstance(node, ast.MatchClass):
            yield from ((node.lineno, name) for name in node.kwd_attrs)


def found_in(texts: Iterator[tuple[int, str]], where: str) -> list[str]:
    return [
        f"{where}:{line}: {name} in {text!r}"
        for line, text in texts
        for words in [f" {split_words(text)} "]
        for name in family_names()
        if f" {name} " in words
    ]


def test_the_core_s_code_contains_no_family_s_name():
    found = []
    for file in sorted(CORE.rglob("*.py")):
        found += found_in(code_texts(ast.parse(file.read_text(encoding="utf-8"))), str(file.relative_to(ROOT)))
    assert found == []


def test_the_core_s_data_contains_no_family_s_name_but_for_the_hints():
    found = []
    files = [
        file
        for file in sorted(CORE.rglob("*"))
        if file.suffix in (".j2", ".json", ".jsonl") and file not in (KNOWN, WORDS)
    ]
    for file in files:
        lines = enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        found += found_in(iter(lines), str(file.relative_to(ROOT)))
    assert len(files) > 3
    assert found == []


def test_the_hints_name_every_family_of_ours():
    offered = [
        name for item in json.loads(KNOWN.read_text(encoding="utf-8")).values() for name in item.get("family", [])
    ]
    assert sorted(offered) == sorted(FAMILIES)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("if kind == 'gpt2': pass", ["gpt2"]),
        ("def from_mistral(self): ...", ["mistral"]),
        ("import transformers.models.gemma2 as other", ["gemma2"]),
        ("x = transformers.LlamaConfig", ["llama"]),
        ("f'{x}.Qwen3MoeForCausalLM'", ["qwen3", "qwen3 moe", "qwen3 moe for causal lm"]),
        ("pip = 'reallm-hf-phi3'", ["phi3"]),
        ("kind = 'llama3'", []),
        ('def f():\n    """As of llama."""\n    return 1  # as llama does', []),
        ("option(help='such as llama', default='mixtral')", ["mixtral"]),
    ],
)
def test_the_rule_finds_names_in_code_and_leaves_prose_alone(code, found):
    texts = code_texts(ast.parse(code))
    assert {line.split(": ")[1].split(" in ")[0] for line in found_in(texts, "x")} == set(found)
