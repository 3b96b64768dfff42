"""All that reallm relies on, checked by its conformance kit."""

from reallm_devkit import CallbackKit


class TestPlateauCallback(CallbackKit):
    callback = "plateau"
