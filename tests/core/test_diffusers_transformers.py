"""The host of diffusers' transformers: tiny random ones against the networks themselves, packed as their pipelines pack, and
against an exact reference of two regions; and words' maps against an explicit softmax."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import diffusers
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from asyndm_core.attention import spread_blocks
from asyndm_core.hooks import hooked
from asyndm_core.hosts.diffusers_transformers import DiffusersTransformerHost, make_flow_clock, patch_of
from asyndm_core.regions import Regions, Target, TimestepMap, make_plan
from asyndm_core.run import generate
from asyndm_core.samplers import find_sampler

BATCH, GRID, TEXT, CHANNELS, PATCH = 2, (6, 8), 19, 4, 2
TOKENS = GRID[0] * GRID[1]
SIZE = (GRID[0] * PATCH, GRID[1] * PATCH)
WORDS = [[3], [5, 6]]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def states(tokens: int = TEXT, seed: int = 1) -> Tensor:
    return random(1, tokens, 40, seed=seed)


def flux() -> nn.Module:
    return diffusers.FluxTransformer2DModel(
        in_channels=CHANNELS * PATCH**2, num_layers=2, num_single_layers=3, attention_head_dim=32, num_attention_heads=2,
        joint_attention_dim=40, pooled_projection_dim=24, axes_dims_rope=(8, 12, 12), guidance_embeds=True,
    )  # fmt: skip


def sd3() -> nn.Module:
    return diffusers.SD3Transformer2DModel(
        sample_size=32, patch_size=PATCH, in_channels=CHANNELS, out_channels=CHANNELS, num_layers=4, attention_head_dim=32,
        num_attention_heads=2, joint_attention_dim=40, caption_projection_dim=64, pooled_projection_dim=24,
        pos_embed_max_size=32, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip


def qwen_image() -> nn.Module:
    return diffusers.QwenImageTransformer2DModel(
        patch_size=PATCH, in_channels=CHANNELS * PATCH**2, out_channels=CHANNELS, num_layers=4, attention_head_dim=32,
        num_attention_heads=2, joint_attention_dim=40, axes_dims_rope=(8, 12, 12),
    )  # fmt: skip


def z_image() -> nn.Module:
    return diffusers.ZImageTransformer2DModel(
        in_channels=CHANNELS, dim=64, n_layers=4, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=40,
        axes_dims=[8, 12, 12], axes_lens=[128, 64, 64],
    )  # fmt: skip


def packed(x: Tensor) -> Tensor:
    """As the pipelines of Flux and Qwen-Image pack latents."""
    height, width = GRID
    tokens = x.view(-1, CHANNELS, height, PATCH, width, PATCH).permute(0, 2, 4, 1, 3, 5)
    return tokens.reshape(-1, height * width, CHANNELS * PATCH**2)


def unpacked(tokens: Tensor) -> Tensor:
    height, width = GRID
    x = tokens.view(-1, height, width, CHANNELS, PATCH, PATCH).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(-1, CHANNELS, *SIZE)


def by_flux(network: nn.Module, x: Tensor, sigma: Tensor, prompt: Mapping[str, Tensor]) -> Tensor:
    ids = torch.zeros(*GRID, 3)
    ids[..., 1], ids[..., 2] = torch.arange(GRID[0])[:, None], torch.arange(GRID[1])
    text = torch.zeros(prompt["encoder_hidden_states"].shape[1], 3)
    said = network(packed(x), timestep=sigma, img_ids=ids.view(-1, 3), txt_ids=text, return_dict=False, **prompt)
    return unpacked(said[0])


def by_sd3(network: nn.Module, x: Tensor, sigma: Tensor, prompt: Mapping[str, Tensor]) -> Tensor:
    return network(x, timestep=1000 * sigma, return_dict=False, **prompt)[0]


def by_qwen_image(network: nn.Module, x: Tensor, sigma: Tensor, prompt: Mapping[str, Tensor]) -> Tensor:
    shapes = [[(1, *GRID)]] * len(x)
    return unpacked(network(packed(x), timestep=sigma, img_shapes=shapes, return_dict=False, **prompt)[0])


def by_z_image(network: nn.Module, x: Tensor, sigma: Tensor, prompt: Mapping[str, Tensor]) -> Tensor:
    said = network([each[:, None] for each in x], 1 - sigma, list(prompt["cap_feats"]), return_dict=False)[0]
    return -torch.stack(said)[:, :, 0]


class Tiny(NamedTuple):
    """make: the network. plain: it, called as its pipeline does. prompt: what it is told. opens: the picture comes first in
    its attention. text: the first of the text's tokens, and how many they are, filled up. depth: of the blocks with both."""

    make: Callable[[], nn.Module]
    plain: Callable[[nn.Module, Tensor, Tensor, Mapping[str, Tensor]], Tensor]
    prompt: Callable[..., dict[str, Tensor]]
    opens: bool
    text: tuple[int, int]
    depth: int


def with_pooled(tokens: int = TEXT, seed: int = 1, **more: Tensor) -> dict[str, Tensor]:
    return {"encoder_hidden_states": states(tokens, seed), "pooled_projections": random(1, 24, seed=seed + 9), **more}


TINY = {
    "Flux.1": Tiny(
        flux, by_flux, lambda *a: with_pooled(*a, guidance=torch.tensor([3.5])), False, (0, TEXT), 5
    ),
    "Stable Diffusion 3.5": Tiny(sd3, by_sd3, with_pooled, True, (TOKENS, TEXT), 4),
    "Qwen-Image": Tiny(
        qwen_image, by_qwen_image, lambda *a: {"encoder_hidden_states": states(*a)}, False, (0, TEXT), 4
    ),
    "Z-Image": Tiny(z_image, by_z_image, lambda *a: {"cap_feats": states(*a)}, True, (64, 32), 4),
}  # fmt: skip
every = pytest.mark.parametrize("name", TINY)


def network_of(name: str) -> nn.Module:
    network, generator = TINY[name].make(), torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
        parameter.data *= 0.2 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
    return network.eval().requires_grad_(False)


def expanded(prompt: Mapping[str, Tensor], images: int) -> dict[str, Tensor]:
    return {key: value.expand(images, *value.shape[1:]) for key, value in prompt.items()}


def index_of_tokens() -> Tensor:
    """(B, h, w): two regions, others in each picture."""
    index = torch.zeros(BATCH, *GRID, dtype=torch.long)
    index[0, :, :3], index[1, 2:] = 1, 1
    return index


def exchanged(name: str, network: nn.Module, x: Tensor, levels: Tensor, index: Tensor) -> Tensor:
    """What the network should say: it is run on a copy of the pictures for each level, and before every layer each token of
    each copy is replaced by the one of the copy whose level it has; what is no token of the picture, by the noisiest copy's."""
    tiny, copies = TINY[name], len(levels)
    order = levels.argsort(descending=True)
    levels, index = levels[order], order.argsort()[index]

    def chosen(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.ndim != 3 or value.shape[0] != copies * BATCH:
            return value
        apart, length = value.view(copies, BATCH, *value.shape[1:]), value.shape[1]
        if length < TOKENS:
            return torch.cat([apart[0]] * copies)
        row = F.pad(index.flatten(1), (0, length - TOKENS) if tiny.opens else (length - TOKENS, 0))
        return torch.cat([apart[row, torch.arange(BATCH)[:, None], torch.arange(length)]] * copies)

    def before(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return tuple(map(chosen, args)), {key: chosen(value) for key, value in kwargs.items()}

    layers = [module for part, module in network.named_modules() if part]
    with hooked(layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers):
        sigma = levels.repeat_interleave(BATCH)
        output = tiny.plain(network, torch.cat([x] * copies), sigma, expanded(tiny.prompt(), copies * BATCH))
    apart = output.view(copies, BATCH, *output.shape[1:])
    row = pixels(index)[:, None]
    return torch.where(row == 0, apart[0], apart[1])


def pixels(tokens: Tensor) -> Tensor:
    return tokens.repeat_interleave(PATCH, -2).repeat_interleave(PATCH, -1)


@every
def test_a_uniform_map_is_the_network_itself(name: str) -> None:
    """Whatever the length of the empty prompt; with guidance, as pipelines reckon it."""
    tiny, network, x = TINY[name], network_of(name), random(BATCH, CHANNELS, *SIZE)
    cond, uncond = tiny.prompt(), tiny.prompt(7, 2)
    host = DiffusersTransformerHost(network, cond, uncond, 3.0)
    ours = host.denoise(x, torch.full((BATCH, 1, *SIZE), 0.6))
    with_text, without = (
        x - 0.6 * tiny.plain(network, x, torch.full((BATCH,), 0.6), expanded(prompt, BATCH)) for prompt in (cond, uncond)
    )
    torch.testing.assert_close(ours.denoised, without + 3 * (with_text - without), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.uncond, without, rtol=1e-5, atol=1e-5)
    assert (with_text - without).std() > 0.01


@every
def test_two_regions_are_the_exact_reference(name: str) -> None:
    tiny, network, x, index = TINY[name], network_of(name), random(BATCH, CHANNELS, *SIZE), index_of_tokens()
    levels = torch.tensor([0.3, 0.8])
    sigma = pixels(levels[index])[:, None]
    ours = DiffusersTransformerHost(network, tiny.prompt()).denoise(x, sigma).denoised
    expected = x - sigma * exchanged(name, network, x, levels, index)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=2e-5)
    even = DiffusersTransformerHost(network, tiny.prompt()).denoise(x, torch.full_like(sigma, 0.8)).denoised
    assert ((ours - even).abs() * (sigma == 0.8)).max() > 1e-3, "the other region is seen"
    assert not any(module._forward_pre_hooks for module in network.modules())


class Softmax(TorchFunctionMode):
    """Notes the probabilities of every attention that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key = (args[0], args[1]) if args else (kwargs["query"], kwargs["key"])
            scores = query.double() @ key.double().transpose(-2, -1) / query.shape[-1] ** 0.5
            self.seen.append(scores.softmax(dim=-1).mean(dim=1))
        return func(*args, **kwargs)


@every
def test_words_are_read_where_they_stand(name: str) -> None:
    """The mean over the read blocks, each divided by its own mean, at every second row and column of the picture."""
    tiny, network, x = TINY[name], network_of(name), random(BATCH, CHANNELS, *SIZE)
    host = DiffusersTransformerHost(network, tiny.prompt(), words=WORDS, blocks=(1, 3))
    with Softmax() as softmax:
        host.denoise(x, pixels(torch.tensor([0.3, 0.8])[index_of_tokens()])[:, None], watch=True)
    start, filled = tiny.text
    picture = 0 if tiny.opens else filled
    length = filled + (start if tiny.opens else TOKENS)
    joint = [seen for seen in softmax.seen if seen.shape[-2:] == (length, length)]
    assert len(joint) == tiny.depth
    expected = 0.0
    for seen in (joint[1], joint[3]):
        rows = seen[:, picture : picture + TOKENS]
        maps = torch.stack([rows[..., [start + n for n in word]].mean(dim=-1) for word in WORDS], dim=1)
        maps = maps.unflatten(-1, GRID)[..., ::2, ::2]
        expected = expected + maps / maps.mean(dim=(-2, -1), keepdim=True)
    seen = host.attention()
    assert seen is not None and seen.shares.shape == (BATCH, len(WORDS), *GRID)
    torch.testing.assert_close(seen.shares[..., ::2, ::2].double(), expected / 2, rtol=1e-4, atol=1e-4)


@every
def test_a_whole_run(name: str) -> None:
    """Without strength: the flow's own Euler loop. With words: another picture, and the same again from the same noise."""
    tiny, network, noise = TINY[name], network_of(name), random(1, CHANNELS, *SIZE)
    sigmas = torch.linspace(1, 0, 5)

    def run(strength: float) -> Tensor:
        asked = TimestepMap(Regions((Target("fox"), Target("red hat"))), strength=strength)
        patch = patch_of(network, CHANNELS)
        host = DiffusersTransformerHost(network, tiny.prompt(), words=WORDS)
        plan = make_plan(asked, *SIZE, patch=patch)
        return generate(
            host, make_flow_clock(sigmas), plan, (1, *SIZE), find_sampler("euler"), lambda sigma: sigma * noise,
            lambda plan: lambda a, b: noise, patch=patch,
        )  # fmt: skip

    x = noise
    for sigma, following in pairwise(sigmas):
        x = x + (following - sigma) * tiny.plain(network, x, sigma[None], tiny.prompt())
    torch.testing.assert_close(run(0.0), x, rtol=1e-5, atol=1e-5)
    assert (run(0.9) - x).abs().max() > 1e-3
    assert torch.equal(run(0.9), run(0.9))


def test_what_cannot_be_served_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear is not served: only FluxTransformer2DModel"):
        DiffusersTransformerHost(nn.Linear(2, 2), {})
    host = DiffusersTransformerHost(network_of("Flux.1"), TINY["Flux.1"].prompt())
    with pytest.raises(ValueError, match="multiples of 2"):
        host.denoise(random(1, CHANNELS, 9, 12), torch.full((1, 1, 9, 12), 0.5))


def test_attention_that_pytorch_is_not_asked_for_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    network = network_of("Qwen-Image")
    host = DiffusersTransformerHost(network, TINY["Qwen-Image"].prompt(), words=WORDS)
    module = "diffusers.models.transformers.transformer_qwenimage.dispatch_attention_fn"
    monkeypatch.setattr(module, lambda query, key, value, **_: torch.zeros_like(value))
    with pytest.raises(ValueError, match="attention backend to native"):
        host.denoise(random(1, CHANNELS, *SIZE), torch.full((1, 1, *SIZE), 0.5), watch=True)


def test_blocks_are_spread_over_a_part_of_the_depth() -> None:
    assert spread_blocks(19, 0.75, 1.0, 4) == {15, 16, 17, 18}
    assert spread_blocks(3, 0.9, 1.0, 4) == {1}
    assert spread_blocks(30, 0.5, 0.65, 4) == {15, 16, 18, 19}
