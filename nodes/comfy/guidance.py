"""Guidance of ComfyUI's nodes that computes with the one sigma that it is told: it is given every pixel's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_patcher
import torch
from torch import Tensor

from ...asyndm_core.embedding import PixelTimesteps
from ...asyndm_core.regions import SWITCH_OFF
from .origin import described, place

Levels = Callable[[], PixelTimesteps | None]
"""The distinct sigmas of the latents, above 0, and their map, now; None where all pixels have the same."""


class SigmaMap(Tensor):
    """Sigmas (B, 1, H, W) in the place of one for each picture (B,): brought to the latents' rank, they are a map."""

    def view(self, *shape: Any) -> Tensor:
        """The map, whatever shape is asked for: it is that which broadcasts against latents."""
        return self.as_subclass(Tensor)


def by_level(pixels: PixelTimesteps, function: Callable[[Tensor], Tensor], otherwise: Tensor) -> Tensor:
    """A function of one level (0-dim) to latents, at every pixel's own level: asked once for each distinct one."""
    index, changed = pixels.index[:, None], otherwise
    for position, level in enumerate(pixels.values):
        changed = torch.where(index == position, function(level), changed)
    return changed


def _as_a_map(function: Callable[[dict], Tensor], levels: Levels) -> Callable[[dict], Tensor]:
    """For a function that computes pixel by pixel with a sigma that it views at the latents' rank, and over whole pictures."""

    def guidance(args: dict) -> Tensor:
        pixels = levels()
        if pixels is not None:
            args = {**args, "sigma": pixels.values[pixels.index][:, None].as_subclass(SigmaMap)}
        return function(args)

    return guidance


def _level_by_level(function: Callable[[dict], Tensor], levels: Levels) -> Callable[[dict], Tensor]:
    """For a function that computes pixel by pixel with a single sigma (one, whatever the batch)."""

    def guidance(args: dict) -> Tensor:
        pixels = levels()
        if pixels is None:
            return function({**args, "sigma": args["sigma"][:1]})
        return by_level(pixels, lambda level: function({**args, "sigma": level[None]}), args["denoised"])

    return guidance


KNOWN = {"RescaleCFG": _as_a_map, "TemporalScoreRescaling": _level_by_level}
"""How ComfyUI's guidance with one sigma is given every pixel's own, by the class of its node."""


def _node_of(function: Any) -> str:
    """The class of the node that made a function."""
    return getattr(function, "__qualname__", "").split(".")[0]


def check_guidance(model_options: Mapping[str, Any]) -> None:
    """ValueError for another pack's copy of guidance that computes with one sigma for all pixels."""
    functions = [model_options.get("sampler_cfg_function"), *model_options.get("sampler_post_cfg_function", [])]
    for function in functions:
        if _node_of(function) in KNOWN and place(function.__code__.co_filename) != "ComfyUI":
            raise ValueError(
                f"{described(function)} and AsynDM do not go together: it goes by one noise level for all pixels, and they "
                f"have several. Use ComfyUI's own {_node_of(function)}, bypass that node, or {SWITCH_OFF}."
            )


def with_own_sigmas(model_options: dict, levels: Levels) -> dict:
    """A copy of the options whose ``KNOWN`` functions are given every pixel's own sigma. Others stay as they are."""
    options = comfy.model_patcher.create_model_options_clone(model_options)

    def adapted(function: Callable[[dict], Tensor]) -> Callable[[dict], Tensor]:
        node = _node_of(function)
        return KNOWN[node](function, levels) if node in KNOWN else function

    if "sampler_cfg_function" in options:
        options["sampler_cfg_function"] = adapted(options["sampler_cfg_function"])
    if "sampler_post_cfg_function" in options:
        options["sampler_post_cfg_function"] = [adapted(function) for function in options["sampler_post_cfg_function"]]
    return options
