"""The third-party family Apertus, with layers of its own, can be imported here without being installed."""

from __future__ import annotations

import sys

from workspace import ROOT

sys.path.append(str(ROOT / "tests" / "installable" / "reallm-hf-apertus" / "src"))
