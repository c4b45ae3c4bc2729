"""The demo command and its sampling, with fresh weights in place of the trained ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from asyndm_core.attention import token_columns
from asyndm_core.regions import Regions, Target, TimestepMap, make_plan
from asyndm_core.tokens import UnknownWordError
from demo import __main__ as command
from demo.config import FACTOR, MAX_TOKENS
from demo.model import DemoModel, FlowModel, build, load_transformer, sample
from demo.sample import (
    Inpaint,
    Settings,
    choose_targets,
    sample_demo,
    sample_plan,
    seeded_noise,
    token_positions,
)
from demo.scorer import read
from demo.world import SIZE

PROMPT = "a green boat on the sea under two moons"
WORDS = TimestepMap(Regions((Target("green boat"), Target("moons", 0.4))))
SHORT = Settings(steps=4)


@pytest.fixture(scope="module")
def model() -> DemoModel:
    """The demo model as it is before training, with attention that is not flat."""
    torch.manual_seed(1)
    model = build()
    for name, weight in model.unet.named_parameters():
        if "attn2.to_" in name:
            weight.data.mul_(3)
    for part in (model.unet, model.text_encoder, model.vae):
        part.eval().requires_grad_(False)
    return model


def test_synchronous_is_the_plain_sampler(model: DemoModel) -> None:
    """The core's Euler on the diffusers host is the model's own plain loop, to rounding."""
    wanted = sample(model, [PROMPT], steps=4, cfg=4.5, seed=3).movedim(1, -1)
    got = sample_demo(model, PROMPT, replace(WORDS, mode="synchronous"), [3], SHORT)
    torch.testing.assert_close(got.images, wanted, rtol=0, atol=1e-4)
    assert got.record.attention() is None


@pytest.fixture(scope="module")
def flow() -> FlowModel:
    """The second demo model, as it ships."""
    return load_transformer()


def test_the_transformer_synchronous_is_the_plain_sampler(flow: FlowModel) -> None:
    """The core's Euler on the transformer's host is the model's own plain loop, to rounding; with lagging words it is not."""
    wanted = sample(flow, [PROMPT], steps=4, cfg=4.5, seed=3).movedim(1, -1)
    got = sample_demo(flow, PROMPT, replace(WORDS, mode="synchronous"), [3], SHORT)
    torch.testing.assert_close(got.images, wanted, rtol=0, atol=5e-4)
    asynchronous = sample_demo(flow, PROMPT, WORDS, [3], SHORT)
    assert (asynchronous.images - wanted).abs().max() > 0.05
    boat, moons = asynchronous.record.masks(16, 16)[0]
    assert (boat - moons).abs().mean() > 0.1


def test_the_transformers_seed_is_a_picture(flow: FlowModel) -> None:
    """Whatever the batch, and with the known pixels of an inpainting mask as they were given."""
    settings = replace(SHORT, sampler="euler_ancestral")
    batch = sample_demo(flow, PROMPT, WORDS, [5, 6], settings)
    alone = sample_demo(flow, PROMPT, WORDS, [6], settings)
    torch.testing.assert_close(batch.latents[1:], alone.latents, rtol=0, atol=1e-4 * alone.latents.std().item())
    hole = torch.zeros(1, 1, 16, 16)
    hole[..., 4:12, 4:12] = 1
    for how in ("noised", "ahead"):
        plan = make_plan(TimestepMap(Regions(), strength=0.0, known_pixels=how), 16, 16)
        columns = token_columns([], MAX_TOKENS)
        filled = sample_plan(flow, [PROMPT], columns, plan, [7], SHORT, inpaint=Inpaint(alone.latents, hole))
        assert ((filled - alone.latents) * (1 - hole)).abs().max() < 1e-5
        assert ((filled - alone.latents) * hole).abs().max() > 0.1


def test_a_seed_is_a_picture(model: DemoModel) -> None:
    """Whatever the batch; and another seed is another picture."""
    settings = replace(SHORT, sampler="euler_ancestral")
    batch = sample_demo(model, PROMPT, WORDS, [5, 6], settings)
    alone = sample_demo(model, PROMPT, WORDS, [6], settings)
    torch.testing.assert_close(batch.latents[1:], alone.latents, rtol=0, atol=1e-4 * alone.latents.std().item())
    assert (batch.latents[0] - batch.latents[1]).abs().max() > 0.1
    assert batch.images.shape == (2, 128, 128, 3)
    assert batch.record.masks(16, 16).shape == (2, 2, 16, 16)


@pytest.mark.parametrize("timestep_map", [replace(WORDS, preset="paper"), replace(WORDS, mode="concave")])
def test_other_ways_to_sample(model: DemoModel, timestep_map: TimestepMap) -> None:
    """The paper's preset, and concave: they run, and differ from the default."""
    plain = sample_demo(model, PROMPT, WORDS, [5], SHORT)
    other = sample_demo(model, PROMPT, timestep_map, [5], replace(SHORT, sampler="ddim", eta=1.0))
    assert torch.isfinite(other.latents).all()
    assert not torch.allclose(plain.latents, other.latents)


def test_fixed_regions_come_from_a_synchronous_pass(model: DemoModel) -> None:
    """All frames have the same owners, and they are there from the first step."""
    fixed = replace(WORDS, regions=replace(WORDS.regions, update="fixed"))
    frames = sample_demo(model, PROMPT, fixed, [5], SHORT).record.frames()
    assert frames[0].owner.unique().numel() > 1
    assert all(torch.equal(frame.owner, frames[0].owner) for frame in frames)


def test_token_positions(model: DemoModel) -> None:
    """Every word of the world is one token; position 0 is the start token."""
    prompt = "two moons over a red boat and a boat"
    assert token_positions(model, prompt, ["moons", "red boat", "boat"]) == [[2], [5, 6], [6, 9]]
    with pytest.raises(UnknownWordError, match="two, moons, over"):
        token_positions(model, prompt, ["sun"])


def test_choose_targets() -> None:
    """As typed, else the content of the prompt without its place, else an error."""
    assert choose_targets(PROMPT, "moons:0.3") == (Target("moons", 0.3),)
    assert choose_targets(PROMPT, "sea") == (Target("sea"),)
    chosen = [target.text for target in choose_targets(PROMPT)]
    assert chosen[0] == "green boat" and "moons" in chosen[1] and len(chosen) == 2
    with pytest.raises(ValueError, match="names no thing"):
        choose_targets("the")


def test_seeded_noise_does_not_depend_on_the_batch() -> None:
    """Each image draws from its own generator, and each draw is new."""
    together, alone = seeded_noise([1, 2], (3, 2)), seeded_noise([2], (3, 2))
    first, second = next(together), next(together)
    assert torch.equal(first[1:], next(alone))
    assert torch.equal(second[1:], next(alone))
    assert not torch.equal(first, second)


def test_the_sheet(model: DemoModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """The command writes one picture, says where, which seed of which and which words, and ends well."""
    monkeypatch.setattr(command, "load_model", lambda *_: model)
    path = tmp_path / "sheet.png"
    assert command.main([PROMPT, "--steps", "3", "--output", str(path)]) == 0
    said = capsys.readouterr().out
    assert str(path) in said
    assert "Of seeds 1 to 8" in said and "green boat" in said and "sea" not in said
    sheet = Image.open(path)
    assert sheet.width == 1160
    assert 1700 < sheet.height < 2200


def test_the_sheet_of_the_transformer(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """--network chooses what is loaded."""
    path = tmp_path / "sheet.png"
    assert command.main([PROMPT, "--network", "transformer", "--seed", "3", "--steps", "2", "--output", str(path)]) == 0
    assert "6 pictures" in capsys.readouterr().out
    assert Image.open(path).width == 1160


def test_a_seed_and_a_prompt_of_ones_own(
    model: DemoModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Nothing is chosen, and nothing taken out: the sheet has neither row."""
    monkeypatch.setattr(command, "load_model", lambda *_: model)
    path = tmp_path / "sheet.png"
    assert command.main(["a red cat in a room", "--seed", "3", "--steps", "2", "--output", str(path)]) == 0
    assert "3 pictures" in capsys.readouterr().out
    assert Image.open(path).height < 1400


def test_the_seed_that_changes_most_is_chosen(model: DemoModel) -> None:
    """By the pictures themselves, each as its solo run makes it."""
    seeds = range(1, 5)
    survey = command.look_at(model, PROMPT, WORDS, seeds, SHORT)
    alone = [
        [sample_demo(model, PROMPT, replace(WORDS, mode=mode), [seed], SHORT).images[0] for seed in seeds]
        for mode in ("synchronous", "asynchronous")
    ]
    apart = [255 * (a - b).abs().mean().item() for a, b in zip(*alone, strict=True)]
    assert survey.changes.tolist() == pytest.approx(apart, abs=0.05)
    assert survey.chosen == seeds[apart.index(max(apart))]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--strength", "2"], "strength is 2"),
        (["--strength", "strong"], "argument --strength"),
        (["--curve", "bent"], "argument --curve"),
        (["--sampler", "nonsense"], "'nonsense'"),
        (["--sampler", "dpmpp_sde"], "'dpmpp_sde'"),
        (["--targets", "dragon"], "'dragon' is not in the prompt"),
        (["--targets", "boat:3"], "'boat'"),
        (["--steps", "0"], "steps is 0"),
        (["--output", "sheet.jpg"], "ends with .png"),
        (["--remove", "moons"], "--left"),
        (["the"], "names no thing"),
    ],
)
def test_bad_input_ends_with_one_line(
    model: DemoModel, arguments: list[str], problem: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Exit code 2, what is wrong, no traceback."""
    monkeypatch.setattr(command, "load_model", lambda *_: model)
    try:
        code = command.main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert problem in said


def test_words_the_model_never_saw_are_named(
    model: DemoModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The demo model's world is small; a newcomer is told so instead of wondering."""
    monkeypatch.setattr(command, "load_model", lambda *_: model)
    assert command.main(["a dragon over a boat", "--steps", "1", "--output", str(tmp_path / "a.png")]) == 0
    assert "never seen: dragon" in capsys.readouterr().out


def test_the_shipped_model_makes_pictures() -> None:
    """Trained weights: a picture has light and dark, and the words are found in different places."""
    result = sample_demo(command.load_model(), PROMPT, WORDS, [1], Settings(steps=10))
    assert result.images.std() > 0.1
    boat, moons = result.record.masks(16, 16)[0]
    assert (boat - moons).abs().mean() > 0.1


def test_a_thing_is_taken_out_by_its_word() -> None:
    """The scorer sees the moons before, none afterwards, and the boat both times; nothing is changed outside of the hole."""
    removal = command.remove(command.load_model(), command.PROMPT, command.REMOVED, command.LEFT, 8, Settings())
    before, after = (np.asarray(command.to_pil(image)) for image in (removal.image, removal.emptied["clean"]))
    assert {thing.kind for thing in read(before).things} == {"boat", "moon"}
    assert [thing.kind for thing in read(after).things] == ["boat"]
    kept = (removal.hole == 0).repeat_interleave(FACTOR, 0).repeat_interleave(FACTOR, 1).numpy()
    low = SIZE * 3 // 4
    assert kept[low:].all() and np.abs(before[low:].astype(int) - after[low:]).max() <= 2  # the decoder sees the hole from afar
