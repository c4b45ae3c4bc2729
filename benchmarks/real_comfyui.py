"""A real ComfyUI in this process, and the pack in it as ComfyUI loads it."""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
COMFYUI = Path(os.environ.get("COMFYUI_PATH", "~/comfy/ComfyUI")).expanduser()


def found() -> bool:
    """Whether there is a ComfyUI at COMFYUI_PATH, else at ~/comfy/ComfyUI."""
    return (COMFYUI / "main.py").is_file()


@cache
def load_pack(cpu: bool = True) -> ModuleType:
    """ComfyUI (on the CPU unless told otherwise) with the pack as module ``asyndm_pack``, which is returned: the one that
    is there already, or it is loaded.

    Raises FileNotFoundError without a ComfyUI.
    """
    if not found():
        raise FileNotFoundError(f"There is no ComfyUI at {COMFYUI}: set COMFYUI_PATH to a ComfyUI with its requirements.")
    sys.path.insert(0, str(COMFYUI))
    from comfy.cli_args import args

    args.cpu = cpu
    import nodes  # noqa: F401  (ComfyUI's: loaded before the pack)

    if "asyndm_pack" in sys.modules:
        return sys.modules["asyndm_pack"]
    spec = importlib.util.spec_from_file_location("asyndm_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    if spec is None or spec.loader is None:
        raise ImportError(f"The pack at {ROOT} has no __init__.py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules["asyndm_pack"] = module
    spec.loader.exec_module(module)
    return module
