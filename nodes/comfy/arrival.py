"""Whether what AsynDM sends along with a prediction reaches the model, and what stands between where it does not."""

from __future__ import annotations

import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import comfy.samplers
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...asyndm_core.errors import AsynDMError
from ...asyndm_core.regions import SWITCH_OFF
from .conditioning import ANNOTATION
from .origin import between, described
from .sampler import positive_of


class InterferenceError(AsynDMError):
    """Another pack stands between AsynDM and the model."""


def in_force(cond: Mapping[str, Any], sigma: Tensor | float) -> bool:
    """Whether ComfyUI evaluates a cond at ``sigma`` (0-dim). (A default one only where the others leave something.)"""
    late = "timestep_start" in cond and sigma > cond["timestep_start"]
    return not (late or ("timestep_end" in cond and sigma < cond["timestep_end"]))


class Arrival:
    """The guard of one run.

    guider: the run's. entrances: what the networks of the model and its copies run first. options: () -> ComfyUI's
    model_options of the run. size: of the latents. start: the code from which predictions are asked for;
    what comes after it on the stack is between. own_key: of our own wrappers.
    """

    def __init__(
        self, guider: Any, entrances: Mapping[nn.Module, nn.Module], options: Callable[[], dict], size: Sequence[int],
        start: types.CodeType, own_key: str,
    ) -> None:  # fmt: skip
        self._guider, self._entrances, self._options = guider, entrances, options
        self._size, self._start, self._own_key = size, start, own_key
        self._guards: dict[nn.Module, RemovableHandle] = {}
        self._fault: InterferenceError | None = None
        self._what = ""
        self.read = False
        """Whether attention was read in this run."""

    @contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """While it lasts, who evaluates a network raises InterferenceError, but for ``let_through``. what: it would lack."""
        self._fault, self._what = None, what
        for model in self._entrances:
            self._guard(model)
        try:
            yield
        finally:
            for handle in self._guards.values():
                handle.remove()
            self._guards.clear()
        if self._fault is not None:  # another pack caught it
            raise self._fault

    def _guard(self, model: nn.Module) -> None:
        """Let the next evaluation of a copy raise."""
        self._guards[model] = self._entrances[model].register_forward_pre_hook(lambda *_: self.interfered())

    @contextmanager
    def let_through(self, model: nn.Module) -> Iterator[None]:
        """While it lasts, this copy of the model is evaluated as it should be."""
        guard = self._guards.pop(model, None)
        if guard is not None:
            guard.remove()
        try:
            yield
        finally:
            if guard is not None:
                self._guard(model)

    def interfered(self) -> NoReturn:
        """Raise the error of an evaluation now that nothing reached."""
        self._fault = InterferenceError(
            f"The model was evaluated without {self._what}: {' and '.join(self._evaluators())} stands between AsynDM and the "
            f"model and hands on only what it knows. Bypass its node, or {SWITCH_OFF}."
        )
        raise self._fault

    def cut_up(self, x: Tensor) -> InterferenceError:
        """The error of an evaluation now on other latents than AsynDM's."""
        self._fault = InterferenceError(
            f"Another node samples the model on latents of {tuple(x.shape)} while AsynDM samples those of "
            f"{' x '.join(map(str, self._size))} ({' and '.join(self._evaluators())}): context windows and tiled diffusion do "
            f"not go with AsynDM. Bypass that node, or {SWITCH_OFF}."
        )
        return self._fault

    def words_in_windows(self) -> InterferenceError:
        """The error of following words in a clip that the model sees by context windows."""
        self._fault = InterferenceError(
            "AsynDM cannot follow words in context windows, where the model sees a part of the clip at a time. Paint the "
            "regions (connect mask to Cross-Attention Mask and set mask_mode to replace), bypass the context windows, or "
            f"{SWITCH_OFF}."
        )
        return self._fault

    def check_read(self, words: Sequence[str], sigma: float) -> None:
        """InterferenceError where some of ``words`` should have been read by now, at ``sigma``, and none was."""
        if self.read:
            return
        sure = [
            cond for cond in positive_of(self._guider) if ANNOTATION in cond and "default" not in cond and in_force(cond, sigma)
        ]
        known = [cond[ANNOTATION].positions for cond in sure]
        missing = [word for word in words if any(positions.get(word) for positions in known)]
        if missing:
            raise InterferenceError(
                f"The attention of {', '.join(map(repr, missing))} could not be read: the model's own cross-attention was not "
                f"asked. {' and '.join(self._installed()) or 'Another node'} may stand between: bypass its node, or paint the "
                "regions (connect mask to Cross-Attention Mask and set mask_mode to replace)."
            )

    def _evaluators(self) -> list[str]:
        """Who evaluates the model now: the functions of other packs on the stack, else all that could."""
        frames = (frame for frame, _ in traceback.walk_stack(sys._getframe(1)))
        return between(frames, self._start) or self._installed() or ["another pack"]

    def _installed(self) -> list[str]:
        """What other packs have put around the model."""
        options = self._options()
        functions = [options.get(key) for key in ("model_function_wrapper", "sampler_calc_cond_batch_function")]
        functions += [comfy.samplers.sampling_function, comfy.samplers.calc_cond_batch, self._guider]
        for wrappers in options.get("transformer_options", {}).get("wrappers", {}).values():
            functions += [each for key, several in wrappers.items() if key != self._own_key for each in several]
        named = dict.fromkeys(described(function) for function in functions if function is not None)
        return [name for name in named if not name.endswith(" of ComfyUI")]
