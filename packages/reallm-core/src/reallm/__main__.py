"""Entry point of `python -m reallm`, which is the command `reallm`."""

from __future__ import annotations

from reallm.cli.main import main

if __name__ == "__main__":
    main()
