"""What AsynDM reads of the attention is the attention: compared with a softmax of q and k that another patch recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import comfy.model_management
import comfy.samplers
import pytest
import torch
from asyndm_pack.asyndm_core.regions import Regions, Target
from asyndm_pack.asyndm_core.run import Snapshot
from comfy.ldm.modules.attention import optimized_attention
from comfy_extras.nodes_custom_sampler import DualCFGGuider, Noise_RandomNoise, SamplerCustomAdvanced
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from tiny import (
    FOX_AND_HAT,
    LEFT,
    NEGATIVE,
    POSITIVE,
    WORDS,
    asyn,
    cond,
    difference,
    ksampler,
    latent,
    model,
    same,
)
from torch import Tensor

from nodes import ConditioningCombine, ConditioningSetArea, ConditioningZeroOut

BLOCKS = [("input", 1), ("input", 3), ("input", 5), ("middle", 0), *(("output", n) for n in range(6))]
SIZE = 16
CELLS = SIZE // 4
LAYERS = 4
"""Cross-attention layers of the tiny UNet at a quarter of the latent's size: input 5, middle, output 0 and 1."""

TOLERANCE = 2e-6


class Call(NamedTuple):
    """One cross-attention call: q (chunks x B, cells, C), k (chunks x B, tokens, C), heads, and each chunk's group."""

    q: Tensor
    k: Tensor
    heads: int
    groups: list[int]
    size: tuple[int, int]


def recorded(patched: Any, calls: list[Call], gain: float = 1.0) -> Any:
    """The MODEL with an attn2_replace patch, as of another pack: it gives what attention gives (times ``gain``)."""

    def patch(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        height, width = options["activations_shape"][-2:]
        calls.append(Call(q.clone(), k.clone(), options["n_heads"], list(options["cond_or_uncond"]), (height, width)))
        return gain * optimized_attention(q, k, v, options["n_heads"])

    patched = patched.clone()
    for name, number in BLOCKS:
        patched.set_model_attn2_replace(patch, name, number)
    return patched


def softmax(call: Call, chunk: int) -> Tensor:
    """Probabilities of all tokens (B, tokens, h, w) of one chunk, mean over heads; float64."""
    batch = call.q.shape[0] // len(call.groups)
    rows = slice(chunk * batch, (chunk + 1) * batch)
    q, k = (t[rows].double().unflatten(-1, (call.heads, -1)).transpose(1, 2) for t in (call.q, call.k))
    probabilities = torch.softmax(torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5, dim=-1).mean(dim=1)
    return probabilities.transpose(1, 2).unflatten(-1, call.size)


def word(probabilities: Tensor, tokens: Sequence[int]) -> Tensor:
    """The mean over the tokens of a word: (B, h, w)."""
    return torch.stack([probabilities[:, token] for token in tokens]).mean(dim=0)


def expected(calls: list[Call], group: int, positions: Sequence[Sequence[int]], side: int = CELLS) -> Tensor:
    """(B, words, h, w), mean over the layers of this size and over the conds of ``group``."""
    maps = [
        torch.stack([word(softmax(call, chunk), tokens) for tokens in positions], dim=1)
        for call in calls
        for chunk, of in enumerate(call.groups)
        if of == group and call.size == (side, side)
    ]
    assert len(maps) % LAYERS == 0 and maps
    return torch.stack(maps).mean(dim=0)


class Watch:
    """on_step: keeps what AsynDM saw and what was called, step by step."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.steps: list[tuple[Snapshot, list[Call]]] = []

    def __call__(self, snapshot: Snapshot) -> None:
        self.steps.append((snapshot, list(self.calls)))
        self.calls.clear()

    def check(self, want: Callable[[list[Call]], Tensor], steps: int) -> None:
        """Every step's attention is what ``want`` makes of its calls."""
        assert len(self.steps) == steps
        for snapshot, calls in self.steps:
            explicit = want(calls)
            assert explicit.std() > 1e-4
            assert snapshot.attention.shares.shape == explicit.shape
            assert (snapshot.attention.shares - explicit).abs().max() < TOLERANCE


def watched(watch: Watch, steps: int = 2, regions: Regions = FOX_AND_HAT, patched: Any = None, **options: Any) -> Tensor:
    patched = asyn(recorded(model() if patched is None else patched, watch.calls), regions, watch)
    options.setdefault("image", latent(SIZE, SIZE))
    return ksampler(patched, scheduler="simple", steps=steps, **options)


POSITIONS = list(WORDS.values())


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_it_is_the_softmax(batch: int) -> None:
    """Also in the middle of a run, where pixels are at different sigmas."""
    watch = Watch()
    watched(watch, steps=4 if batch == 2 else 1, image=latent(SIZE, SIZE, batch))
    watch.check(lambda calls: expected(calls, 0, POSITIONS), steps=4 if batch == 2 else 1)
    if batch == 2:
        assert any(snapshot.sigma.unique().numel() > 1 for snapshot, _ in watch.steps)


def test_odd_size() -> None:
    watch = Watch()
    watched(watch, image=latent(17, 17))
    watch.check(lambda calls: expected(calls, 0, POSITIONS, side=5), steps=2)


def test_cfg_1() -> None:
    watch = Watch()
    watched(watch, cfg=1.0)
    assert all(call.groups == [0] for _, calls in watch.steps for call in calls)
    watch.check(lambda calls: expected(calls, 0, POSITIONS), steps=2)


@pytest.mark.parametrize("mode", ["asynchronous", "synchronous"])
def test_two_evaluations_a_step(mode: str) -> None:
    """A step's attention is its first evaluation's, in our loop and in ComfyUI's own."""
    watch = Watch()
    ksampler(asyn(recorded(model(), watch.calls), on_step=watch, mode=mode), "heun", "simple", 3, image=latent(SIZE, SIZE))
    assert [len(calls) for _, calls in watch.steps] == [len(BLOCKS), 2 * len(BLOCKS), 2 * len(BLOCKS)]
    watch.check(lambda calls: expected(calls[-len(BLOCKS) :], 0, POSITIONS), steps=3)


@pytest.mark.parametrize("batch", [1, 3])
def test_little_memory(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cond per call of the model."""
    image = latent(SIZE, SIZE, batch)
    together, watch = Watch(), Watch()
    watched(together, image=image)

    def none_free(device: Any = None, torch_free_too: bool = False) -> Any:
        return (0, 0) if torch_free_too else 0

    monkeypatch.setattr(comfy.model_management, "get_free_memory", none_free)
    watched(watch, image=image)
    assert {len(call.groups) for _, calls in together.steps for call in calls} == {2}
    assert {len(call.groups) for _, calls in watch.steps for call in calls} == {1}
    watch.check(lambda calls: expected(calls, 0, POSITIONS), steps=2)


def test_combined_prompts() -> None:
    """Each prompt has its own positions; a word is the mean over the prompts that have it."""
    watch = Watch()
    second = cond(3, words={"fox": (9, 20)})
    watched(watch, positive=ConditioningCombine().combine(POSITIVE, second)[0])

    alone = Watch()
    watched(alone, steps=1, cfg=1.0)
    keys_of_first = [call.k[0] for call in alone.steps[0][1] if call.size == (CELLS, CELLS)]

    def want(calls: list[Call]) -> Tensor:
        maps = []
        at_level = [call for call in calls if call.size == (CELLS, CELLS)]
        for call, keys in zip(at_level, keys_of_first, strict=True):
            chunks = [chunk for chunk, group in enumerate(call.groups) if group == 0]
            chunks.sort(key=lambda chunk: float((call.k[chunk] - keys).abs().max()))
            first, second = (softmax(call, chunk) for chunk in chunks)
            maps.append(torch.stack([(word(first, (3,)) + word(second, (9, 20))) / 2, word(first, (5, 6))], dim=1))
        return torch.stack(maps).mean(dim=0)

    watch.check(want, steps=2)


def test_same_words_in_two_prompts() -> None:
    watch = Watch()
    watched(watch, positive=ConditioningCombine().combine(POSITIVE, cond(3, words=WORDS))[0])
    watch.check(lambda calls: expected(calls, 0, POSITIONS), steps=2)
    assert all(len(call.groups) == 3 for _, calls in watch.steps for call in calls)


def test_area() -> None:
    """A prompt for a part of the picture is seen, and weighed, in that part. (ComfyUI copies its dict into the negative's
    list.)"""
    watch = Watch()
    positive = ConditioningSetArea().append(POSITIVE, 8 * 8, 8 * 12, 8 * 8, 8 * 4, 1.0)[0]  # width, height, x, y
    watched(watch, positive=positive)

    def want(calls: list[Call]) -> Tensor:
        maps = [
            torch.stack([word(softmax(call, chunk), tokens) for tokens in POSITIONS], dim=1)
            for call in calls
            for chunk, group in enumerate(call.groups)
            if group == 0 and call.size == (3, 2)
        ]
        assert len(maps) == LAYERS
        whole = torch.zeros(1, 2, SIZE, SIZE, dtype=torch.float64)
        seen = torch.stack(maps).mean(dim=0)
        whole[..., 4:, 8:] = torch.nn.functional.interpolate(seen, size=(12, 8), mode="bilinear")
        return whole

    watch.check(want, steps=2)
    rows, columns = torch.zeros(SIZE), torch.zeros(SIZE)
    rows[4:], columns[8:] = torch.tensor([1, 2, *[3] * 10]) / 3, torch.tensor([1, 2, *[2] * 6]) / 2
    for snapshot, _ in watch.steps:  # ComfyUI fades an area towards the rest of the picture, over a quarter of its sides
        torch.testing.assert_close(snapshot.attention.weight, (rows[:, None] * columns).expand(1, 2, -1, -1))


def test_longer_prompt() -> None:
    """154 tokens against 77 of the negative: words of the second chunk are found."""
    watch = Watch()
    positions = {"fox": (100,), "hat": (5, 80)}
    watched(watch, positive=cond(4, tokens=154, words=positions))
    watch.check(lambda calls: expected(calls, 0, list(positions.values())), steps=2)


def test_shorter_prompt() -> None:
    """77 tokens against 154 (and 231) of the negative: ComfyUI repeats the prompt, its words' mass is in all copies."""
    for copies in (2, 3):
        watch = Watch()
        watched(watch, steps=1, negative=cond(5, tokens=77 * copies))

        def want(calls: list[Call], copies: int = copies) -> Tensor:
            assert all(call.k.shape[1] == 77 * copies for call in calls)
            shifted = [[[p + 77 * copy for p in tokens] for tokens in POSITIONS] for copy in range(copies)]
            return torch.stack([expected(calls, 0, positions) for positions in shifted]).sum(dim=0)

        watch.check(want, steps=1)


def test_annotated_negative_is_not_counted() -> None:
    watch = Watch()
    watched(watch, negative=ConditioningZeroOut().zero_out(POSITIVE)[0])
    watch.check(lambda calls: expected(calls, 0, POSITIONS), steps=2)


def test_further_calls_are_not_counted() -> None:
    """ComfyUI's perturbed-attention guidance evaluates the positive once more in every step."""
    watch = Watch()
    watched(watch, patched=PerturbedAttentionGuidance.execute(model(), 3.0).result[0])

    def want(calls: list[Call]) -> Tensor:
        guided = [call for call in calls if len(call.groups) == 2]
        assert len(calls) == 2 * len(guided) == 2 * len(BLOCKS)
        return expected(guided, 0, POSITIONS)

    watch.check(want, steps=2)


def test_only_the_first_evaluation_of_a_step_counts() -> None:
    watch = Watch()
    watched(watch, sampler="heun")
    watch.calls.clear()
    first, second = watch.steps[0][1], watch.steps[1][1]
    assert len(first) == len(BLOCKS) and len(second) == 2 * len(BLOCKS)
    assert (watch.steps[1][0].attention.shares - expected(second[len(BLOCKS) :], 0, POSITIONS)).abs().max() < TOLERANCE


@pytest.mark.parametrize("style", ["regular", "nested"])
def test_dual_cfg(style: str) -> None:
    """Here the positive is the third group."""
    watch = Watch()
    patched = asyn(recorded(model(), watch.calls), on_step=watch)
    guider = DualCFGGuider.execute(patched, POSITIVE, cond(3), NEGATIVE, 5.0, 3.0, style).result[0]
    sigmas = comfy.samplers.calculate_sigmas(patched.get_model_object("model_sampling"), "simple", 2)
    euler = comfy.samplers.sampler_object("euler")
    SamplerCustomAdvanced.execute(Noise_RandomNoise(7), guider, euler, sigmas, latent(SIZE, SIZE))
    watch.check(lambda calls: expected(calls, 2, POSITIONS), steps=2)


# --- looking changes nothing -----------------------------------------------------------------------------------------


def test_looking_leaves_the_stock_picture_as_it_is() -> None:
    snapshots: list[Snapshot] = []
    stock = ksampler(model(), image=latent(SIZE, SIZE))
    seen = ksampler(asyn(model(), on_step=snapshots.append, mode="synchronous"), image=latent(SIZE, SIZE))
    assert same(seen, stock)
    assert len(snapshots) == 4 and all(s.attention.shares.shape == (1, 2, CELLS, CELLS) for s in snapshots)


def test_looking_leaves_the_asynchronous_picture_as_it_is() -> None:
    """A word whose threshold every pixel passes, limited to a mask, against that mask alone: once looked at, once not."""
    snapshots: list[Snapshot] = []
    seen = asyn(model(), Regions((Target("fox"),), threshold=0.0, mask=LEFT), snapshots.append)
    unseen = asyn(model(), Regions((), mask=LEFT, mask_mode="replace"))
    assert same(ksampler(seen), ksampler(unseen))
    assert all(s.attention is not None for s in snapshots)
    assert any(s.sigma.unique().numel() > 1 for s in snapshots)


# --- patches of other packs ------------------------------------------------------------------------------------------


def test_a_replaced_attention_keeps_its_calls_and_its_effect() -> None:
    image = latent(SIZE, SIZE)
    calls: list[Call] = []
    replaced = recorded(model(), calls, gain=0.5)
    stock = ksampler(replaced, image=image)
    stock_calls = len(calls)
    assert stock_calls == 4 * len(BLOCKS)
    assert difference(stock, ksampler(model(), image=image)) > 1e-3
    calls.clear()
    assert same(ksampler(asyn(replaced, mode="synchronous", on_step=lambda s: None), image=image), stock)
    assert len(calls) == stock_calls
    calls.clear()
    lagging = ksampler(asyn(replaced), image=image)
    assert len(calls) == stock_calls
    assert difference(lagging, ksampler(asyn(model()), image=image)) > 1e-3


def test_a_patched_attention_keeps_its_calls_and_its_effect() -> None:
    """An attn2_patch that changes the context: the attention that is read is that of the changed one."""
    image = latent(SIZE, SIZE)
    called: list[int] = []

    def patch(n: Tensor, context: Tensor, value: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
        called.append(1)
        return n, 0.5 * context, value

    patched = model().clone()
    patched.set_model_attn2_patch(patch)
    stock = ksampler(patched, image=image)
    assert len(called) == 4 * len(BLOCKS)
    assert difference(stock, ksampler(model(), image=image)) > 1e-3
    called.clear()
    assert same(ksampler(asyn(patched, mode="synchronous", on_step=lambda s: None), image=image), stock)
    assert len(called) == 4 * len(BLOCKS)
    called.clear()
    watch = Watch()
    watched(watch, patched=patched)
    assert len(called) == 2 * len(BLOCKS)
    watch.check(lambda calls: expected(calls, 0, POSITIONS), steps=2)


def test_a_patch_that_appends_tokens() -> None:
    """Tokens that another pack appends to the context (an image prompt) are nobody's word."""
    extra = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(9))

    def patch(n: Tensor, context: Tensor, value: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
        longer = torch.cat([context, extra.expand(context.shape[0], -1, -1)], dim=1)
        return n, longer, longer

    patched = model().clone()
    patched.set_model_attn2_patch(patch)
    watch = Watch()
    watched(watch, patched=patched)
    assert all(call.k.shape[1] == 81 for _, calls in watch.steps for call in calls)
    watch.check(lambda calls: expected(calls, 0, POSITIONS), steps=2)
