"""The family computes, reads and writes what transformers does."""

from reallm.testing import FamilyKit


class TestApertus(FamilyKit):
    family = "apertus"
