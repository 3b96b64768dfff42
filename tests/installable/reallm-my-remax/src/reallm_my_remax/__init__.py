"""ReMax for reallm."""
