"""What importing the engine brings along: seconds that every command and every worker would pay."""

from __future__ import annotations

from tests.helpers.imports import imported_by


def test_the_engine_imports_neither_the_compiler_nor_transformers():
    program = "import reallm; reallm.ReaLModel"
    assert imported_by(program, "torch._dynamo", "torch._inductor", "transformers") == []
