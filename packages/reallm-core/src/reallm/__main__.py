"""Entry point of `python -m reallm`, which is the command `reallm`."""

from __future__ import annotations

from reallm.launch.end_with_launcher import end_with_launcher

if __name__ == "__main__":
    end_with_launcher()  # before what takes longer to import
    from reallm.cli.main import main

    main()
