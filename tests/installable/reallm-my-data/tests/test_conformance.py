"""All that reallm relies on, checked by its conformance kit: a test for each check."""

from reallm_devkit import DatasetKit


class TestMyDataset(DatasetKit):
    dataset = "my-dataset"
    config = {"my_arg": 2}
    rows = ["the first line", "the second", "and one that is a little longer", "four", "x"]
