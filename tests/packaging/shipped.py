"""The files that the registry hands out."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def listed(*options: str) -> set[str]:
    """Files that git tracks."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", *options]
    return set(filter(None, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")))


def shipped() -> list[Path]:
    """Those that .comfyignore does not name, as comfy-cli packs them; relative to the repository."""
    return [Path(name) for name in sorted(listed() - listed("--ignored", "--exclude-from=.comfyignore"))]
