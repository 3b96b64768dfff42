"""The option `--trust-code` of the commands that read configuration files; see `reallm.config.trust`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Let configuration files name code that is run, and read the environment.")
]


def with_trust(arguments: Sequence[str] | None, trust_code: bool) -> list[str]:
    """The arguments for `load`, among them `--trust-code` if it is given."""
    return [*(arguments or ()), *(["--trust-code"] if trust_code else ())]
