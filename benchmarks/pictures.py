"""Pictures of the user's, from a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

KINDS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder by name. ValueError where there is none."""
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in KINDS)
    if not found:
        raise ValueError(f"There is no picture ({', '.join(KINDS)}) in {folder}.")
    return found


def read_picture(path: Path, size: int) -> Tensor:
    """An IMAGE (1, size, size, 3): the middle of the picture."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    side = min(picture.size)
    left, top = ((edge - side) // 2 for edge in picture.size)
    picture = picture.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture)).float()[None] / 255
