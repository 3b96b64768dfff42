"""The family computes, reads and writes what transformers does."""

from reallm_devkit import FamilyKit


class TestHyperCLOVAX(FamilyKit):
    family = "hyperclovax"
