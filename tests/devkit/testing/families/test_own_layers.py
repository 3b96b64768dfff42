"""The mistakes in an own attention class that the page on families shows, made in one that is right."""

from __future__ import annotations

import importlib
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

import reallm_hf_deepseek.layers
from reallm_devkit import FAMILY_CHECKS, FamilyKit
from reallm_devkit.testing.kit import CaseRun
from tests.helpers.printed import hold

SOURCE = Path(reallm_hf_deepseek.layers.__file__).read_text(encoding="utf-8")
PAGE = (Path(__file__).parents[4] / "docs" / "write-a-family.md").read_text(encoding="utf-8")


PLUGIN = """
from dataclasses import replace
from reallm_hf_deepseek.plugin import TINY, V3

FAMILY = replace(
    V3,
    config=replace(V3.config, constants={{**V3.config.constants, "attention": "{module}.layers:LatentAttention"}}),
    weights=V3.weights.updated(block={{"attn.q": None}}),
    check_configs={{"tiny": TINY}},
)
"""


class Mistake(NamedTuple):
    """A change of the class, and the check that fails."""

    check: str
    old: str
    new: str


MISTAKES = {
    "shared": Mistake("shards", "self.shared_key(key).unsqueeze(1)", "key.unsqueeze(1)"),
    "split": Mistake(
        "shards",
        "self.kv_down = Linear(size, self.rank + self.rotated, bias=bias, split=None)",
        'self.kv_down = Linear(size, self.rank + self.rotated, bias=bias, split="column")',
    ),
    "heads": Mistake(
        "shards",
        "q = q.unflatten(-1, (-1, self.unrotated + self.rotated))",
        "q = q.unflatten(-1, (self.n_heads, self.unrotated + self.rotated))",
    ),
    "cache": Mistake("decode", "        self.cache_spec = (CacheTensor((1, self.rank + self.rotated)),)\n", ""),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_as_the_page_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake, module = MISTAKES[name], f"my_latent_{name}"
    assert SOURCE.count(mistake.old) == 1
    source = SOURCE.replace(mistake.old, mistake.new).replace(
        "self.has_q_rank =", "self.n_heads = n_heads; self.has_q_rank ="
    )
    (tmp_path / module).mkdir()
    (tmp_path / module / "layers.py").write_text(source, encoding="utf-8")
    (tmp_path / module / "plugin.py").write_text(PLUGIN.format(module=module), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    family = importlib.import_module(f"{module}.plugin").FAMILY
    (check,) = [each for each in FAMILY_CHECKS if each.name == mistake.check]
    result = CaseRun(FamilyKit.of(family=family), "tiny").result(check)
    assert result.status == "failed"
    told = str(result).replace(module, "my_package")
    wrapped = [textwrap.fill(line, 100, subsequent_indent=" " * 12) for line in told.splitlines()]
    hold(f"own-attention-{name}", "\n".join(wrapped))
    assert (mistake.new or mistake.old).strip() in PAGE
