"""ComfyUI's models and ControlNets, told a map of noise levels for the time of a call.

Everything here is a context that puts back what it found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple

import comfy.model_sampling
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import Downsample, ResBlock, UNetModel, Upsample
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ...asyndm_core.attention import Layer, LayerSum, choose_factor, watching
from ...asyndm_core.embedding import BlockTimesteps, PixelTimesteps
from ...asyndm_core.errors import AsynDMError
from ...asyndm_core.hooks import hooked
from ...asyndm_core.samplers import NoiseLaw
from ...asyndm_core.timestep_rows import TimestepRows, UnplacedError


class UnsupportedModelError(AsynDMError):
    """A model that cannot be given a timestep per pixel (yet)."""


def residual_blocks(network: nn.Module) -> Iterator[ResBlock]:
    """The residual blocks of a UNet or a ControlNet. There are none in its transformers, which are most of its modules."""
    for module in network.children():
        if isinstance(module, ResBlock):
            yield module
        elif not isinstance(module, SpatialTransformer):
            yield from residual_blocks(module)


def cross_attention_layers(unet: UNetModel) -> dict[int, list[Layer]]:
    """The cross-attention layers of a UNet by how much smaller than the latent they are."""
    layers: dict[int, list[Layer]] = {}
    factor = 1
    for block in (*unet.input_blocks, unet.middle_block, *unet.output_blocks):
        for module in block or ():
            resize = module.h_upd if isinstance(module, ResBlock) else module
            if isinstance(module, SpatialTransformer):
                attentions = [b.attn2 for b in module.transformer_blocks if getattr(b, "attn2", None) is not None]
                layers.setdefault(factor, []).append(Layer(module, attentions))
            elif isinstance(resize, Downsample):
                factor *= 2
            elif isinstance(resize, Upsample):
                factor //= 2
    return layers


def fold(x: Tensor) -> Tensor:
    """Pixels into the batch: (B, C, H, W) -> (B H W, C, 1, 1), so that one sigma per sample is one per pixel.

    Frames, (B, C, T, H, W), likewise.
    """
    return x.movedim(1, -1).reshape(-1, x.shape[1], 1, 1)


def unfold(folded: Tensor, like: Tensor) -> Tensor:
    """``fold`` undone, contiguous (another memory layout would change the convolutions' rounding)."""
    return folded.reshape(like.shape[0], *like.shape[2:], -1).movedim(-1, 1).contiguous()


class MapSampling(nn.Module):
    """A ``model_sampling`` for a map of noise levels: the model's own, applied pixel by pixel.

    sigma: (B, H, W). timesteps: what the network is given. Everything else is the original's.
    """

    def __init__(self, original: nn.Module, sigma: Tensor, timesteps: Tensor) -> None:
        super().__init__()
        object.__setattr__(self, "_original", original)
        self._sigma = sigma.reshape(-1)
        self._timesteps = timesteps

    def __getattr__(self, name: str) -> Any:
        """Attributes of the original."""
        return getattr(object.__getattribute__(self, "_original"), name)

    def calculate_input(self, sigma: Tensor, noise: Tensor) -> Tensor:
        """The original's, at the map's sigmas."""
        return unfold(self._original.calculate_input(self._sigma, fold(noise)), noise)

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        """The original's, at the map's sigmas."""
        if isinstance(model_output, TimestepRows):
            raise UnplacedError("The network's answer is one for each timestep: they never met the picture's tokens.")
        denoised = self._original.calculate_denoised(self._sigma, fold(model_output), fold(model_input))
        return unfold(denoised, model_input)

    def timestep(self, sigma: Tensor) -> Tensor:
        """The map's timesteps."""
        return self._timesteps


class ResidualBlocks(dict[nn.Module, list[ResBlock]]):
    """The residual blocks of a UNet or a ControlNet that read the timestep, looked up once for each network in a run."""

    def __missing__(self, network: nn.Module) -> list[ResBlock]:
        found = [block for block in residual_blocks(network) if not block.skip_t_emb]
        self[network] = found
        return found


class LayerReader(NamedTuple):
    """Reads one call of a UNet."""

    layers: Sequence[Layer]

    def sum(self, columns: Tensor, rows: int) -> LayerSum:
        """What a cond's words are added to. columns (rows, words), see ``token_columns``; rows: of its tensor."""
        return LayerSum(columns)

    @contextmanager
    def watching(self, parts: Sequence[tuple[slice, LayerSum]], options: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """While it lasts, the parts (rows of the batch, and what is seen of them) see what the network is called with.

        What is hooked holds no uuid: those are new in every run, and torch.compile would compile the model anew for each.
        """

        def read(query: Tensor, key: Tensor, heads: int, height: int, width: int) -> None:
            for rows, seen in parts:
                seen.add(query[rows], key[rows], heads, height, width)

        with watching(self.layers, read):
            yield options


class UNet:
    """A UNet in one run. It reads single pixels: no tokens."""

    patch = (1, 1)

    def __init__(self, network: UNetModel) -> None:
        self.network = network
        self._blocks = ResidualBlocks()
        self._layers: dict[nn.Module, list[Layer]] = {}

    def entrance(self, network: UNetModel) -> nn.Module:
        """Every forward of a UNet, also one that is written anew, embeds its timestep first."""
        return network.time_embed

    def prepare_reading(self, network: UNetModel) -> None:
        """Choose the layers of a network in which words are read. ValueError where it has none."""
        layers = cross_attention_layers(network)
        self._layers[network] = layers[choose_factor(list(layers))]

    def reader(self, network: UNetModel, x: Tensor, text: int, inputs: Mapping[str, Any]) -> LayerReader:
        """What reads the words in a call on latents x, with a conditioning of ``text`` rows and these other inputs."""
        return LayerReader(self._layers[network])

    def told(
        self, model: Any, latents: PixelTimesteps, index: Tensor, inputs: dict[str, Any], masked: bool = True
    ) -> AbstractContextManager[None]:  # fmt: skip
        """While it lasts, a model's network knows the noise level of every pixel, see ``told``."""
        return self.holder_told(model, "model_sampling", model.diffusion_model, latents, index, inputs)

    def holder_told(
        self, holder: Any, attribute: str, network: nn.Module, latents: PixelTimesteps, index: Tensor, inputs: Mapping[str, Any]
    ) -> AbstractContextManager[None]:
        """The same for what holds a network and its ``model_sampling``."""
        return told(holder, attribute, network, self._blocks, latents, index)


@contextmanager
def told(
    holder: Any, attribute: str, network: nn.Module, blocks: ResidualBlocks, latents: PixelTimesteps, index: Tensor
) -> Iterator[None]:
    """While it lasts, a network knows the noise level of every pixel.

    holder.attribute: the ``model_sampling`` that prepares the network's input and timesteps. network: a UNet or a
    ControlNet. blocks: those found in this run. latents: the distinct sigmas of the latents and their map; index (B, H, W):
    the map of this call's batch, which has a row for every image of every cond, and is cropped where the cond has an area;
    it is on the network's device.
    """
    original = getattr(holder, attribute)
    values = latents.values.to(index.device)
    whole = latents.index.shape[1:] == index.shape[1:]
    alike = whole and latents.index.shape[0] == 1
    timesteps = original.timestep(values.clamp(min=original.sigmas[0]))
    pixels = PixelTimesteps(timesteps, index[:1] if alike else index, latents.counts if whole else None)
    rows = pixels.values if network.num_classes is None else pixels.rows(index.shape[0])
    setattr(holder, attribute, MapSampling(original, values[index], rows))
    try:
        with pixel_timesteps(network, blocks[network], pixels):
            yield
    finally:
        setattr(holder, attribute, original)


@contextmanager
def pixel_timesteps(network: nn.Module, blocks: Sequence[ResBlock], pixels: PixelTimesteps) -> Iterator[None]:
    """While it lasts, the residual ``blocks`` of ``network`` gather the embedded timesteps to their own pixels."""
    timesteps = BlockTimesteps(pixels)

    def per_timestep(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        return pixels.beside_rows(output)

    def in_block() -> tuple[Callable, Callable, Callable]:
        size = [0, 0]

        def remember_size(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            size[:] = output.shape[-2:]

        def before(module: nn.Module, inputs: tuple) -> tuple:
            return (timesteps.to_project(inputs[0], *size),)

        def after(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            return timesteps.to_pixels(output, *size)

        return remember_size, before, after

    def hooks() -> Iterator[RemovableHandle]:
        if network.num_classes is not None:
            yield network.label_emb.register_forward_hook(per_timestep)
        for block in blocks:
            remember_size, before, after = in_block()
            yield block.in_layers[-1].register_forward_hook(remember_size)
            yield block.emb_layers.register_forward_pre_hook(before)
            yield block.emb_layers.register_forward_hook(after)

    with hooked(hooks()):
        yield


def noise_law(sampling: Any) -> NoiseLaw:
    """How signal and noise mix for a ComfyUI ``model_sampling``; flow models are those of class CONST."""
    if not isinstance(sampling, comfy.model_sampling.CONST):
        return NoiseLaw(flow=False)
    return NoiseLaw(True, getattr(sampling, "noise_scale", 1.0), float(sampling.percent_to_sigma(1e-4)))


def control_chain(control: Any) -> Iterator[Any]:
    """A cond's control and the ones before it."""
    while control is not None:
        yield control
        control = control.previous_controlnet


class MapControl:
    """A cond's chain of ControlNets for one run: the same, but told the map that came along with the cond.

    tell: (control, index) -> while it lasts, the control knows the map that is in force now; its own part of it, index, lies
    under ``key`` in the cond.
    """

    def __init__(self, control: Any, key: str, tell: Callable[[Any, Tensor], AbstractContextManager[None]]) -> None:
        self._control, self._key, self._tell = control, key, tell

    def __getattr__(self, name: str) -> Any:
        """Everything else is the original's."""
        return getattr(self._control, name)

    def get_instance_for_device(self, device: Any) -> MapControl:
        """The original's copy on another GPU, told the map as well."""
        return MapControl(self._control.get_instance_for_device(device), self._key, self._tell)

    def get_control(self, x_noisy: Tensor, t: Tensor, cond: dict, *args: Any, **kwargs: Any) -> Any:
        """The original's hint for the cond's latents, each pixel at its own noise level."""
        with ExitStack() as stack:
            for control in control_chain(self._control):
                stack.enter_context(self._tell(control, cond[self._key]))
            return self._control.get_control(x_noisy, t, cond, *args, **kwargs)
