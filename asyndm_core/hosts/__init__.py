"""What differs between frameworks: each host is a small adapter of ``Host``."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ..attention import Attention
from ..embedding import Groups
from ..samplers import NoiseLaw, Prediction


class Host(Protocol):
    """What a framework supplies: its model, with classifier-free guidance, at a map of noise levels."""

    @property
    def law(self) -> NoiseLaw:
        """How the model mixes signal and noise."""
        ...

    def denoise(
        self, x: Tensor, sigma: Tensor, reference: Tensor | None = None, watch: bool = False, groups: Groups | None = None
    ) -> Prediction:
        """The denoised latents of x (B, C, *size) whose pixels have noise levels sigma (B, 1, *size).

        size: (H, W) of pictures, or (T, H, W) of clips. Maps are (B, *size), here and in all that follows.

        ``reference`` (0-dim) is the one sigma of this step for everything that knows only one, such as the host's
        schedules; None within a step (the smallest of the map may serve). ``watch`` asks to read the attention of the
        plan's words in this call. ``groups``: pixels that sigma is even within; None: the host looks, and waits for it.
        """
        ...

    def attention(self) -> Attention | None:
        """What the last watched call saw of the words, in the plan's order, or None if none of them was in force."""
        ...

    def acts(self, reference: Tensor) -> Tensor | None:
        """Where prompts with each of the plan's words act at ``reference`` (0-dim): above 0 there, 0 elsewhere.

        (B or 1, words, *size), or of one pixel for all; None: all of them everywhere. The same object as before where it is the
        same.
        """
        ...
