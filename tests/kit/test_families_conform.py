"""Every family of our own passes the conformance kit."""

from __future__ import annotations

from reallm.testing import FamilyKit


class TestMistral(FamilyKit):
    family = "mistral"


class TestMixtral(FamilyKit):
    family = "mixtral"


class TestQwen2(FamilyKit):
    family = "qwen2"


class TestQwen3(FamilyKit):
    family = "qwen3"


class TestQwen3MoE(FamilyKit):
    family = "qwen3_moe"


class TestGemma(FamilyKit):
    family = "gemma"


class TestGemma2(FamilyKit):
    family = "gemma2"


class TestGemma3(FamilyKit):
    family = "gemma3"


class TestGPT2(FamilyKit):
    family = "gpt2"


class TestPhi3(FamilyKit):
    family = "phi3"
