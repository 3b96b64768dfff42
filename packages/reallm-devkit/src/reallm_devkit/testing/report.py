"""Results of checks, and the report of a whole kit."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from reallm_devkit.testing.checks import Failure

Status = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Result:
    """The result of one check.

    Attributes:
        check: its name.
        promise: the promise it tests.
        status: only `failed` is the plugin's fault.
        detail: one line: what was seen, why it failed, or what a skipped check would need.
        seconds: how long it took, without the checks it needs.
        failure: the details of a failed check; None otherwise.
        case: the name of the kit's case; empty if there is only one.
    """

    check: str
    promise: str
    status: Status
    detail: str
    seconds: float = 0.0
    failure: Failure | None = None
    case: str = ""

    @property
    def label(self) -> str:
        """Name and case: `logits[tied]`."""
        return f"{self.check}[{self.case}]" if self.case else self.check

    def __str__(self) -> str:
        """The whole failure, or one line for any other result."""
        if self.failure is None:
            return f"{self.status}  {self.label}: {self.detail}"
        return "\n".join([f"{self.label}: {self.promise}", *(f"  {line}" for line in str(self.failure).splitlines())])


@dataclass(frozen=True)
class Report:
    """The results of a plugin's checks, in order.

    Attributes:
        kind: the kind of plugin, such as `dataset`.
        name: the name of the plugin.
        provided_by: distribution and version, such as `reallm-my-data 1.0`; empty if it is not installed.
        results: one for each check and case.
    """

    kind: str
    name: str
    provided_by: str
    results: tuple[Result, ...]

    @property
    def title(self) -> str:
        """`dataset my-dataset of reallm-my-data 1.0`."""
        return f"{self.kind} {self.name}" + (f" of {self.provided_by}" if self.provided_by else "")

    @property
    def passed(self) -> bool:
        """Whether no check has failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[Result, ...]:
        """The results of the checks that failed."""
        return tuple(result for result in self.results if result.status == "failed")

    @property
    def counts(self) -> dict[str, int]:
        """The number of checks by status."""
        found = Counter(result.status for result in self.results)
        return {"passed": found["passed"], "failed": found["failed"], "skipped": found["skipped"]}

    @property
    def seconds(self) -> float:
        """The total time of all checks."""
        return sum(result.seconds for result in self.results)

    @property
    def summary(self) -> str:
        """`17 passed, 1 failed, 1 skipped in 3.2 s`."""
        counted = ", ".join(f"{count} {status}" for status, count in self.counts.items() if count) or "no checks"
        return f"{counted} in {self.seconds:.1f} s"

    def as_json(self) -> dict[str, Any]:
        """The report as JSON's types. Keys are only ever added."""
        return {
            "kind": self.kind,
            "name": self.name,
            "provided_by": self.provided_by or None,
            "passed": self.passed,
            "counts": self.counts,
            "seconds": round(self.seconds, 3),
            "results": [
                {**dataclasses.asdict(result), "case": result.case or None, "seconds": round(result.seconds, 3)}
                for result in self.results
            ],
        }

    def __str__(self) -> str:
        """Plain text: a line for each check, then the failures, then the counts."""
        width = max((len(result.label) for result in self.results), default=0)
        lines = [f"{result.status:<7}  {result.label:<{width}}  {result.detail}".rstrip() for result in self.results]
        failures = [f"\n{result}" for result in self.failed]
        return "\n".join([self.title, *lines, *failures, f"\n{self.summary}"])
