"""Several samplers, one clock: a run in parts equals the whole, where stock ComfyUI's own parts equal its whole.

The oracle is the same run by one sampler, and stock ComfyUI's own split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import comfy.samplers
import pytest
import torch
from asyndm_pack.asyndm_core.live import Live
from asyndm_pack.asyndm_core.regions import Regions, Target, TimestepMap
from asyndm_pack.asyndm_core.run import Snapshot
from asyndm_pack.nodes.comfy.conditioning import ANNOTATION, Annotation
from asyndm_pack.nodes.comfy.live_view import parcel
from asyndm_pack.nodes.comfy.relay import ATTRIBUTE
from asyndm_pack.nodes.comfy.sampling import Options, Start, apply
from comfy_extras.nodes_custom_sampler import (
    CFGGuider,
    DisableNoise,
    Noise_RandomNoise,
    SamplerCustomAdvanced,
    SplitSigmas,
)
from comfy_process import Server
from families import empty, prompt, transformer
from tiny import (
    FOX_AND_HAT,
    LEFT,
    NEGATIVE,
    POSITIVE,
    asyn,
    difference,
    flat,
    latent,
    make_model,
    model,
    painted,
    plain,
    same,
    second_lags,
    untouched,
)
from torch import Tensor

from nodes import KSamplerAdvanced, LatentUpscale, SetLatentNoiseMask

pytestmark = pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # torchsde, on the last bit of its ends

TOLERANCE = 1e-5
STEPS = 7
NO_STRENGTH = Regions((Target("fox"), Target("hat", 0.0)))
WORDS_AND_MASK = Regions((Target("fox", 0.9), Target("hat", 0.4)), mask=LEFT, mask_mode="add", grow=1, feather=2.0)


def table(patched: Any, steps: int = STEPS, scheduler: str = "karras") -> Tensor:
    return comfy.samplers.calculate_sigmas(patched.get_model_object("model_sampling"), scheduler, steps)


class Graph:
    """What samples in a graph: the same for a whole run and for its parts."""

    def __init__(
        self, sampler: str = "euler", scheduler: str = "karras", steps: int = STEPS, image: dict | None = None,
        positive: list = POSITIVE, negative: list = NEGATIVE, cfg: float = 5.0,
    ) -> None:  # fmt: skip
        self.sampler, self.scheduler, self.steps, self.cfg = sampler, scheduler, steps, cfg
        self.image, self.positive, self.negative = image or latent(), positive, negative

    def advanced(self, patched: Any, image: dict, start: int, end: int, noise: bool | None = None, seed: int = 7) -> dict:
        """One KSampler (Advanced), with the noise of the first unless told."""
        noise = start == 0 if noise is None else noise
        leftover = "enable" if end < self.steps else "disable"
        return KSamplerAdvanced().sample(
            patched, "enable" if noise else "disable", seed, self.steps, self.cfg, self.sampler, self.scheduler,
            self.positive, self.negative, image, start, end, leftover,
        )[0]  # fmt: skip

    def by_ksamplers(self, patched: Any, *splits: int) -> Tensor:
        image = self.image
        for start, end in pairwise((0, *splits, self.steps)):
            image = self.advanced(patched, image, start, end)
        return image["samples"]

    def custom(self, patched: Any, image: dict, sigmas: Tensor, noise: bool) -> dict:
        """One SamplerCustomAdvanced."""
        guider = CFGGuider.execute(patched, self.positive, self.negative, self.cfg).result[0]
        source = Noise_RandomNoise(7) if noise else DisableNoise.execute().result[0]
        sampler = comfy.samplers.sampler_object(self.sampler)
        return SamplerCustomAdvanced.execute(source, guider, sampler, sigmas, image).result[0]

    def by_split_sigmas(self, patched: Any, *splits: int) -> Tensor:
        image, rest, done = self.image, table(patched, self.steps, self.scheduler), 0
        for split in (*splits, self.steps):
            part, rest = SplitSigmas.execute(rest, split - done).result
            image, done = self.custom(patched, image, part, noise=done == 0), split
        return image["samples"]


WAYS: dict[str, Callable[..., Tensor]] = {"KSamplerAdvanced": Graph.by_ksamplers, "SplitSigmas": Graph.by_split_sigmas}
every_way = pytest.mark.parametrize("way", WAYS)


def shared(patched: Any, regions: Regions = FOX_AND_HAT, scheduler: str = "karras", steps: int = STEPS, **changes: Any) -> Any:
    """The model with a map that knows the table of the whole run."""
    return asyn(patched, regions, sigmas=table(patched, steps, scheduler), **changes)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of clocks and tables since the last call."""
    texts = [record.getMessage() for record in caplog.records if record.name == "asyndm"]
    caplog.clear()
    return [text for text in texts if "clock" in text or "sigmas" in text]


MAPS: dict[str, dict[str, Any]] = {
    "words": {"strength": 0.9},
    "painted": {"regions": painted(LEFT, strength=0.9)},
    "words and a grey mask, exponential": {"regions": WORDS_AND_MASK, "curve": "exponential"},
    "piecewise linear": {"curve": "piecewise linear", "strength": 1.0},
    "concave": {"mode": "concave", "strength": 0.9},
    "fixed": {"regions": Regions((Target("fox", 0.9),), update="fixed")},
}


@every_way
@pytest.mark.parametrize("splits", [(3,), (1,), (6,), (2, 3), (1, 2, 4)], ids=str)
def test_parts_equal_the_whole(way: str, splits: Sequence[int], caplog: pytest.LogCaptureFixture) -> None:
    """Words: pairs, triples, parts of one step."""
    graph, patched = Graph(), shared(flat(), strength=0.9)
    whole = WAYS[way](graph, asyn(flat(), strength=0.9))
    assert same(WAYS[way](graph, patched), whole)
    assert difference(WAYS[way](graph, patched, *splits), whole) < TOLERANCE
    assert lines(caplog) == []


@pytest.mark.parametrize("name", MAPS)
def test_every_kind_of_map(name: str, caplog: pytest.LogCaptureFixture) -> None:
    graph, changes = Graph(), MAPS[name]
    whole = graph.by_ksamplers(asyn(model(), **changes))
    assert difference(whole, graph.by_ksamplers(model())) > 1e-3
    assert difference(graph.by_ksamplers(shared(model(), **changes), 2, 5), whole) < TOLERANCE
    assert difference(graph.by_split_sigmas(shared(model(), **changes), 3), whole) < TOLERANCE
    assert lines(caplog) == []


def test_without_the_table_every_sampler_has_its_own_clock() -> None:
    """As before there was one; what it costs is what sharing gives back."""
    graph = Graph()
    whole, stock = graph.by_ksamplers(asyn(flat(), strength=0.9)), graph.by_ksamplers(flat())
    apart = graph.by_ksamplers(asyn(flat(), strength=0.9), 3)
    assert difference(apart, whole) > 0.1 * difference(stock, whole) > 1e-3


def test_a_picture_of_a_batch_is_what_it_is_alone() -> None:
    graph, two = Graph(image=latent(batch=2)), Graph(image=latent(batch=2, batch_index=[1, 0]))
    patched = shared(flat(), strength=0.9)
    together = graph.by_ksamplers(patched, 1, 4)
    assert difference(together, graph.by_ksamplers(asyn(flat(), strength=0.9))) < TOLERANCE
    assert difference(two.by_ksamplers(patched, 1, 4).flip(0), together) < TOLERANCE
    assert difference(together[:1], Graph().by_ksamplers(patched, 1, 4)) < TOLERANCE


@every_way
@pytest.mark.parametrize("name", ["Z-Image", "Qwen-Image"])
def test_transformers(name: str, way: str) -> None:
    """Flow models, whose latents are scaled between the parts; one of single frames."""
    words = {"fox": (3,), "hat": (5, 6)}
    texts = prompt(name, 5), prompt(name, 6)
    texts[0][0][1][ANNOTATION] = Annotation(words, texts[0][0][0].shape[1])
    graph = Graph(scheduler="simple", image=empty(name), positive=texts[0], negative=texts[1], cfg=2.0)
    for changes in ({"strength": 1.0, "curve": "piecewise linear"}, {"regions": painted(LEFT, strength=0.9)}):
        whole = WAYS[way](graph, asyn(transformer(name), **changes))
        assert difference(whole, WAYS[way](graph, transformer(name))) > 1e-3
        assert difference(WAYS[way](graph, shared(transformer(name), scheduler="simple", **changes), 2, 4), whole) < TOLERANCE


def test_the_papers_run() -> None:
    """From before the first evaluation to timestep 0, without its noise, which begins anew in each part."""
    changes = {"preset": "paper", "regions": painted(LEFT, strength=0.9)}
    graph = Graph("ddim", "ddim_uniform", steps=8)
    whole = graph.by_ksamplers(asyn(flat(), **changes))
    parts = graph.by_ksamplers(shared(flat(), scheduler="ddim_uniform", steps=8, **changes), 1, 5)
    assert difference(parts, whole) < TOLERANCE


# --- as stock ComfyUI's own parts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["euler", "heun", "ddim", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "lcm"])
def test_every_sampler_is_in_parts_what_stock_is(sampler: str) -> None:
    """Noise and memory begin anew in each part. Of two pictures one keeps pace: stock's own parts, whatever the sampler.

    The other is what mode concave makes of it, but where noise is asked for by interval (there it has other intervals).
    """
    graph, lags = Graph(sampler, image=latent(batch=2)), painted(torch.zeros(8, 8), torch.ones(8, 8))
    run = lambda change: graph.by_ksamplers(change(flat()), 2, 5)  # noqa: E731
    if sampler == "dpmpp_2m_sde":
        stock, together = run(lambda m: m), run(lambda m: shared(m, lags))
        assert difference(together[:1], stock[:1]) < 2e-5 < 1e-3 < difference(together[1:], stock[1:])
    else:
        second_lags(run, lags, 2e-5, sigmas=table(flat()))


@every_way
def test_what_asks_for_nothing_is_stock_in_parts(way: str, caplog: pytest.LogCaptureFixture) -> None:
    graph = Graph()
    stock = WAYS[way](graph, flat(), 2, 5)
    assert same(WAYS[way](graph, shared(flat(), NO_STRENGTH, strength=0.0), 2, 5), stock)
    assert same(WAYS[way](graph, shared(flat(), mode="synchronous"), 2, 5), stock)
    assert lines(caplog) == []
    assert difference(WAYS[way](graph, plain(flat(), NO_STRENGTH, strength=0.0, sigmas=table(flat())), 2, 5), stock) < TOLERANCE


# --- given latents ---------------------------------------------------------------------------------------------------------

HOLE = torch.zeros(1, 64, 64)
HOLE[:, 16:56, 24:] = 1


@pytest.mark.parametrize("known", ["noised", "ahead", "clean"])
def test_inpainting(known: str) -> None:
    """Known pixels are noised anew at every step, from what the first part was given."""
    graph = Graph(image=SetLatentNoiseMask().set_mask(latent(full=True), HOLE)[0])
    changes = {"regions": painted(LEFT, strength=0.9), "known_pixels": known}
    whole = graph.by_ksamplers(asyn(flat(), **changes))
    assert difference(graph.by_ksamplers(shared(flat(), **changes), 2, 5), whole) < TOLERANCE
    assert difference(graph.by_split_sigmas(shared(flat(), **changes), 4), whole) < TOLERANCE


@pytest.mark.parametrize("known", ["noised", "ahead"])
@pytest.mark.parametrize("regions", [painted(LEFT), FOX_AND_HAT], ids=["painted", "words"])
@pytest.mark.parametrize("background", [0.0, 0.4])
def test_regional_denoise(regions: Regions, background: float, known: str) -> None:
    """Words are looked for in the given latents, by the first part; later parts add no noise."""
    graph = Graph(image=latent(full=True))
    changes = {"regions": regions, "background_denoise": background, "known_pixels": known}
    whole = graph.by_ksamplers(asyn(flat(), **changes))
    assert difference(graph.by_ksamplers(shared(flat(), **changes), 2, 5), whole) < TOLERANCE


# --- between the parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", [1, 4])
def test_a_part_ends_with_level_pixels(split: int, caplog: pytest.LogCaptureFixture) -> None:
    """What a sampler without AsynDM is given: every pixel one step of euler from where it was to the part's last sigma."""
    steps: list[Snapshot] = []
    graph, patched = Graph(), flat()
    first = graph.advanced(shared(patched, strength=0.9, on_step=steps.append), graph.image, 0, split)
    assert [snapshot.step for snapshot in steps] == list(range(split))
    x, denoised, sigma = steps[-1].x, steps[-1].denoised, steps[-1].sigma
    level = denoised + table(patched)[split] / sigma * (x - denoised)
    assert difference(first["samples"], patched.model.process_latent_out(level)) < TOLERANCE
    stock = graph.advanced(patched, first, split, STEPS)
    unmarked = graph.advanced(patched, copied(first), split, STEPS)
    assert same(stock["samples"], unmarked["samples"])
    assert lines(caplog) == []


def copied(image: dict) -> dict:
    """The same latents in another tensor, as from a node that changes them."""
    return {**image, "samples": image["samples"].clone()}


def begun_anew(graph: Graph, patched: Any, image: dict, split: int) -> Tensor:
    """What a part makes of level latents that bring no clock."""
    return graph.advanced(patched, copied(image), split, STEPS)["samples"]


def said(caplog: pytest.LogCaptureFixture) -> str:
    """The one line."""
    (line,) = lines(caplog)
    return line


def test_latents_that_lost_their_clock_begin_level(caplog: pytest.LogCaptureFixture) -> None:
    graph, patched = Graph(), shared(flat(), strength=0.9)
    image = graph.advanced(patched, graph.image, 0, 3)
    alone = graph.advanced(asyn(flat(), strength=0.9), copied(image), 3, STEPS)["samples"]
    assert lines(caplog) == []
    assert same(begun_anew(graph, patched, image, 3), alone)
    assert "The latents bring no clock to go on with" in said(caplog)
    (up,) = LatentUpscale().upscale(image, "nearest-exact", 64, 96, "disabled")
    graph.advanced(patched, up, 3, STEPS)
    assert "The latents bring no clock to go on with" in said(caplog)
    assert difference(graph.advanced(patched, image, 3, STEPS)["samples"], alone) > 1e-3
    image["samples"] *= 1.01
    assert same(graph.advanced(patched, image, 3, STEPS)["samples"], begun_anew(graph, patched, image, 3))
    assert all("The latents bring no clock to go on with" in line for line in lines(caplog))


def test_a_clock_that_does_not_fit_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """Another place in the table, another table, other regions, another kind of model: the run begins level, and says why."""
    graph, patched = Graph(), shared(flat(), strength=0.9)
    image = graph.advanced(patched, graph.image, 0, 3)
    assert same(graph.advanced(patched, image, 4, STEPS)["samples"], begun_anew(graph, patched, image, 4))
    misplaced, lost = lines(caplog)
    assert "can't go on: it stands at sigma" in misplaced and "start_at_step" in misplaced and "bring no clock" in lost
    other = Graph(scheduler="normal")
    other.advanced(asyn(flat(), strength=0.9), image, 3, STEPS)
    assert "do not follow it in the run's table" in said(caplog)
    others = asyn(flat(), painted(LEFT))
    assert same(graph.advanced(others, image, 3, STEPS)["samples"], begun_anew(graph, others, image, 3))
    assert "other regions" in said(caplog)
    flow = Graph(scheduler="simple", image=empty("Z-Image"), positive=prompt("Z-Image"), negative=prompt("Z-Image", 6))
    first = flow.advanced(shared(transformer("Z-Image"), painted(LEFT), "simple"), flow.image, 0, 3)
    caplog.clear()
    first["samples"] = handed_on(first["samples"], first["samples"][:, :4].contiguous())
    graph.advanced(asyn(flat(), painted(LEFT)), first, 3, STEPS)
    assert "another kind of model" in said(caplog)


def handed_on(samples: Tensor, others: Tensor) -> Tensor:
    """Other latents with the clock of these."""
    setattr(others, ATTRIBUTE, replace(getattr(samples, ATTRIBUTE), samples=others))
    return others


def test_a_later_map_may_have_other_strengths() -> None:
    """And none at all: what lags then goes on linearly, and the clock of the first part is what tells how far it lags."""
    graph = Graph()
    image = graph.advanced(shared(flat(), strength=0.9), graph.image, 0, 3)
    results = [
        graph.advanced(asyn(flat(), strength=strength), image, 3, STEPS)["samples"] for strength in (0.0, 0.5, 0.9)
    ]  # fmt: skip
    assert all(difference(a, b) > 1e-4 for a, b in pairwise(results))
    assert difference(results[0], begun_anew(graph, flat(), image, 3)) > 1e-3


def test_sigmas_that_are_no_part_of_the_table(caplog: pytest.LogCaptureFixture) -> None:
    """They have their own clock, as without the table."""
    graph = Graph()
    own = graph.by_ksamplers(asyn(flat(), strength=0.9), 3)
    caplog.clear()
    image = graph.advanced(shared(flat(), scheduler="normal", strength=0.9), graph.image, 0, 3)
    assert "no part of the table" in said(caplog)
    assert same(graph.advanced(asyn(flat(), strength=0.9), image, 3, STEPS)["samples"], own)


def test_added_noise_begins_a_new_run(caplog: pytest.LogCaptureFixture) -> None:
    graph, patched = Graph(), shared(flat(), strength=0.9)
    image = graph.advanced(patched, graph.image, 0, 3)
    again = [graph.advanced(patched, each, 3, STEPS, noise=True)["samples"] for each in (image, copied(image))]
    assert same(*again) and lines(caplog) == []


def test_a_run_may_start_within_the_table() -> None:
    """As image to image does: one clock from there on."""
    graph, changes = Graph(image=latent(full=True)), {"strength": 0.9}
    whole = graph.advanced(asyn(flat(), **changes), graph.image, 2, STEPS, noise=True)["samples"]
    first = graph.advanced(shared(flat(), **changes), graph.image, 2, 4, noise=True)
    assert difference(graph.advanced(shared(flat(), **changes), first, 4, STEPS)["samples"], whole) < TOLERANCE


def test_both_denoises_below_one_are_refused() -> None:
    patched = shared(flat(), painted(LEFT), region_denoise=0.8, background_denoise=0.4)
    with pytest.raises(ValueError, match=r"table of sigmas for several samplers.*start_at_step"):
        Graph(image=latent(full=True)).by_ksamplers(patched)


def test_a_part_may_be_sampled_again() -> None:
    """As from ComfyUI's cache: the later part is queued anew, with another seed or another map. Nothing is used up."""
    graph, patched = Graph("euler_ancestral"), shared(flat(), strength=0.9)
    image = graph.advanced(patched, graph.image, 0, 3)
    one, two, three = (graph.advanced(patched, image, 3, STEPS, seed=seed)["samples"] for seed in (1, 2, 1))
    assert same(one, three) and difference(one, two) > 1e-3
    fresh = graph.advanced(patched, graph.advanced(patched, graph.image, 0, 3), 3, STEPS, seed=1)["samples"]
    assert same(fresh, one)


def test_parts_without_a_step_hand_the_clock_on() -> None:
    graph, patched = Graph(), shared(flat(), strength=0.9)
    assert difference(graph.by_split_sigmas(patched, 3, 3), graph.by_split_sigmas(patched)) < TOLERANCE


def test_the_model_and_its_options_are_as_before() -> None:
    patched = make_model(num_res_blocks=[1], channel_mult=[1], transformer_depth=[1], transformer_depth_output=[1, 1])
    with untouched(patched):
        Graph().by_ksamplers(shared(patched, strength=0.9), 2, 4)


# --- what is told ----------------------------------------------------------------------------------------------------------


def test_who_watches_is_told_the_place_in_the_run() -> None:
    graph, starts, steps, frames = Graph(), [], [], []

    def on_run(start: Start) -> Live:
        starts.append(start)
        return Live(start.steps, frames.extend, part=start.part)

    timestep_map = TimestepMap(FOX_AND_HAT, strength=0.9, sigmas=table(flat()))
    patched = apply(flat(), timestep_map, Options(on_run=on_run, on_step=lambda snapshot: steps.append(snapshot.step)))
    graph.by_ksamplers(patched, 1, 4)
    assert steps == [frame.step for frame in frames] == list(range(STEPS))
    assert [(start.steps, start.part) for start in starts] == [(7, range(1)), (7, range(1, 4)), (7, range(4, 7))]
    sent = parcel("1", starts[1], None, None, "run")
    assert (sent["steps"], sent["first"], sent["last"]) == (7, 1, 3)


def test_comfyui_counts_the_steps_of_each_part() -> None:
    """As its progress bars do."""
    counted: list[tuple[int, int]] = []
    patched, sigmas = shared(flat(), strength=0.9), table(flat())
    guider, sampler = comfy.samplers.CFGGuider(patched), comfy.samplers.sampler_object("euler")
    guider.set_conds(POSITIVE, NEGATIVE)
    samples = latent()["samples"]
    note = lambda step, denoised, x, steps: counted.append((step, steps))  # noqa: E731
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(7))
    first = guider.sample(noise, samples, sampler, sigmas[:4], callback=note, disable_pbar=True, seed=7)
    guider.sample(torch.zeros_like(noise), first, sampler, sigmas[3:], callback=note, disable_pbar=True, seed=7)
    assert counted == [(0, 3), (1, 3), (2, 3), (0, 4), (1, 4), (2, 4), (3, 4)]


def queued(server: Server, prompt: dict[str, dict]) -> tuple[set[str], Tensor]:
    """The nodes that were executed, and the picture."""
    outputs = server.run(prompt)
    *_, entry = server.json("/history").values()
    cached = [node for kind, about in entry["status"]["messages"] if kind == "execution_cached" for node in about["nodes"]]
    return set(prompt) - set(cached), torch.from_numpy(server.image(outputs["save"]["images"][0]).copy())


@pytest.mark.whole
def test_a_graph_is_queued_twice_and_its_first_part_comes_from_the_cache(server: Server) -> None:
    """On a real server: the second time only the later part is executed, by the clock of the first."""
    sampler = {"steps": 6, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal"}
    texts = {"model": ["apply", 0], "positive": ["words", 0], "negative": ["negative", 0]}
    words = {"text": "a green boat on the sea", "targets": "green boat", "threshold": 1.0, "update": "every step"}
    curve = {"curve": "quadratic", "strength": 0.9, "mode": "asynchronous", "sigmas": ["table", 0]}

    def part(source: str, start: int, end: int, seed: int) -> dict[str, Any]:
        noise, leftover = ("enable" if start == 0 else "disable"), ("enable" if end < 6 else "disable")
        place = {"start_at_step": start, "end_at_step": end, "add_noise": noise, "return_with_leftover_noise": leftover}
        inputs = {**texts, **sampler, **place, "latent_image": [source, 0], "noise_seed": seed}
        return {"class_type": "KSamplerAdvanced", "inputs": inputs}

    def seen(image: str) -> dict[str, dict]:
        decode = {"class_type": "VAEDecode", "inputs": {"samples": [image, 0], "vae": ["demo", 2]}}
        return {"decode": decode, "save": {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}}}

    table_of = {"model": ["demo", 0], "scheduler": "normal", "steps": 6, "denoise": 1.0}
    prompt = {
        "demo": {"class_type": "AsynDM_DemoModel", "inputs": {}},
        "words": {"class_type": "AsynDM_CrossAttentionMask", "inputs": {"clip": ["demo", 1], **words}},
        "table": {"class_type": "BasicScheduler", "inputs": table_of},
        "map": {"class_type": "AsynDM_TimestepMap", "inputs": {"regions": ["words", 1], **curve}},
        "apply": {"class_type": "AsynDM_Apply", "inputs": {"model": ["demo", 0], "timestep_map": ["map", 0]}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["demo", 1], "text": ""}},
        "latent": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
    }
    pictures = []
    for seed in (1, 2):  # euler draws no noise: the same picture
        parts = {"first": part("latent", 0, 3, 7), "second": part("first", 3, 6, seed)}
        executed, picture = queued(server, {**prompt, **parts, **seen("second")})
        assert ("first" in executed) == (seed == 1) and "second" in executed
        pictures.append(picture)
    _, whole = queued(server, {**prompt, "whole": part("latent", 0, 6, 7), **seen("whole")})
    assert (pictures[0].int() - whole.int()).abs().max() <= 1
    assert torch.equal(*pictures)
