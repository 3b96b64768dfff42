"""The subprocess of the check `another-process`: `python -m reallm_devkit.testing.datasets.child PICKLED DIGESTS`."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

from reallm.data.datasets import construct
from reallm_devkit.testing.datasets.subject import digest, read_samples


def main(pickled: Path, digests_path: Path) -> None:
    """Write the digests of the samples of the pickled dataset, and of one constructed in this process."""
    samples, construct_args = pickle.loads(pickled.read_bytes())  # written by the check that started this process
    datasets = {"pickled": samples, "constructed": construct(*construct_args)}
    digests = {how: [digest(sample) for sample in read_samples(dataset)] for how, dataset in datasets.items()}
    digests_path.write_text(json.dumps(digests), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
