"""Clips, latents (B, C, T, H, W): frame by frame what pictures are, masks that move, and what is between frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from fake_device import DEVICE, fake_device
from torch import Tensor, nn

from asyndm_core import transfer
from asyndm_core.attention import Attention, AttentionSum, BlockMean, Sequences, enlarged, nothing_seen
from asyndm_core.clock import Clock, NoiseGrid, table_clock
from asyndm_core.crowding import ahead
from asyndm_core.embedding import Groups, grouped
from asyndm_core.grid import TokenGrid
from asyndm_core.live import LARGEST, Live, maps_of
from asyndm_core.pictures import palette, shown, timeline
from asyndm_core.record import RunRecord, stretched
from asyndm_core.regions import (
    Plan,
    Region,
    Regions,
    Target,
    TimestepMap,
    feather,
    fit_frames,
    fit_mask,
    grow,
    held,
    make_plan,
    weights,
)
from asyndm_core.run import Snapshot, generate
from asyndm_core.samplers import SAMPLERS, NoiseLaw, Prediction, find_sampler

CPU = torch.device("cpu")
FRAMES, HEIGHT, WIDTH = 5, 8, 12
SHAPE = (2, FRAMES, HEIGHT, WIDTH)
NOISE = torch.randn(2, 4, FRAMES, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
PAINTED = Regions(mask=torch.cat([torch.ones(1, 8, 6), torch.zeros(1, 8, 6)], dim=-1), mask_mode="replace")
WORD = Regions((Target("fox"),))


def random(*shape: int, seed: int = 2) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


class FrameHost:
    """A model that sees each frame alone, of pictures and of clips: blurred in it, and told the noise of every pixel.

    seen: what it sees of the word, (B, 1, *size).
    """

    law = NoiseLaw(flow=True)

    def __init__(self, seen: Tensor | None = None) -> None:
        self.seen, self.network = seen, nn.Identity()

    def denoise(
        self, x: Tensor, sigma: Tensor, reference: Tensor | None = None, watch: bool = False, groups: Groups | None = None
    ) -> Prediction:
        denoised = blurred(self.network(x) / (1 + sigma)) - 0.1 * sigma.sin()
        return Prediction(denoised, 0.9 * denoised + 0.1 * x)

    def attention(self) -> Attention | None:
        if self.seen is None:
            return None
        return Attention(self.seen, self.seen.new_ones(1, 1, *[1] * (self.seen.ndim - 2)))

    def acts(self, reference: Tensor) -> Tensor | None:
        return None


def blurred(x: Tensor) -> Tensor:
    """The mean with the pixel to the left, in each frame."""
    return (x + x.roll(1, -1)) / 2


@pytest.fixture
def clock() -> Clock:
    sigmas = torch.cat([torch.linspace(1, 0.15, 8), torch.zeros(1)])
    return table_clock(sigmas, 1000 * sigmas - 1, NoiseGrid(torch.arange(1, 1001) / 1000))


def run(
    clock: Clock, plan: Plan, noise: Tensor, sampler: str = "euler", host: FrameHost | None = None, **more: object
) -> Tensor:
    """Unit noise, sampled. Noise that is drawn is the starting noise of the next frames, the same for pictures and clips."""
    draws = iter([noise.roll(by, 1) for by in range(1, 40)])
    return generate(
        host or FrameHost(), clock, plan, (noise.shape[0], *noise.shape[2:]), find_sampler(sampler),
        lambda sigma: sigma * noise, lambda plan: lambda *_: next(draws), **more,
    )  # fmt: skip


def of_frames(latents: Tensor) -> Tensor:
    """The frames of clips as a batch of pictures: (B, C, T, H, W) -> (B T, C, H, W)."""
    return latents.transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_clip_is_its_frames(clock: Clock, sampler: str) -> None:
    """With a still mask, and a model that sees each frame alone, a clip is so many pictures, with every sampler."""
    asked = TimestepMap(PAINTED, strength=0.8)
    clip = run(clock, make_plan(asked, *SHAPE[1:]), NOISE, sampler)
    pictures = run(clock, make_plan(asked, HEIGHT, WIDTH), of_frames(NOISE), sampler)
    assert clip.shape == NOISE.shape and not torch.equal(clip, run(clock, Plan(), NOISE, sampler))
    torch.testing.assert_close(of_frames(clip), pictures, rtol=1e-6, atol=1e-6)


def test_the_integrals_of_many_pixels_in_pieces(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(TimestepMap(PAINTED, strength=0.8), *SHAPE[1:])
    whole = run(clock, plan, NOISE, "er_sde")
    monkeypatch.setattr("asyndm_core.samplers.AT_ONCE", 7)
    assert torch.equal(run(clock, plan, NOISE, "er_sde"), whole)


@pytest.mark.parametrize("changes", [{"known_pixels": "clean"}, {"known_pixels": "ahead"}, {"background_denoise": 0.4}])
def test_known_pixels_and_denoise_of_a_clip_are_those_of_its_frames(clock: Clock, changes: dict) -> None:
    """An inpainting mask that moves."""
    asked, drawn = TimestepMap(PAINTED, strength=0.8, **changes), random(*SHAPE).round()
    share = None if "background_denoise" in changes else drawn
    clip = run(clock, make_plan(asked, *SHAPE[1:]), NOISE, drawn=share)
    share = None if share is None else share.flatten(0, 1)
    pictures = run(clock, make_plan(asked, HEIGHT, WIDTH), of_frames(NOISE), drawn=share)
    torch.testing.assert_close(of_frames(clip), pictures, rtol=1e-6, atol=1e-6)


def test_a_mask_that_moves_is_a_mask_for_each_frame(clock: Clock) -> None:
    masks = torch.stack([PAINTED.mask[0].roll(frame, -1) for frame in range(FRAMES)])
    asked = TimestepMap(replace(PAINTED, mask=masks), strength=0.8)
    clip = run(clock, make_plan(asked, *SHAPE[1:]), NOISE)
    for frame in range(FRAMES):
        alone = TimestepMap(replace(PAINTED, mask=masks[frame]), strength=0.8)
        picture = run(clock, make_plan(alone, HEIGHT, WIDTH), NOISE[:, :, frame])
        torch.testing.assert_close(clip[:, :, frame], picture, rtol=1e-6, atol=1e-6)


def test_every_clip_of_a_batch_is_its_own_run(clock: Clock) -> None:
    """Words are where they are seen in each."""
    seen = random(2, 1, FRAMES, HEIGHT, WIDTH)
    plan = make_plan(TimestepMap(WORD), *SHAPE[1:])
    both = run(clock, plan, NOISE, host=FrameHost(seen))
    for item in range(2):
        alone = run(clock, plan, NOISE[item : item + 1], host=FrameHost(seen[item : item + 1]))
        assert torch.equal(both[item : item + 1], alone)


def test_the_tokens_of_a_clip_move_as_one(clock: Clock) -> None:
    """Of 2 x 2 x 4 latent pixels; the last frame has a token of its own."""
    states: list[Snapshot] = []
    plan = make_plan(TimestepMap(PAINTED), *SHAPE[1:], patch=(2, 2, 4))
    run(clock, plan, NOISE, patch=(2, 2, 4), on_step=states.append)
    sigma = states[4].sigma[:, 0]
    assert sigma.shape == SHAPE and sigma.unique().numel() > 1
    assert torch.equal(TokenGrid(SHAPE[1:], (2, 2, 4)).to_pixels(sigma[:, ::2, ::2, ::4]), sigma)


# --- token grids ------------------------------------------------------------------------------------------------------


def test_a_grid_of_tokens_in_frames() -> None:
    grid = TokenGrid((5, 8, 6), (2, 2, 3))
    assert grid.shape == (3, 4, 2)
    maps = random(2, 5, 8, 6)
    frames = [maps[:, :2], maps[:, 2:4], maps[:, 4:]]
    for pooled, reduce in ((grid.mean(maps), torch.mean), (grid.most(maps), torch.amax)):
        wanted = torch.stack([reduce(part.unflatten(3, (2, 3)).unflatten(2, (4, 2)), dim=(1, 3, 5)) for part in frames], dim=1)
        torch.testing.assert_close(pooled, wanted)
    assert torch.equal(grid.most(grid.to_pixels(pooled)), pooled)


def test_a_patch_of_pictures_leaves_frames_alone() -> None:
    assert TokenGrid((5, 8, 6), (2, 2)).shape == (5, 4, 3)
    assert TokenGrid((5, 8, 6)).shape == (5, 8, 6) and TokenGrid((8, 6)).shape == (8, 6)


def test_groups_of_a_clip_are_its_values() -> None:
    level = (4 * random(*SHAPE)).round()
    groups = grouped(level)
    pixels = groups.of(level)
    assert groups.count == level.unique().numel() and torch.equal(pixels.values[pixels.index], level)


# --- masks ------------------------------------------------------------------------------------------------------------


def test_one_mask_is_for_all_frames() -> None:
    for mask in (PAINTED.mask, PAINTED.mask[0]):
        assert torch.equal(fit_mask(mask, *SHAPE[1:]), fit_mask(mask, HEIGHT, WIDTH).expand(FRAMES, -1, -1)[None])


def test_latent_frames_are_the_mean_of_their_frames() -> None:
    """81 frames of a clip are 1 + 20 x 4: the first is apart."""
    masks = torch.arange(81.0)[:, None, None].expand(81, 2, 3) / 81
    wanted = torch.cat([torch.zeros(1), torch.arange(20) * 4 + 2.5]) / 81
    torch.testing.assert_close(fit_frames(masks, 21)[:, 1, 2], wanted)
    assert torch.equal(fit_frames(masks, 81), masks)


def test_other_numbers_of_masks_are_spread_over_the_clip() -> None:
    masks = torch.tensor([0.0, 1.0])[:, None, None].expand(2, 2, 3)
    as_comfyui = torch.nn.functional.interpolate(masks[None, None], (7, 2, 3), mode="trilinear")[0, 0]
    torch.testing.assert_close(fit_frames(masks, 7), as_comfyui)
    many = random(12, 2, 3)
    torch.testing.assert_close(fit_frames(many, 5), torch.nn.functional.adaptive_avg_pool3d(many[None], (5, 2, 3))[0])
    torch.testing.assert_close(fit_frames(many, 1), many.mean(dim=0, keepdim=True))


# --- words ------------------------------------------------------------------------------------------------------------


def test_a_word_owns_nothing_in_frames_where_it_is_absent() -> None:
    """Its map is compared with the mean of the clip: faint traces in a frame are not enough."""
    attention = torch.zeros(1, 1, FRAMES, HEIGHT, WIDTH)
    attention[..., 1, 2:5, 3:6] = 1.0
    attention += 1e-3 * random(*attention.shape)
    plan = Plan((Region("fox", "quadratic", 0.7, word="fox"),))
    found = weights(plan, Attention(attention, torch.ones(1, 1, 1, 1, 1)), (1, FRAMES, HEIGHT, WIDTH), CPU)[0, 0]
    assert found[1, 2:5, 3:6].all() and found.sum() == 9


def test_attention_is_enlarged_in_each_frame() -> None:
    maps = random(2, 3, FRAMES, 4, 6)
    wanted = torch.stack([enlarged(maps[:, :, frame], (HEIGHT, WIDTH)) for frame in range(FRAMES)], dim=2)
    torch.testing.assert_close(enlarged(maps, (FRAMES, HEIGHT, WIDTH)), wanted)


def test_words_are_read_in_every_frame() -> None:
    """Of a clip's sequence, frame by frame, every second row and column; the rest is between."""
    grid, text = (3, 5, 6), 4
    count = 3 * 5 * 6
    query, key = random(1, 2, count + text, 8, seed=3), random(1, 2, count + text, 8, seed=4)
    columns = torch.zeros(count + text, 1)
    columns[count + 1] = 1
    whole = torch.softmax(query @ key.mT / 8**0.5, dim=-1)[..., :count, count + 1].mean(1).view(1, 1, *grid)
    read = BlockMean(columns, Sequences(count + text, count + text, 0, grid))
    read.add(query, key)
    seen = read.mean()
    assert seen.shape == (1, 1, *grid)
    torch.testing.assert_close(seen[..., ::2, ::2], (whole[..., ::2, ::2] / whole[..., ::2, ::2].mean()))
    torch.testing.assert_close(seen[..., 1, ::2], (seen[..., 0, ::2] + seen[..., 2, ::2]) / 2)


def test_a_mean_of_clips_weighs_every_place() -> None:
    total = AttentionSum()
    for value, weight in ((1.0, 1.0), (4.0, 0.5)):
        total.add(Attention(torch.full((1, 1, 2, 3, 4), value), torch.full((1, 1, 1, 1, 1), weight)))
    torch.testing.assert_close(total.mean().shares, torch.full((1, 1, 2, 3, 4), 2.0))


def test_no_word_in_force_owns_nothing_of_a_clip() -> None:
    plan = Plan((Region("fox", "quadratic", 0.7, word="fox"),))
    assert not weights(plan, nothing_seen(1, 3, CPU), (2, FRAMES, HEIGHT, WIDTH), CPU).any()


# --- within frames and between ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [lambda w: grow(w, 2), lambda w: grow(w, -1), lambda w: feather(w, 3.0)])
def test_regions_grow_and_fade_within_frames(change: Callable[[Tensor], Tensor]) -> None:
    region = random(2, FRAMES, HEIGHT, WIDTH).round()
    wanted = torch.stack([change(region[:, frame]) for frame in range(FRAMES)], dim=1)
    assert torch.equal(change(region), wanted)


def test_a_region_is_held_and_fades_over_frames() -> None:
    region = torch.zeros(1, 9, 1, 2)
    region[0, 4, 0, 0] = 1.0
    assert held(region, 2, 0)[0, :, 0, 0].tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0]
    assert held(region, 1, 1)[0, :, 0, 0].tolist() == [0, 0, 0.5, 1, 1, 1, 0.5, 0, 0]
    torch.testing.assert_close(held(region, 0, 3)[0, :, 0, 0], torch.tensor([0, 1, 2, 3, 4, 3, 2, 1, 0]) / 4)
    assert held(region, 64, 0)[0, :, 0, 0].all() and not held(region, 64, 64)[0, :, 0, 1].any()
    assert held(region, 0, 0) is region
    region[0, 5, 0, 0] = 0.5
    assert held(region, 1, 1)[0, :, 0, 0].tolist() == [0, 0, 0.5, 1, 1, 1, 0.5, 0.25, 0]


def test_hold_and_fade_are_of_words_in_clips() -> None:
    """In tokens, at least one; pictures have no frames to hold them in."""
    asked = replace(WORD, hold=3, fade=1)
    (region,) = make_plan(TimestepMap(asked), *SHAPE[1:], patch=(2, 2, 2)).regions
    assert (region.hold, region.fade, region.soft) == (2, 1, True)
    (region,) = make_plan(TimestepMap(asked), HEIGHT, WIDTH).regions
    assert (region.hold, region.fade, region.soft) == (0, 0, False)
    with pytest.raises(ValueError, match="hold of Cross-Attention Mask is 65"):
        replace(WORD, hold=65)
    attention = torch.zeros(1, 1, FRAMES, HEIGHT, WIDTH)
    attention[..., 0, 2, 3] = 1.0
    plan = make_plan(TimestepMap(asked), *SHAPE[1:])
    found = weights(plan, Attention(attention, torch.ones(1, 1, 1, 1, 1)), (1, *SHAPE[1:]), CPU)[0, 0]
    assert found[:, 2, 3].tolist() == [1, 1, 1, 1, 0.5] and found.sum() == 4.5


# --- what is shown ------------------------------------------------------------------------------------------------------


def snapshot(progress: float = 0.0) -> Snapshot:
    owner = torch.full(SHAPE, -1)
    owner[:, 1, :, 4:] = 0
    seen = Attention(random(2, 1, *SHAPE[1:]), torch.ones(1, 1, 1, 1, 1))
    return Snapshot(1, NOISE, NOISE, None, torch.full(SHAPE, progress), owner, seen)


def test_some_frames_of_a_clip_are_shown_row_by_row() -> None:
    frames = torch.arange(7.0)[:, None, None].expand(7, 2, 3)
    sheet = shown(frames, 3)
    assert sheet.shape == (4, 6) and sheet[::2, ::3].tolist() == [[0, 2], [4, 6]]
    assert shown(frames[:3], 3).shape == (2, 9)
    assert shown(frames, 2) is frames


def test_the_live_view_of_a_clip_has_the_same_maps() -> None:
    maps = maps_of(snapshot(), 8, lambda latents: latents[:3].movedim(0, -1).sigmoid())
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        "image": (16, 24, 3), "owner": (16, 24), "progress": (16, 24), "heat": (1, 16, 24),
    }  # fmt: skip
    assert maps["owner"].unique().tolist() == [0, 1] and maps["heat"].max() == 255
    wide = snapshot()._replace(**{name: torch.zeros(1, 9, 2, 300).long() for name in ("progress", "owner")})
    assert max(maps_of(wide._replace(attention=None), 8, None)["owner"].shape) <= 2 * LARGEST


def test_the_record_of_a_clip() -> None:
    """Only of the frames that are shown."""
    record = RunRecord(2, previews=True)
    record(snapshot()._replace(step=0))
    record(snapshot(1.0))
    assert {frame.denoised.shape for frame in record.frames()} == {(2, 4, 4, HEIGHT, WIDTH)}
    assert torch.equal(shown(record.frames()[0].owner[0], 3), shown(snapshot().owner[0], 3))
    masks = record.masks(*SHAPE[1:])
    assert masks.shape == (2, 1, *SHAPE[1:]) and masks.amin() == 0 and masks.amax() == 1
    own = record.masks(*SHAPE[1:], outside=(1, 2))
    torch.testing.assert_close(own, stretched(masks[:, :, 1:-2]))
    images = [shown(frame.denoised[0], 3)[:3].movedim(0, -1).sigmoid() for frame in record.frames()]
    assert timeline(record.frames(), 2, palette(1), images, cell=32).isfinite().all()


@pytest.mark.parametrize(
    "asked",
    [replace(WORD, grow=1, feather=2.0, hold=1, fade=1), replace(WORD, mask=random(9, 4, 6), mask_mode="add"), PAINTED],
    ids=["words", "masks and words", "a mask"],
)
def test_a_run_waits_for_nothing(clock: Clock, asked: Regions) -> None:
    """Recorded and shown as the node does."""
    plan = make_plan(TimestepMap(asked, "piecewise linear"), *SHAPE[1:], patch=(2, 2, 2))
    record, live = RunRecord(clock.steps, previews=True), Live(clock.steps, lambda frames: None)
    with fake_device(transfer.STREAMS) as device, live:
        host = FrameHost(random(2, 1, 3, 4, 6).to(DEVICE))
        device.watch(host.network)
        made = run(
            clock.to(DEVICE), plan, NOISE.to(DEVICE), "er_sde", host, patch=(2, 2, 2),
            on_step=lambda snapshot: (record(snapshot), live(snapshot)),
        )  # fmt: skip
        assert made.device == DEVICE and device.evaluation == clock.steps and device.within(2) == []
        assert (record.frames()[2].progress < 2).any()


def test_crowding_counts_the_pixels_of_all_frames() -> None:
    plan = make_plan(TimestepMap(PAINTED), *SHAPE[1:])
    torch.testing.assert_close(ahead(plan.regions, snapshot()), torch.full((2,), 1 - 8 / 12 / FRAMES))
