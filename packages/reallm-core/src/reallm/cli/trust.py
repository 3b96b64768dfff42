"""The option `--trust-code` of the commands that read configuration files; see `reallm.config.trust`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from reallm.config.trust import TRUST_CODE

TrustCode = Annotated[
    bool, typer.Option(TRUST_CODE, help="Let configuration files name code that is run, and read the environment.")
]


def with_trust(arguments: Sequence[str] | None, trust_code: bool) -> list[str]:
    """The arguments for `load`, among them `--trust-code` if it is given."""
    return [*(arguments or ()), *([TRUST_CODE] if trust_code else ())]
