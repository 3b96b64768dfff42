"""What a run looks like: its HTML page, charts, pictures and plots in the terminal."""
