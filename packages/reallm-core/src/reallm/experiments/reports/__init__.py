"""Reports of a run: its HTML page, charts, pictures and terminal plots."""
