"""Random valid graphs, as artists build them: every one from a number, so that each can be made again.

A graph says what it invites: the reasons for which it may be refused, the fault that was put in, and whether it asks for
nothing but stock sampling. Whatever else comes out is a find.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from asyndm_core.curves import CURVES
from asyndm_core.regions import KNOWN_PIXELS, MASK_MODES, MODES
from asyndm_core.samplers import SAMPLERS

Link = list
Prompt = dict[str, dict[str, Any]]

THINGS = ("boat", "moon", "cat", "ball", "tree", "star", "house")
COLOURS = ("red", "green", "blue", "yellow", "white", "orange")
PLACES = ("on the sea", "in a meadow", "in a room", "at night", "")
COUNTS = ("a", "two", "three")
FACTOR = 8


def inputs_of(info: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a node by name, as /object_info tells them."""
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


def options_of(spec: list) -> list | None:
    """The choices of a combo, or None."""
    if isinstance(spec[0], list):
        return spec[0]
    return spec[1].get("options") if spec[0] == "COMBO" else None


@dataclass
class Graph:
    """A prompt for the server and what it invites.

    model: "unet", "transformer" (of pictures) or "clip". size: (batch, height, width) of the latents that come out; of clips
    (batch, frames, height, width). reasons: kinds of refusals (``verdicts``) that it may end
    in. fault: "oom", "error" or "cancel", if one was put in. idle: nothing may lag, so it is the stock picture.
    preview: ComfyUI's previews are on.
    """

    prompt: Prompt = field(default_factory=dict)
    model: str = "unet"
    size: tuple[int, ...] = (1, 16, 16)
    reasons: set[str] = field(default_factory=set)
    fault: str | None = None
    idle: bool = False
    preview: bool = False


def without_asyndm(prompt: Prompt) -> Prompt:
    """The same graph with the AsynDM nodes bypassed, as an artist would: the stock sampler on the same MODEL."""
    twin: Prompt = {name: {**node, "inputs": dict(node["inputs"])} for name, node in prompt.items()}
    away = ("AsynDM_Apply", "Stress_Fault")
    bypassed = {name: node["inputs"]["model"] for name, node in twin.items() if node["class_type"] in away}
    for node in twin.values():
        if node["class_type"] == "AsynDM_KSampler":
            node["class_type"] = "KSampler"
            for ours in ("timestep_map", "eta", "preview"):
                node["inputs"].pop(ours, None)
        for name, value in list(node["inputs"].items()):
            while isinstance(value, list) and value[0] in bypassed:
                value = node["inputs"][name] = bypassed[value[0]]
            if isinstance(value, list) and value[1] > 0 and twin[value[0]]["class_type"] == "KSampler":
                del node["inputs"][name]  # the masks and the timeline
    sheets = [n for n, node in twin.items() if node["class_type"] == "PreviewImage" and "images" not in node["inputs"]]
    return {name: node for name, node in twin.items() if name not in bypassed and name not in sheets}


class Maker:
    """Builds one graph. info: /object_info of the server, so that nodes that a version lacks are left out."""

    def __init__(self, info: Mapping[str, Any], seed: str) -> None:
        self.info, self.random = info, random.Random(seed)
        self.graph = Graph()

    # --- small words

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def pick(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def there_is(self, kind: str) -> bool:
        return kind in self.info

    def add(self, kind: str, /, **values: Any) -> Link:
        """A node with these inputs, the others at their defaults; its first output."""
        inputs = {}
        for name, spec in inputs_of(self.info[kind]).items():
            options = spec[1] if len(spec) > 1 else {}
            if name in values:
                inputs[name] = values[name]
            elif "default" in options:
                inputs[name] = options["default"]
            elif options_of(spec):
                inputs[name] = options_of(spec)[0]
        name = str(len(self.graph.prompt) + 1)
        self.graph.prompt[name] = {"class_type": kind, "inputs": inputs}
        return [name, 0]

    @staticmethod
    def output(link: Link, number: int) -> Link:
        return [link[0], number]

    def demos(self) -> dict[str, Link]:
        """The loaders of the models that ship, by network: in every graph, else ComfyUI would forget what they loaded."""
        networks = options_of(inputs_of(self.info["AsynDM_DemoModel"])["network"])
        return {network: self.add("AsynDM_DemoModel", network=network) for network in networks}

    # --- the parts of a graph

    def make(self) -> Graph:
        graph, rng = self.graph, self.random
        graph.idle, graph.preview = self.chance(0.12), self.chance(0.3)
        if not graph.idle and self.chance(0.3):
            graph.fault = self.pick("oom", "oom", "cancel", "cancel", "error")
        self.advanced = self.chance(0.5)  # Apply AsynDM instead of AsynDM KSampler
        self.paper = self.chance(0.08)
        demos = self.demos()
        graph.model = network = self.pick(*demos)
        demo = model = demos[network]
        self.flow = network == "transformer"
        self.clip, self.vae = self.output(demo, 1), self.output(demo, 2)
        self.frames = 0
        if network == "transformer" and self.chance(0.5):
            if self.chance(0.5):
                graph.model, self.frames = "clip", self.pick(1, 2, 3, 5)
            tiny = "Stress_TinyClip" if self.frames else "Stress_TinyTransformer"
            model = self.add(tiny, model=demo, kind=self.pick(*options_of(inputs_of(self.info[tiny])["kind"])))
        elif network == "unet" and self.chance(0.25):
            model = self.add("Stress_TinySDXL", model=demo)
        height, width = (FACTOR * self.pick(8, 8, 8, 9, 10, 11, 12, 13, 16, 17) for _ in range(2))
        if self.chance(0.03):
            height = 320
        self.height, self.width, self.batch = height, width, self.pick(1, 1, 1, 2, 3)
        self.has_noise_mask = False
        latent = self.latents()
        positive, timestep_map = self.words_and_map()
        negative = self.negative()
        for _ in range(self.pick(0, 0, 0, 1, 1, 2)):
            model = self.patched(model, negative)
        fault_first = self.chance(0.5)
        if graph.fault and fault_first:
            model = self.faulty(model)
        self.bare, self.map_inputs = model, graph.prompt[timestep_map[0]]["inputs"]
        if self.advanced:
            model = self.add("AsynDM_Apply", model=model, timestep_map=timestep_map, preview=self.chance(0.6))
            if self.chance(0.2):
                model = self.patched(model, negative)
        if graph.fault and not fault_first:
            model = self.faulty(model)
        sampled = self.sampled(model, timestep_map, positive, negative, latent, rng.randrange(2**32))
        self.seen(sampled)
        return graph

    def faulty(self, model: Link) -> Link:
        where = self.pick(*options_of(inputs_of(self.info["Stress_Fault"])["where"]))
        call = self.random.randint(1, 60 if where in ("attn1", "attn2", "output_block") else 1 if where == "sampler" else 10)
        return self.add("Stress_Fault", model=model, what=self.graph.fault, where=where, call=call)

    def mask(self, batch: int | None = None) -> Link:
        """Painted at the picture's size, at the latents' size, or of other proportions; one or several."""
        kind = self.pick("painted", "painted", "painted", "grey", "noisy", "empty", "full")
        if self.chance(0.04) and not self.graph.idle:
            kind = "nan"
            self.graph.reasons.add("mask values")
        sizes = [(self.width, self.height), (self.width // FACTOR, self.height // FACTOR), (100, 37), (1, 1)]
        width, height = self.pick(*sizes[:2], *sizes)
        made = self.add("Stress_Mask", kind=kind, width=width, height=height, batch=batch or self.pick(1, 1, 1, 2, 5),
                        seed=self.random.randrange(2**32))  # fmt: skip
        if self.chance(0.15) and self.there_is("InvertMask"):
            made = self.add("InvertMask", mask=made)
        return made

    def latents(self) -> Link:
        """Empty or a picture's; with a noise mask or without; one or a batch; as a clip where the model is one of clips."""
        made, batch = None, self.batch
        if self.chance(0.5):
            made = self.add("EmptyLatentImage", width=self.width, height=self.height, batch_size=batch)
        else:
            count = batch if self.chance(0.5) else 1
            image = self.add("Stress_Image", width=self.width, height=self.height, batch=count,
                             seed=self.random.randrange(2**32))  # fmt: skip
            if self.chance(0.2):
                made = self.add("VAEEncodeForInpaint", pixels=image, vae=self.vae, mask=self.mask(batch=1), grow_mask_by=6)
                self.has_noise_mask = True
            else:
                made = self.add("VAEEncode", pixels=image, vae=self.vae)
            if count < batch:
                made = self.add("RepeatLatentBatch", samples=made, amount=batch)
        if self.chance(0.2):
            made = self.add("SetLatentNoiseMask", samples=made, mask=self.mask())
            self.has_noise_mask = True
        if self.chance(0.05):
            made = self.add("LatentBatchSeedBehavior", samples=made, seed_behavior="fixed")
        return self.add("Stress_Frames", latent=made, frames=self.frames) if self.frames else made

    def text(self) -> tuple[str, list[str]]:
        """A prompt, and the phrases of it that may be targets."""
        phrases = [f"{self.pick(*COLOURS)} {thing}" for thing in self.random.sample(THINGS, self.pick(1, 2, 2, 3))]
        written = [f"{self.pick(*COUNTS)} {phrase}" for phrase in phrases]
        if self.chance(0.2):
            written[0] = f"({written[0]}:{self.pick(0.8, 1.3, -0.5)})"
        text = f"{' and '.join(written)} {self.pick(*PLACES)}".strip()
        if self.chance(0.1):
            text = ", ".join([text] * 12)  # more than 77 tokens
        if self.chance(0.1):
            text += self.pick(" \U0001f98a", " مرحبا", " é̂", ", embedding:nothing", " BREAK \\(x\\)", "\n\n")
        return text, phrases

    def targets(self, phrases: list[str]) -> str:
        if self.chance(0.15):
            return self.pick("", " ", ", ,\n")
        chosen = self.random.sample(phrases, self.random.randint(1, len(phrases)))
        typed = []
        for phrase in chosen:
            words = self.pick(phrase, phrase, phrase.split()[-1])
            weight = "" if self.graph.idle else self.pick("", "", "", ":0.4", ":0", ":1", " : .5")
            typed.append(words + weight)
        if not self.graph.idle and self.chance(0.06):
            word, reason = self.pick(("zebra", "unknown word"), (f"{chosen[0]}:1.5", "strength"), (typed[0], "twice"))
            if reason == "strength":
                typed = []  # else it may be said first that the word is listed twice
            typed.append(word)
            self.graph.reasons.add(reason)
        return self.pick(", ", ",", "\n").join(typed)

    def words_and_map(self) -> tuple[Link, Link]:
        """The positive conditioning and the timestep map."""
        rng, graph = self.random, self.graph
        text, phrases = self.text()
        mode = "synchronous" if graph.idle and self.chance(0.5) else None
        positive = timestep_map = None
        denoise = [1.0, 1.0]
        if not graph.idle and self.chance(0.2):
            denoise = [self.pick(0.0, 0.3, 0.6, 1.0), self.pick(0.0, 0.3, 0.6, 1.0)]
        self.level = denoise == [1.0, 1.0]
        update = "fixed" if self.chance(0.2) else "every step"
        preset = "paper" if self.paper else "default"
        known_pixels = "noised" if graph.idle else self.pick(*KNOWN_PIXELS)
        lead = self.pick(0.0, 0.2, 0.2, 1.0, round(rng.random(), 2))
        if self.paper and (known_pixels == "clean" or (known_pixels == "ahead" and lead > 0)):
            graph.reasons.add("paper")
        for number in range(self.pick(1, 1, 1, 1, 2, 3)):
            words: dict[str, Any] = {"clip": self.clip, "text": text, "targets": self.targets(phrases)}
            words |= {"threshold": self.pick(1.0, 1.0, 0.0, 0.8, 1.6, 10.0), "update": update}
            words |= {"grow": self.pick(0, 0, 0, 1, -1, 3, 64, -64), "feather": self.pick(0.0, 0.0, 0.0, 0.05, 1.5, 8.0, 64.0)}
            words |= {"hold": self.pick(0, 0, 0, 1, 64), "fade": self.pick(0, 0, 0, 2, 64), "mask_mode": self.pick(*MASK_MODES)}
            masked = self.chance(0.35)
            if masked:
                words["mask"] = self.mask()
            if number > 0 or self.chance(0.1):
                source = positive if positive is not None else self.add("CLIPTextEncode", clip=self.clip, text=text)
                words["conditioning"] = source
            made = self.add("AsynDM_CrossAttentionMask", **words)
            if not (masked and words["mask_mode"] == "replace"):
                positive = made
            elif positive is None:
                positive = self.add("CLIPTextEncode", clip=self.clip, text=text)
            schedule = {
                "regions": self.output(made, 1),
                "curve": self.pick(*CURVES),
                "strength": 0.0 if graph.idle and mode is None else self.pick(0.0, 0.3, 0.7, 0.7, 1.0, round(rng.random(), 2)),
                "mode": mode or ("asynchronous" if graph.idle or self.chance(0.8) else self.pick(*MODES)),
                "preset": preset, "region_denoise": denoise[0], "background_denoise": denoise[1],
            }  # fmt: skip
            schedule |= {"known_pixels": known_pixels, "lead": lead}
            if number > 0:
                schedule["previous"] = timestep_map
                if not graph.idle and self.chance(0.06):
                    schedule["background_denoise"] = 0.45
                    self.level = False
                    graph.reasons.add("chain")
            if self.paper and not self.level:
                graph.reasons.add("paper")
            timestep_map = self.add("AsynDM_TimestepMap", **schedule)
        if not graph.idle and self.chance(0.02):
            positive = self.add("CLIPTextEncode", clip=self.clip, text=text)
            graph.reasons.add("unmarked")
        for _ in range(self.pick(0, 0, 0, 0, 1, 1, 2)):
            positive = self.changed(positive)
        return positive, timestep_map

    def changed(self, positive: Link) -> Link:
        """The conditioning after one of ComfyUI's nodes for it."""

        def other() -> Link:
            return self.add("CLIPTextEncode", clip=self.clip, text=self.text()[0])

        kind = self.pick("combine", "concat", "average", "area", "area", "percent", "mask", "range", "strength")
        if kind == "combine":
            return self.add("ConditioningCombine", conditioning_1=positive, conditioning_2=other())
        if kind == "concat":
            return self.add("ConditioningConcat", conditioning_to=positive, conditioning_from=other())
        if kind == "average":
            return self.add("ConditioningAverage", conditioning_to=positive, conditioning_from=other(),
                            conditioning_to_strength=round(self.random.random(), 2))  # fmt: skip
        if kind == "range":
            start = self.pick(0.0, 0.0, 0.3)
            made = self.add("ConditioningSetTimestepRange", conditioning=positive, start=start, end=self.pick(0.5, 0.8, 1.0))
            return self.add("ConditioningCombine", conditioning_1=made, conditioning_2=other())
        strength = self.pick(1.0, 0.5)
        if kind in ("area", "percent") and self.frames:
            made = self.add("ConditioningSetAreaPercentageVideo", conditioning=positive, width=0.6, height=0.5, temporal=1.0,
                            x=self.pick(0.0, 0.4), y=self.pick(0.0, 0.5), z=0.0, strength=strength)  # fmt: skip
        elif kind == "area":
            x, y = FACTOR * self.pick(0, 0, 2, 3), FACTOR * self.pick(0, 0, 1, 4)
            made = self.add("ConditioningSetArea", conditioning=positive, width=max(64, self.width // 2 // 8 * 8), height=64,
                            x=x, y=y, strength=strength)  # fmt: skip
        elif kind == "percent":
            made = self.add("ConditioningSetAreaPercentage", conditioning=positive, width=0.6, height=0.5,
                            x=self.pick(0.0, 0.4), y=self.pick(0.0, 0.5), strength=strength)  # fmt: skip
        elif kind == "mask":
            made = self.add("ConditioningSetMask", conditioning=positive, mask=self.mask(), strength=strength,
                            set_cond_area=self.pick("default", "mask bounds"))  # fmt: skip
        else:
            return self.add("ConditioningSetAreaStrength", conditioning=positive, strength=strength)
        return self.add("ConditioningCombine", conditioning_1=made, conditioning_2=other()) if self.chance(0.7) else made

    def negative(self) -> Link:
        made = self.add("CLIPTextEncode", clip=self.clip, text=self.pick("", "", "a red house", "grey " * 90))
        return self.add("ConditioningZeroOut", conditioning=made) if self.chance(0.15) else made

    PATCHES: tuple[tuple[str, dict[str, Any]], ...] = (
        ("PerturbedAttentionGuidance", {}),
        ("SelfAttentionGuidance", {}),
        ("RescaleCFG", {}),
        ("TemporalScoreRescaling", {}),
        ("NAGuidance", {}),
        ("APG", {}),
        ("CFGZeroStar", {}),
        ("TCFG", {}),
        ("FreSca", {}),
        ("Mahiro", {}),
        ("EpsilonScaling", {"scaling_factor": 1.01}),
        ("EasyCache", {}),
        ("LazyCache", {}),
        ("DifferentialDiffusion", {}),
        ("PerpNeg", {}),
        ("CFGNorm", {}),
    )
    UNET_PATCHES: tuple[tuple[str, dict[str, Any]], ...] = (
        ("FreeU", {}),
        ("FreeU_V2", {}),
        ("TomePatchModel", {}),
        ("HyperTile", {"tile_size": 64}),
        ("PatchModelAddDownscale", {"block_number": 1}),
        ("UNetCrossAttentionMultiply", {"q": 1.1}),
        ("UNetSelfAttentionMultiply", {"v": 0.9}),
        ("ModelSamplingDiscrete", {}),
        ("ModelSamplingContinuousEDM", {"sampling": "eps"}),
    )
    FLOW_PATCHES: tuple[tuple[str, dict[str, Any]], ...] = (
        ("ModelSamplingSD3", {"shift": 3.0}),
        ("ModelSamplingFlux", {}),
        ("SkipLayerGuidanceDiT", {"double_layers": "1", "single_layers": "1", "rescaling_scale": 0.2}),
    )
    """ComfyUI's patches of a MODEL, and inputs that fit small models: those for all, for UNets, and for flows."""

    def patched(self, model: Link, empty: Link) -> Link:
        kind, values = self.pick(*self.PATCHES, *(self.FLOW_PATCHES if self.flow else self.UNET_PATCHES))
        if not self.there_is(kind):
            return model
        if kind == "PerpNeg":
            values = {"empty_conditioning": empty}
        if kind.startswith("ModelSampling"):
            # The scheduler's table is then another; no reason to be refused, but for the paper's.
            self.graph.reasons |= {"paper"} if self.paper else set()
        return self.add(kind, model=model, **values)

    def sampler_name(self, names: list[str]) -> str:
        name = self.pick(*names)
        if self.chance(0.6):
            name = self.pick(*(n for n in names if n in SAMPLERS))
        if self.paper and self.chance(0.8):
            name = "ddim"
        if name not in SAMPLERS:
            self.graph.reasons.add("sampler")
        return name

    def scheduler(self, names: list[str]) -> str:
        name = "ddim_uniform" if self.paper and self.chance(0.8) else self.pick(*names)
        if self.paper and name != "ddim_uniform":
            self.graph.reasons.add("paper")
        return name

    def sampled(self, model: Link, timestep_map: Link, positive: Link, negative: Link, latent: Link, seed: int) -> Link:
        """Through one of the sampler nodes; sometimes enlarged and sampled again."""
        listed = inputs_of(self.info["KSampler" if self.advanced else "AsynDM_KSampler"])
        steps = self.pick(1, 2, 2, 3, 3, 4, 4, 5, 6, 7, 9, 12)
        if self.paper and steps < 4:
            self.graph.reasons.add("paper")  # one step is no table; few are not evenly spaced
        common = {
            "steps": steps, "cfg": self.pick(4.5, 4.5, 7.0, 1.0, 0.0, 30.0),
            "sampler_name": self.sampler_name(options_of(listed["sampler_name"])),
            "scheduler": self.scheduler(options_of(listed["scheduler"])),
            "positive": positive, "negative": negative, "latent_image": latent,
        }  # fmt: skip
        if common["scheduler"] == "kl_optimal" and steps == 1:
            self.graph.reasons.add("no numbers")
        denoise = self.pick(1.0, 1.0, 1.0, 0.7, 0.3, 0.05, 0.0)
        if self.paper and denoise < 1:
            self.graph.reasons.add("paper")
        if not self.advanced:
            eta = 0.0 if self.graph.idle else self.pick(1.0, 1.0, 0.5, 0.0)
            return self.add("AsynDM_KSampler", model=model, timestep_map=timestep_map, seed=seed, denoise=denoise, eta=eta,
                            preview=self.chance(0.6), **common)  # fmt: skip
        way = self.pick("KSampler", "KSampler", "KSamplerAdvanced", "custom", "guider", "guider", "twice")
        if way == "KSampler":
            return self.add("KSampler", model=model, seed=seed, denoise=denoise, **common)
        if way == "KSamplerAdvanced":
            return self.in_stages(model, seed, common)
        if way == "twice":
            first = self.add("KSampler", model=model, seed=seed, **common)
            self.height, self.width = self.height + 32, self.width + 32
            larger = self.add("LatentUpscale", samples=first, upscale_method="bilinear", width=self.width, height=self.height,
                              crop="disabled")  # fmt: skip
            if self.paper:
                self.graph.reasons.add("paper")
            return self.add("KSampler", model=model, seed=seed, denoise=0.5, **{**common, "latent_image": larger})
        return self.custom(way, model, seed, common, denoise)

    def in_stages(self, model: Link, seed: int, common: dict[str, Any]) -> Link:
        """KSampler (Advanced): a part of the steps; or both parts, one after the other."""
        steps = common["steps"]
        split = self.random.randint(0, steps)
        if self.paper:
            self.graph.reasons.add("paper")
        values = {"model": model, "noise_seed": seed, **common}
        if self.chance(0.5):
            add_noise = self.pick("enable", "enable", "disable")
            if add_noise == "disable" and not self.level:
                self.graph.reasons.add("noise")
            return self.add("KSamplerAdvanced", add_noise=add_noise, start_at_step=split,
                            end_at_step=self.pick(10000, steps, self.random.randint(0, steps)),
                            return_with_leftover_noise=self.pick("enable", "disable"), **values)  # fmt: skip
        if self.chance(0.5):  # with one clock
            self.map_inputs["sigmas"] = self.add("BasicScheduler", model=self.bare, scheduler=common["scheduler"], steps=steps)
            if not self.level:
                self.graph.reasons.add("whole table")
        first = self.add("KSamplerAdvanced", add_noise="enable", start_at_step=0, end_at_step=split,
                         return_with_leftover_noise="enable", **values)  # fmt: skip
        if not self.level:
            self.graph.reasons.add("noise")
        return self.add("KSamplerAdvanced", add_noise="disable", start_at_step=split, end_at_step=10000,
                        return_with_leftover_noise="disable", **{**values, "latent_image": first})  # fmt: skip

    def sigmas(self, model: Link, common: dict[str, Any], denoise: float) -> Link:
        steps, graph = common["steps"], self.graph
        kind = self.pick("BasicScheduler", "BasicScheduler", "KarrasScheduler", "ExponentialScheduler", "SDTurboScheduler",
                         "BetaSamplingScheduler", "LaplaceScheduler", "PolyexponentialScheduler", "VPScheduler",
                         "AlignYourStepsScheduler", "ManualSigmas")  # fmt: skip
        takes_model = "model" in inputs_of(self.info.get(kind, self.info["BasicScheduler"]))
        foreign = self.flow and (not takes_model or kind == "SDTurboScheduler")  # that one counts in timesteps of 1000
        if not self.there_is(kind) or foreign:  # on a flow model ComfyUI's own dpmpp_sde never ends with those sigmas
            kind = "BasicScheduler"
        names = inputs_of(self.info[kind])
        values: dict[str, Any] = {"model": model} if "model" in names else {}
        if kind == "BasicScheduler":
            values |= {"scheduler": common["scheduler"], "denoise": denoise}
        if kind == "SDTurboScheduler":
            steps = min(steps, 10)
        if kind == "ManualSigmas":
            values["sigmas"] = self.pick("14.6, 7, 3, 1, 0", "1, 0.5", "0", "")
        elif kind == "AlignYourStepsScheduler":
            values["steps"] = max(steps, 10)
        else:
            values["steps"] = steps
        if self.paper and kind != "BasicScheduler":
            graph.reasons.add("paper")
        made = self.add(kind, **values)
        more = self.pick("", "", "", "", "SplitSigmas", "SplitSigmasDenoise", "FlipSigmas", "SetFirstSigma")
        if more and self.there_is(more) and not (more == "SetFirstSigma" and self.flow):
            if self.paper:
                graph.reasons.add("paper")
            if more in ("FlipSigmas", "SetFirstSigma"):
                graph.reasons.add("rises")
            more_values = {
                "SplitSigmas": {"step": self.random.randint(0, steps)}, "SplitSigmasDenoise": {"denoise": 0.5},
                "SetFirstSigma": {"sigma": self.pick(20.0, 3.0)},
            }.get(more, {})  # fmt: skip
            made = self.add(more, sigmas=made, **more_values)
            if more.startswith("Split"):
                made = self.output(made, self.pick(0, 1))
        return made

    def custom(self, way: str, model: Link, seed: int, common: dict[str, Any], denoise: float) -> Link:
        """SamplerCustom, or SamplerCustomAdvanced with one of the guiders."""
        graph, cfg = self.graph, common["cfg"]
        positive, negative, latent = common["positive"], common["negative"], common["latent_image"]
        sigmas = self.sigmas(model, common, denoise)
        kind = self.pick("KSamplerSelect", "KSamplerSelect", "KSamplerSelect", "SamplerDPMPP_2M_SDE", "SamplerDPMPP_3M_SDE",
                         "SamplerDPMPP_SDE", "SamplerEulerAncestral", "SamplerDPMPP_2S_Ancestral", "SamplerLMS",
                         "SamplerEulerAncestralCFGPP")  # fmt: skip
        values = {"sampler_name": common["sampler_name"]} if kind == "KSamplerSelect" else {}
        if "eta" in inputs_of(self.info[kind]):
            values = {"eta": self.pick(0.0, 0.5, 1.0)}
        sampler = self.add(kind, **values)
        add_noise = self.chance(0.85)
        if not add_noise and not self.level:
            graph.reasons.add("noise")
        if way == "custom":
            return self.add("SamplerCustom", model=model, add_noise=add_noise, noise_seed=seed, cfg=cfg, positive=positive,
                            negative=negative, sampler=sampler, sigmas=sigmas, latent_image=latent)  # fmt: skip
        noise = self.add("RandomNoise", noise_seed=seed) if add_noise else self.add("DisableNoise")
        guide = self.pick("CFGGuider", "CFGGuider", "BasicGuider", "DualCFGGuider", "PerpNegGuider")
        if guide == "BasicGuider":
            graph.reasons.add("uncond")
            guider = self.add("BasicGuider", model=model, conditioning=positive)
        elif guide == "DualCFGGuider":
            first, second = positive, self.add("CLIPTextEncode", clip=self.clip, text="a blue star")
            if self.chance(0.5):
                first, second = second, first
            guider = self.add("DualCFGGuider", model=model, cond1=first, cond2=second, negative=negative, cfg_conds=cfg)
        elif guide == "PerpNegGuider":
            guider = self.add("PerpNegGuider", model=model, positive=positive, negative=negative,
                              empty_conditioning=self.add("CLIPTextEncode", clip=self.clip, text=""), cfg=cfg)  # fmt: skip
        else:
            guider = self.add("CFGGuider", model=model, positive=positive, negative=negative, cfg=cfg)
        return self.add("SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=sigmas,
                        latent_image=latent)  # fmt: skip

    def seen(self, sampled: Link) -> None:
        """What looks at the picture."""
        decode = "VAEDecode" if self.chance(0.95) or self.frames else "VAEDecodeTiled"
        image = self.add(decode, samples=sampled, vae=self.vae)
        more = {}
        if not self.advanced:
            more["mask"] = self.output(sampled, 1)
            if self.chance(0.3):
                self.add("PreviewImage", images=self.output(sampled, 2))
        self.add("Stress_Result", latent=sampled, image=image, **more)
        if self.chance(0.1):
            self.add("AsynDM_Compare", image_a=image, image_b=image)
        frames = (self.frames,) if self.frames else ()
        self.graph.size = (self.batch, *frames, self.height // FACTOR, self.width // FACTOR)


def make(info: Mapping[str, Any], seed: int, number: int) -> Graph:
    """Graph ``number`` of the series ``seed``."""
    return Maker(info, f"{seed}/{number}").make()
