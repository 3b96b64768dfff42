"""The other process of the check `another-process`: `python -m reallm_devkit.testing.datasets.child PICKLED ANSWER`."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

from reallm.data.datasets import construct
from reallm_devkit.testing.datasets.subject import digest, read


def main(content: Path, answer: Path) -> None:
    """Write the digests of the samples: of the dataset as it was pickled, and of one that is constructed here."""
    samples, made = pickle.loads(content.read_bytes())  # written by the check that has started this process
    found = {"pickled": samples, "constructed": construct(*made)}
    digests = {how: [digest(item) for item in read(dataset)] for how, dataset in found.items()}
    answer.write_text(json.dumps(digests), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
