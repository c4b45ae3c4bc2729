"""A diffusers UNet (UNet2DConditionModel) as a host: SD1.x, SD2.x and SDXL kin, epsilon or v prediction.

Latents are held in variance-exploding coordinates, x = x0 + sigma n, as in ``samplers``; the UNet is given
x / sqrt(1 + sigma^2), which are diffusers' own (variance-preserving) latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..attention import Attention, Layer, LayerSum, choose_factor, watching
from ..clock import Clock, NoiseGrid, paper_clock, table_clock
from ..embedding import BlockTimesteps, Groups, PixelTimesteps, grouped
from ..hooks import hooked
from ..samplers import NoiseLaw, Prediction
from .words import PromptWords


def sigma_of_alphas(alphas_cumprod: Tensor) -> Tensor:
    """The noise level of each timestep: sigma = sqrt((1 - abar) / abar)."""
    return ((1 - alphas_cumprod) / alphas_cumprod).sqrt()


def make_clock(alphas_cumprod: Tensor, timesteps: Sequence[int] | Tensor, paper: bool = False, last: float = 0.0) -> Clock:
    """The clock of a run over ``timesteps`` (a scheduler's, descending), with the sigma ``last`` after the last one.

    The authors' sampler ends at timestep 0, not at sigma 0: give ``last = sigma_of_alphas(alphas_cumprod)[0]`` for it.
    """
    grid = sigma_of_alphas(alphas_cumprod.float())
    steps = torch.as_tensor(timesteps).float().cpu()
    sigmas = torch.cat([NoiseGrid(grid.cpu()).at(steps), torch.tensor([last])])
    positions = torch.cat([steps, torch.zeros(1)])
    build = paper_clock if paper else table_clock
    return build(sigmas, positions, NoiseGrid(grid.cpu())).to(alphas_cumprod.device)


def cross_attention_layers(unet: UNet2DConditionModel) -> dict[int, list[Layer]]:
    """The cross-attention layers of a UNet by how much smaller than the latent they are."""
    layers: dict[int, list[Layer]] = {}

    def collect(block: nn.Module, factor: int) -> None:
        for module in block.modules():
            if isinstance(module, Transformer2DModel):
                attentions = [b.attn2 for b in module.transformer_blocks if b.attn2 is not None]
                layers.setdefault(factor, []).append(Layer(module, attentions))

    factor = 1
    for block in unet.down_blocks:
        collect(block, factor)
        factor *= 2 if block.downsamplers else 1
    collect(unet.mid_block, factor)
    for block in unet.up_blocks:
        collect(block, factor)
        factor //= 2 if block.upsamplers else 1
    return layers


@contextmanager
def pixel_timesteps(unet: UNet2DConditionModel, timesteps: PixelTimesteps) -> Iterator[None]:
    """While it lasts, ``unet`` embeds ``timesteps`` whatever scalar it is called with, each pixel its own.

    The projection of the embedding in a residual block is kept aside (the block itself adds zeros), gathered to the
    block's pixels and added where the block would have: just before its second normalisation.
    """
    images, block_timesteps = timesteps.index.shape[0], BlockTimesteps(timesteps)
    adds_text = unet.config.addition_embed_type == "text_time"

    def embed(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        return module.forward(timesteps.rows(images) if adds_text else timesteps.values).to(output.dtype)

    def per_timestep(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
        return timesteps.beside_rows(output)

    def in_block() -> tuple[Callable, ...]:
        size: list[int] = []
        held: list[Tensor] = []

        def remember_size(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            size[:] = output.shape[-2:]

        def own_rows(module: nn.Module, inputs: tuple) -> tuple:
            return (block_timesteps.to_project(inputs[0], *size),)

        def keep_projection(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            held[:] = [output]
            return output.new_zeros(images, output.shape[1])

        def add_projection(module: nn.Module, inputs: tuple) -> tuple:
            (features,) = inputs
            return (features + block_timesteps.to_pixels(held.pop(), *size),)

        return remember_size, own_rows, keep_projection, add_projection

    def hooks() -> Iterator[RemovableHandle]:
        yield unet.time_proj.register_forward_hook(embed)
        if adds_text:
            yield unet.add_embedding.register_forward_hook(per_timestep)
        for block in unet.modules():
            if isinstance(block, ResnetBlock2D):
                remember_size, own_rows, keep_projection, add_projection = in_block()
                yield block.conv1.register_forward_hook(remember_size)
                yield block.time_emb_proj.register_forward_pre_hook(own_rows)
                yield block.time_emb_proj.register_forward_hook(keep_projection)
                yield block.norm2.register_forward_pre_hook(add_projection)

    with hooked(hooks()):
        yield


class DiffusersHost:
    """One run of a diffusers UNet with classifier-free guidance. Implements ``hosts.Host``.

    alphas_cumprod: (T,). prediction_type: "epsilon" or "v_prediction". cond, uncond: (1 or B, tokens, C) embeddings.
    words: of the plan, in ``cond``: see ``PromptWords``.
    added_cond, added_uncond: SDXL's ``added_cond_kwargs`` (text_embeds, time_ids) of each.
    factor: which layers to read, by how much smaller than the latents they are; None for ``choose_factor``'s.
    Raises ValueError for a UNet or a prediction type that it cannot serve.
    """

    law = NoiseLaw(flow=False)

    def __init__(
        self,
        unet: UNet2DConditionModel,
        alphas_cumprod: Tensor,
        prediction_type: str,
        cond: Tensor,
        uncond: Tensor,
        guidance_scale: float,
        words: Sequence[Sequence[int]] | Tensor = (),
        added_cond: Mapping[str, Tensor] | None = None,
        added_uncond: Mapping[str, Tensor] | None = None,
        factor: int | None = None,
    ) -> None:
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type is {prediction_type!r}: expected 'epsilon' or 'v_prediction'.")
        if unet.config.resnet_time_scale_shift != "default" or unet.config.class_embed_type is not None:
            raise ValueError(
                "This UNet adds its timestep by scale and shift, or has class labels: only the UNets of SD1.x, SD2.x "
                "and SDXL are served."
            )
        self.unet = unet
        self.prediction_type = prediction_type
        self.cond, self.uncond = cond, uncond
        self.guidance_scale = guidance_scale
        self.added = (added_uncond, added_cond)
        self.words = PromptWords(words, cond)
        layers = cross_attention_layers(unet)
        self.layers = layers[factor or choose_factor(list(layers))] if len(self.words) else []
        log_sigma = sigma_of_alphas(alphas_cumprod.float()).log()
        self.boundaries = (log_sigma[1:] + log_sigma[:-1]) / 2
        self._seen = LayerSum(self.words.columns)

    def timesteps(self, sigma: Tensor) -> Tensor:
        """The timestep nearest to each sigma (any shape), on a logarithmic scale."""
        return torch.bucketize(sigma.float().log(), self.boundaries)

    def denoise(
        self, x: Tensor, sigma: Tensor, reference: Tensor | None = None, watch: bool = False, groups: Groups | None = None
    ) -> Prediction:
        """See ``hosts.Host``; ``reference`` has no use here. The unconditional prediction comes too, for CFG++."""
        scale = (1 + sigma**2).sqrt()
        rows = torch.cat([x / scale] * 2)
        batch = x.shape[0]
        contexts = torch.cat([c.expand(batch, -1, -1) for c in (self.uncond, self.cond)])
        groups = groups or grouped(sigma[:, 0])
        timesteps = groups.of(self.timesteps(sigma[:, 0]))
        self._seen = LayerSum(self.words.columns)
        with ExitStack() as stack:
            if timesteps.values.shape[0] > 1:
                doubled = replace(timesteps, index=torch.cat([timesteps.index] * 2))
                stack.enter_context(pixel_timesteps(self.unet, doubled))
            if watch:
                stack.enter_context(watching(self.layers, self._read))
            output = self.unet(
                rows, timesteps.values[0], encoder_hidden_states=contexts, added_cond_kwargs=self._added(batch)
            ).sample
        if self.prediction_type == "epsilon":
            denoised = x.repeat(2, 1, 1, 1) - sigma.repeat(2, 1, 1, 1) * output
        else:
            denoised = rows / scale.repeat(2, 1, 1, 1) - (sigma / scale).repeat(2, 1, 1, 1) * output
        uncond, cond = denoised.chunk(2)
        return Prediction(uncond + self.guidance_scale * (cond - uncond), uncond)

    def attention(self) -> Attention | None:
        """See ``hosts.Host``."""
        return self.words.attention(self._seen.mean())

    def acts(self, reference: Tensor) -> Tensor | None:
        """See ``hosts.Host``."""
        return self.words.acts()

    def _added(self, batch: int) -> dict[str, Tensor] | None:
        uncond, cond = self.added
        if uncond is None or cond is None:
            return None
        return {key: torch.cat([uncond[key].expand(batch, -1), cond[key].expand(batch, -1)]) for key in cond}

    def _read(self, query: Tensor, key: Tensor, heads: int, height: int, width: int) -> None:
        """One layer's attention; only the conditional rows (the second half) count."""
        self._seen.add(query.chunk(2)[1], key.chunk(2)[1], heads, height, width)
