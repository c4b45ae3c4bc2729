"""Where the list of shipped files and the server of tests/comfy are."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "comfy")]
