"""Diffusion transformers of every family: a timestep for every token, exactly.

Three oracles that know nothing of how a timestep gets to its tokens: stock ComfyUI; with attention that lets nothing
through, every part of a picture is what it would be at its own noise level everywhere; and with attention, the network run
on one copy of the picture for each noise level, whose tokens are exchanged before every layer (see ``exchanged``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from asyndm_pack.asyndm_core.embedding import PixelTimesteps
from asyndm_pack.asyndm_core.grid import TokenGrid
from asyndm_pack.asyndm_core.regions import Regions, Target
from asyndm_pack.asyndm_core.timestep_rows import TimestepRows
from asyndm_pack.nodes.comfy.network import network_of
from families import FAMILIES, empty, prompt, transformer
from tiny import asyn, difference, hooks_of, ksampler, painted, plain, same
from torch import Tensor, nn

TOLERANCE = 1e-5
NO_STRENGTH = Regions((Target("fox", 0.0),), mask=torch.ones(1, 8, 8), mask_mode="replace")
NAMES = [pytest.param(name, marks=[pytest.mark.whole] if tiny.whole else []) for name, tiny in FAMILIES.items()]
every_family = pytest.mark.parametrize("name", NAMES)


def left(height: int, width: int, columns: int | None = None) -> Tensor:
    """A painted mask: the left half, or so many columns of latent pixels."""
    mask = torch.zeros(1, height, width)
    mask[..., : columns or width // 2] = 1
    return mask


def sampled(name: str, patched: Any, batch: int = 1, size: tuple[int, int] | None = None, **more: Any) -> Tensor:
    """A short run of the stock KSampler."""
    more = {"steps": 4, "cfg": 3.0, "scheduler": "simple", **more}
    return ksampler(patched, positive=prompt(name), negative=prompt(name, 6), image=empty(name, batch, size), **more)


class Call(NamedTuple):
    """One evaluation of a network."""

    args: tuple
    kwargs: dict[str, Any]
    output: Tensor

    @property
    def rows(self) -> TimestepRows:
        return self.args[1]


@contextmanager
def calls_of(patched: Any) -> Iterator[list[Call]]:
    """The evaluations of a model's network while it lasts; of their inputs a copy."""
    calls: list[Call] = []

    def note(module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        kept = [arg.clone() if isinstance(arg, Tensor) and not isinstance(arg, TimestepRows) else arg for arg in args]
        calls.append(Call(tuple(kept), dict(kwargs), output))

    handle = patched.model.diffusion_model.register_forward_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def nothing_attended(patched: Any) -> Any:
    """The MODEL with attention that lets nothing through: every token is alone."""
    silent = patched.clone()

    def silence(function: Callable, *args: Any, **kwargs: Any) -> Tensor:
        return torch.zeros_like(function(*args, **kwargs))

    silent.model_options["transformer_options"]["optimized_attention_override"] = silence
    return silent


def exchanged(network: nn.Module, call: Call) -> Tensor:
    """What the network should have said: it is run on a copy of the pictures for each timestep, and before every layer each
    token of each copy is replaced by the one of the copy whose timestep it has; what is no token of the picture, by the
    reference's."""
    places, timesteps = call.rows.places, call.rows.every
    copies, batch, tokens = timesteps.shape[0], timesteps.shape[1], places.tokens
    context = call.kwargs.get("context", call.args[2] if len(call.args) > 2 else None)
    texts = {context.shape[1]} - {tokens} if context is not None else set()
    own = places.places.flatten(1).expand(batch, -1)
    picture = torch.arange(batch)[:, None]

    def copied(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim and value.shape[0] == batch:
            return torch.cat([value] * copies)
        return [copied(each) for each in value] if isinstance(value, list) else value

    def chosen(value: Tensor, rows: Tensor) -> Tensor:
        """Of (copies, B, L, ...) each token's own copy, in all of them."""
        one = value[rows.expand(batch, -1), picture, torch.arange(value.shape[2])]
        return torch.cat([one] * copies)

    def exchange(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2:
            return value
        shape = value.shape
        if shape[0] == copies * batch * tokens:  # a network of pixels has each token in its batch
            return chosen(value.view(copies, batch, tokens, -1), own).view(shape)
        if shape[0] != copies * batch:
            return value
        apart = value.view(copies, batch, *shape[1:])
        if value.ndim == 3 and shape[1] > 16:
            if shape[1] < tokens or shape[1] in texts:
                return torch.cat([apart[0]] * copies)
            return chosen(apart, places.sequence(shape[1]))
        if value.ndim == 5 and shape[1] == 1 and tuple(shape[2:4]) == places.grid:
            return chosen(apart.flatten(2, 4), own).view(shape)
        return value

    def before(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return tuple(map(exchange, args)), {key: exchange(value) for key, value in kwargs.items()}

    layers = [module for name, module in network.named_modules() if name and "distilled_guidance" not in name]
    handles = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    options = {key: value for key, value in call.kwargs["transformer_options"].items() if key in KEPT}
    kwargs = {key: copied(value) for key, value in call.kwargs.items()} | {"transformer_options": options}
    try:
        output = network(copied(call.args[0]), timesteps.flatten(), *map(copied, call.args[2:]), **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    rows = places.pixels[..., : output.shape[-1]].expand(batch, *places.pixels.shape[1:])
    apart = output.view(copies, batch, *output.shape[1:])
    answer = torch.zeros_like(apart[0])
    for copy in range(copies):
        here = (rows == copy).view(batch, *[1] * (output.ndim - 3), *rows.shape[1:])
        answer = torch.where(here, apart[copy], answer)
    return answer


KEPT = ("sample_sigmas", "sigmas", "prefetch_dynamic_vbars", "rope_options", "optimized_attention_override")


@every_family
def test_what_asks_for_nothing_is_stock(name: str) -> None:
    patched = transformer(name)
    stock = sampled(name, patched)
    assert same(sampled(name, asyn(patched, NO_STRENGTH, strength=0.0)), stock)
    assert difference(sampled(name, plain(patched, NO_STRENGTH, strength=0.0)), stock) < TOLERANCE
    assert same(sampled(name, patched), stock)
    assert not hooks_of(patched.model.diffusion_model)


@every_family
def test_alone_every_token_is_at_its_own_timestep(name: str) -> None:
    """Without attention, the pixels of the left half are those of a run where all lag, those of the right keep pace."""
    patched = nothing_attended(transformer(name))
    _, height, width = FAMILIES[name].latents
    region = painted(left(height, width))
    stock = sampled(name, patched)
    lagging = sampled(name, asyn(patched, region, mode="concave"))
    ours = sampled(name, asyn(patched, region))
    assert difference(lagging, stock) > 1e-3
    middle = width // 2
    assert difference(ours[..., middle:], stock[..., middle:]) < TOLERANCE
    assert difference(ours[..., :middle], lagging[..., :middle]) < TOLERANCE


@every_family
def test_two_regions_are_exact(name: str) -> None:
    """Every evaluation of a run with a map, for a batch of which each picture has its own; positive and negative at once."""
    patched = transformer(name)
    _, height, width = FAMILIES[name].latents
    region = painted(left(height, width), 1 - left(height, width))
    with calls_of(patched) as calls:
        sampled(name, asyn(patched, region), batch=2)
    mapped = [call for call in calls if isinstance(call.args[1], TimestepRows)]
    assert len(mapped) >= 1
    network = patched.model.diffusion_model
    for call in mapped:
        assert type(call.output) is Tensor
        assert difference(call.output, exchanged(network, call)) < TOLERANCE


@every_family
def test_a_uniform_map_given_as_rows_is_stock(name: str) -> None:
    """An evaluation of a stock run, once more with a map of three noise levels that are all its own."""
    patched = transformer(name)
    with calls_of(patched) as calls:
        sampled(name, patched, batch=2, steps=2)
    call, model = calls[0], patched.model
    kind = network_of(model, empty(name)["samples"])
    height, width = call.args[0].shape[-2:]
    index = TokenGrid((height, width), kind.patch).to_pixels(
        torch.randint(0, 3, (call.args[0].shape[0], height, width), generator=torch.Generator().manual_seed(2))
    )[..., :height, :width]
    level = call.kwargs["transformer_options"]["sigmas"][:1]
    with kind.told(model, PixelTimesteps(level.expand(3), index), index, dict(call.kwargs)):
        rows = model.process_timestep(model.model_sampling.timestep(level).float(), x=call.args[0], **call.kwargs)
        output = model.diffusion_model(call.args[0], rows, *call.args[2:], **call.kwargs)
    assert rows.every.unique().numel() == 1
    assert difference(output, call.output) < TOLERANCE
