"""SmolLM3 model family for reallm."""
