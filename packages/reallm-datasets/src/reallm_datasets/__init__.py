"""Datasets for reallm: prompt/answer pairs and conversations, paired comparisons, prompts."""
