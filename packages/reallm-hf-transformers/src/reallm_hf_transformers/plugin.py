"""The implementation `transformers`. Imports no torch."""

from __future__ import annotations

from reallm import hookimpl
from reallm.specs import ImplementationSpec

REALLM_HOOK_API = "1.5"


@hookimpl
def reallm_implementations() -> dict[str, ImplementationSpec]:
    """The one implementation of this package."""
    return {
        "transformers": ImplementationSpec(
            family="reallm_hf_transformers.family:family_of",
            description="the layers of transformers: slow, not certified, no tensor or pipeline parallelism",
        )
    }
