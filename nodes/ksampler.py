"""Node "AsynDM KSampler": KSampler with a timestep map, the words' masks and a picture of the run."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from nodes import common_ksampler

from ..asyndm_core.grid import without_frames_outside
from ..asyndm_core.pictures import palette, shown, timeline
from ..asyndm_core.record import RunRecord
from ..asyndm_core.regions import Plan, TimestepMap, check_choice, check_number, make_plan
from ..asyndm_core.samplers import SAMPLERS, UnsupportedSampler, find_sampler
from .comfy.browser import display_node
from .comfy.latent_rgb import latent_to_rgb
from .comfy.live_view import show_on
from .comfy.network import size_of
from .comfy.outside import outside_of
from .comfy.sampling import Options, apply
from .types import ADVANCED, CATEGORY, TimestepMapSocket, check_socket

MOST_STEPS = 10_000
"""As in KSampler. A link may bring more, and ComfyUI would make a table of that length."""
LEAST_DENOISE = 0.001
"""A tenth of the widget's step. ComfyUI makes a table of steps / denoise entries."""


class AsynDMKSampler(io.ComfyNode):
    """Samples asynchronously and shows how."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and their order are append-only."""
        return io.Schema(
            node_id="AsynDM_KSampler",
            display_name="AsynDM KSampler",
            category=CATEGORY,
            description=(
                "KSampler with a clock (pace) for every pixel: the regions of the timestep map are denoised later than the "
                "rest. Also gives the mask of every target and a timeline of the run."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=(
                        "A UNet (SD1.x, SD2.x, SDXL), a diffusion transformer of images or video, or the AsynDM demo model."
                    ),
                ),
                TimestepMapSocket.Input("timestep_map", tooltip="From Asynchronous Timestep Map."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The noise to start from, as in KSampler: same seed, same noise.",
                ),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=MOST_STEPS,
                    tooltip="Steps of the schedule. More steps give regions finer moves to catch up. Good range 20-50.",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Classifier-free guidance, as in KSampler. Higher follows the prompt more. Good range 4-9.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=[name for name in comfy.samplers.KSampler.SAMPLERS if name in SAMPLERS],
                    tooltip=(
                        "The sampling formula. The list has those of ComfyUI's that can give every pixel its own noise "
                        "level. ddim with eta 1 is the paper's."
                    ),
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    tooltip="How noise goes down over steps for the background; regions follow it more slowly. All work.",
                ),
                io.Conditioning.Input(
                    "positive", tooltip="The prompt, from Cross-Attention Mask: it says which tokens are which target."
                ),
                io.Conditioning.Input("negative", tooltip="What to leave out, from CLIP Text Encode as usual."),
                io.Latent.Input("latent_image", tooltip="The latents to denoise: empty, or a picture's for image to image."),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much of the picture is made anew, as in KSampler. Lower keeps more of latent_image.",
                ),
                io.Float.Input(
                    "eta",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Fresh noise per step, for sampler ddim only: 1 is the paper's sampler, 0 is ComfyUI's ddim.",
                    **ADVANCED,
                ),
                io.Boolean.Input(
                    "preview",
                    default=True,
                    optional=True,
                    tooltip=(
                        "Show the run on the node: live while it samples, with its regions and who lags, and afterwards "
                        "step by step, with a timeline. Off saves a moment; the picture is the same."
                    ),
                    **ADVANCED,
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent"),
                io.Mask.Output(
                    display_name="mask",
                    tooltip=(
                        "Where the model saw each target, mean over the run: one map per target, at latent size. Of a clip, "
                        "one per target and latent frame."
                    ),
                ),
                io.Image.Output(display_name="timeline", tooltip="The run as a picture: regions and progress at some steps."),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )

    @classmethod
    def validate_inputs(cls, sampler_name: str | None = None) -> bool | str:
        """What is wrong with a sampler_name that is not in the list, as workflows saved with another have; None: a link."""
        try:
            if sampler_name is not None:
                find_sampler(sampler_name)
        except UnsupportedSampler as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        timestep_map: TimestepMap,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: list,
        negative: list,
        latent_image: dict,
        denoise: float,
        eta: float = 1.0,
        preview: bool = True,
    ) -> io.NodeOutput:
        """Sample as KSampler does, with the map on the model and the run recorded."""
        node = "AsynDM KSampler"
        check_socket(timestep_map, TimestepMap, "timestep_map", node)
        check_socket(model, object, "model", node)
        check_socket(positive, list, "positive", node)
        check_socket(negative, list, "negative", node)
        check_socket(latent_image, dict, "latent_image", node)
        check_socket(preview, int, "preview", node)
        check_socket(steps, int, "steps", node)
        check_socket(seed, int, "seed", node)
        check_choice(sampler_name, comfy.samplers.KSampler.SAMPLERS, f"sampler_name of {node}")
        check_choice(scheduler, comfy.samplers.KSampler.SCHEDULERS, f"scheduler of {node}")
        check_number(cfg, -1000, 1000, f"cfg of {node}")
        check_number(denoise, 0, 1, f"denoise of {node}")
        check_number(eta, 0, 1, f"eta of {node}")
        check_number(steps, 1, MOST_STEPS, f"steps of {node}")
        record = RunRecord(steps, previews=True)
        options = Options(
            eta=eta if sampler_name == "ddim" else None,
            on_step=record,
            on_run=show_on(cls.hidden) if preview else None,
            cut=False,
            node=display_node(cls.hidden),
        )
        patched = apply(model, timestep_map, options)
        whole = denoise * timestep_map.denoise
        if whole != 0:
            check_number(whole, LEAST_DENOISE, 1, f"denoise of {node} other than 0")
        (latent,) = common_ksampler(
            patched, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image, denoise=whole
        )
        size = size_of(latent["samples"])
        outside = outside_of([given for _, given in (*positive, *negative)], model.model, size)
        masks = record.masks(*size, outside=outside)
        if masks is None:
            masks = without_frames_outside(torch.zeros(latent["samples"].shape[0], 1, *size), *outside)
        sheet = draw_timeline(model, record, make_plan(timestep_map, *size))
        previews = ui.PreviewImage(sheet, cls=cls) if preview else None
        return io.NodeOutput(latent, masks.flatten(0, -3), sheet, ui=previews)


def draw_timeline(model: Any, record: RunRecord, plan: Plan) -> Tensor:
    """The timeline of a run as an IMAGE (1, H, W, 3); of its first picture where it was a batch."""
    frames = record.frames()
    if not frames:
        return torch.zeros(1, 8, 8, 3)
    to_rgb = latent_to_rgb(model.get_model_object("latent_format"))
    dims = frames[0].progress.ndim - 1
    images = None if to_rgb is None else [to_rgb(shown(frame.denoised[0], dims)) for frame in frames]
    return timeline(frames, record.steps, palette(len(plan.regions)), images)[None]
