"""The backend of linear layers: the library that computes products on this machine.

The choice is a rule, not a race. Libraries add up a product in different orders, and a run must give the same numbers
when it is repeated or resumed; which library wins a race of some milliseconds depends on whatever else the machine
does, even where one of them is twice as fast on average. What is probed is what a probe can decide: whether oneDNN's
operators exist and are right. `benchmarks/products.py` measures what each library gives, and the rule follows it:

- AMD: MKL leaves its fastest code to processors of its maker, and oneDNN is ahead in forward products and gradients of
  inputs at almost all sizes. It does not depend on M, so that a row's result does not.
- others: torch's own choice, `F.linear`, until somebody has measured.

Gradients of weights are always left to torch: MKL is ahead, or level.

`REALLM_LINEAR=onednn` or `torch` overrides the rule, for machines on which the benchmark says otherwise.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path
from typing import Literal, cast, get_args

from reallm.errors import ConfigError
from reallm.model.products.onednn import why_unavailable

Backend = Literal["onednn", "torch"]
OVERRIDE = "REALLM_LINEAR"
"""Environment variable that names the backend."""
ONEDNN_VENDORS = frozenset({"AuthenticAMD", "HygonGenuine"})


@cache
def linear_backend() -> Backend:
    """The backend for float32 products on the CPU; the same in every process on this machine.

    Raises:
        ConfigError: the environment variable names no backend that works here.
    """
    chosen = os.environ.get(OVERRIDE, "")
    if chosen and chosen not in get_args(Backend):
        raise ConfigError(f"{OVERRIDE}={chosen} is not one of {', '.join(get_args(Backend))}; change or unset it")
    if chosen == "onednn" and (reason := why_unavailable()):
        raise ConfigError(f"{OVERRIDE}=onednn is not possible: {reason}; unset it")
    if chosen:
        return cast(Backend, chosen)
    return "onednn" if cpu_vendor() in ONEDNN_VENDORS and why_unavailable() is None else "torch"


def cpu_vendor() -> str:
    """The maker of the processor as it names itself, such as `AuthenticAMD`; empty where that is unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # on Windows the description ends with it: "AMD64 Family 25 Model 17 Stepping 1, AuthenticAMD"
        return platform.processor().split(" ")[-1]
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
