"""A logger of hook API 1.0, with no more methods than it needed."""


class Lines:
    """Writes `lines.txt` into the run folder: step and names of metrics."""

    def __init__(self, run_dir, config):
        self.file = (run_dir / "lines.txt").open("a", encoding="utf-8")

    def log(self, step, metrics):
        print(step, *sorted(metrics), file=self.file, flush=True)

    def close(self):
        self.file.close()
