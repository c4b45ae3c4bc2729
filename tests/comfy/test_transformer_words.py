"""What AsynDM reads of a transformer's attention is its attention to the words, at the picture's tokens.

Where both are is found anew, from outside: with attention made identity, a token stays what it was, so another vector in the
conditioning changes the word's keys, and another pixel its token's query.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any, NamedTuple

import comfy.model_patcher
import comfy.sample
import comfy.supported_models
import comfyui_version
import pytest
import torch
from asyndm_pack.asyndm_core.regions import Regions, Target, TimestepMap
from asyndm_pack.asyndm_core.run import Snapshot
from asyndm_pack.nodes.comfy.conditioning import ANNOTATION, Annotation
from asyndm_pack.nodes.comfy.families import family_of
from asyndm_pack.nodes.comfy.sampling import Options, apply
from asyndm_pack.nodes.cross_attention_mask import CrossAttentionMask
from asyndm_pack.nodes.ksampler import AsynDMKSampler
from asyndm_pack.nodes.timestep_map import TimestepMapNode
from families import MODELS, ONE_AT_A_TIME, empty, prompt, random, transformer
from test_text_encoders import clip
from tiny import FOX_AND_HAT, ksampler, same
from torch import Tensor

import nodes as comfy_nodes

PLAIN = [
    "Z-Image", "Flux.1 dev", "Qwen-Image", "Stable Diffusion 3", "Flux.2 dev", "Krea 2", "Anima with T5's tokens",
    "Wan 2.1 and 2.2 T2V",
]  # fmt: skip
READABLE = [name for name in MODELS if name != "Z-Image with its text encoder"]
READ = [name if name in PLAIN else pytest.param(name, marks=pytest.mark.whole) for name in READABLE]
WITHOUT_OPTIONS = {
    "ERNIE-Image": "ernie.model", "PixArt Sigma": "pixart.blocks", "PixArt Alpha": "pixart.blocks",
    "HunyuanDiT": "hydit.attn_layers",
}  # fmt: skip
"""Families whose networks hand no options to their attention, so that no override reaches it, and the modules that call it."""
WORDS: dict[str, tuple[int, ...]] = {"fox": (3,), "hat": (5, 6)}
SECOND: dict[str, str] = {
    "HiDream-I1": "conditioning_llama3", "HiDream-E1": "conditioning_llama3", "HunyuanDiT": "conditioning_mt5xl",
}  # fmt: skip
"""Families that have further rows of text: a word is there too, one row later."""
SIZED = frozenset({
    "HiDream-E1", "Wan 2.1 and 2.2 I2V", "Wan Fun with a reference", "Wan Phantom", "Wan Animate", "Wan HuMo", "Wan S2V",
    "Wan SCAIL", "Wan SCAIL-2",
})  # fmt: skip
"""Families whose conditioning here is of one size."""
OTHERS = {"Wan VACE": 2}
"""Families in which each block that is read is the first of so many that see the words."""


@pytest.fixture(scope="module", autouse=True)
def _tokens_of_their_own() -> None:
    """Anima's tokens of T5 attend to each other in a network before the model: not here."""
    if hasattr(comfy.supported_models, "Anima"):
        for name, parameter in transformer("Anima with T5's tokens").model.diffusion_model.named_parameters():
            if name.startswith("llm_adapter") and "o_proj" in name:
                parameter.data = torch.zeros_like(parameter)


class Seen(NamedTuple):
    """One call of attention: query (B, heads, queries, d), key, what is added to the scores, their scale, and each chunk's
    group."""

    query: Tensor
    key: Tensor
    mask: Tensor | None
    scale: float
    groups: list[int]


class Record:
    """Another pack's override: keeps what is attended to. identity: and lets every token stay what it is."""

    def __init__(self, identity: bool = False) -> None:
        self.calls: list[Seen] = []
        self.identity = identity
        self.groups: list[int] = []

    def __call__(self, attention: Any, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        heads = args[0] if args else kwargs["heads"]
        mask = args[1] if len(args) > 1 else kwargs.get("mask")
        separate = kwargs.get("skip_reshape", False)
        width = q.shape[-1] if separate else q.shape[-1] // heads
        query, key = (each if separate else each.unflatten(-1, (-1, width)).transpose(1, 2) for each in (q, k))
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        groups = list(kwargs.get("transformer_options", {}).get("cond_or_uncond", self.groups))
        self.calls.append(Seen(query.clone(), key.clone(), mask, kwargs.get("scale") or width**-0.5, groups))
        if not self.identity:
            return attention(q, k, v, *args, **kwargs)
        value = v if separate else v.unflatten(-1, (-1, width)).transpose(1, 2)
        value = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        output = value if query.shape[2] == key.shape[2] else torch.zeros_like(query)
        return output if kwargs.get("skip_output_reshape") else output.transpose(1, 2).flatten(2)


def overridden(patched: comfy.model_patcher.ModelPatcher, override: Any) -> comfy.model_patcher.ModelPatcher:
    patched = patched.clone()
    function = lambda *args, **kwargs: override(*args, **kwargs)  # noqa: E731 (a copy of the options copies objects, before 0.33)
    patched.model_options["transformer_options"]["optimized_attention_override"] = function
    return patched


@contextmanager
def told_of(record: Record, name: str) -> Iterator[None]:
    """While it lasts, a record is kept also of attention that no override reaches."""
    if name not in WITHOUT_OPTIONS:
        yield
        return
    module = importlib.import_module(f"comfy.ldm.{WITHOUT_OPTIONS[name]}")
    own = module.optimized_attention

    def note(network: Any, args: tuple, kwargs: dict) -> None:
        record.groups = list(kwargs["transformer_options"]["cond_or_uncond"])

    handle = transformer(name).model.diffusion_model.register_forward_pre_hook(note, with_kwargs=True)
    module.optimized_attention = lambda *args, **kwargs: record(own, *args, **kwargs)
    try:
        yield
    finally:
        module.optimized_attention = own
        handle.remove()


def patch_of(name: str) -> tuple[int, ...]:
    """The extent of a token along each dimension of a family's latents."""
    network = transformer(name).model.diffusion_model
    return family_of(network).patch_of(network, 3 if MODELS[name].frames > 1 else 2)


def picture(name: str, batch: int = 1) -> dict[str, Any]:
    """A LATENT of 4 x 5 tokens, the last row of them cut off where the family takes that; as large as what is beside it."""
    if name in SIZED:
        return empty(name, batch)
    if name.startswith("PixArt"):
        return empty(name, batch, (8, 60))  # smaller ones it can't place
    height, width = patch_of(name)[-2:]
    return empty(name, batch, (4 * height - (name in PLAIN and height == 2), 5 * width))


def words_of(name: str) -> dict[str, tuple[int, ...]]:
    if name not in SECOND:
        return WORDS
    tokens = MODELS[name].tokens
    return {word: (*rows, *(tokens + row + 1 for row in rows)) for word, rows in WORDS.items()}


def marked(name: str, seed: int = 5) -> list:
    """A CONDITIONING as Cross-Attention Mask marks it."""
    ((tensor, options),) = prompt(name, seed)
    more = options[SECOND[name]].shape[-2] if name in SECOND else 0
    return [[tensor, {**options, ANNOTATION: Annotation(words_of(name), tensor.shape[1] + more)}]]


def with_other_rows(name: str, rows: Sequence[int]) -> list:
    """The same with other vectors (or tokens) in some rows."""
    ((tensor, options),) = marked(name)
    tensor, options = tensor.clone(), dict(options)
    if "t5xxl_ids" in options:
        ids = options["t5xxl_ids"].clone()
        ids[list(rows)] += 100
        return [[tensor, {**options, "t5xxl_ids": ids}]]
    own = [row for row in rows if row < tensor.shape[1]]
    tensor[:, own] += random(len(own), tensor.shape[-1], seed=9)
    if name in SECOND:
        more = options[SECOND[name]].clone()
        more[..., [row - tensor.shape[1] for row in rows if row >= tensor.shape[1]], :] += 1
        options[SECOND[name]] = more
    return [[tensor, options]]


def recorded(name: str, positive: list, noise: Tensor) -> list[Seen]:
    """One prediction with attention made identity."""
    record = Record(identity=True)
    patched = overridden(transformer(name), record)
    with told_of(record, name):
        comfy.sample.sample(
            patched, noise, 1, 1.0, "euler", "simple", positive, prompt(name, 6), torch.zeros_like(noise),
            disable_pbar=True, seed=1,
        )  # fmt: skip
    return record.calls


def changed(first: Tensor, second: Tensor, most: int | None = None) -> list[int]:
    """The tokens (B, heads, tokens, d) whose vectors differ, or so many that differ most."""
    difference = (first - second).abs().amax(dim=(0, 1, 3))
    if difference.amax() <= 1e-6:
        return []
    if most is not None:
        return sorted(difference.topk(min(most, len(difference))).indices.tolist())
    return (difference > 1e-3 * difference.amax()).nonzero()[:, 0].tolist()


class Provenance(NamedTuple):
    """Of each call: the queries of the picture's tokens in their order, and the keys of each word; of none that lacks any."""

    queries: list[list[int] | None]
    keys: dict[str, list[list[int]]]

    @property
    def read(self) -> list[int]:
        """The calls in which the picture sees the words, one a block."""
        return [n for n, q in enumerate(self.queries) if q is not None and all(keys[n] for keys in self.keys.values())]


def provenance(name: str) -> Provenance:
    """By another vector in each word, and by another pixel in each token."""
    noise = random(*picture(name)["samples"].shape, seed=8)
    base = recorded(name, marked(name), noise)
    keys = {}
    for word, rows in words_of(name).items():
        other = recorded(name, with_other_rows(name, rows), noise)
        mean_of_all = name.startswith(("HunyuanImage", "HunyuanVideo", "Mochi"))  # modulates their text
        found = [changed(a.key, b.key, len(rows) if mean_of_all else None) for a, b in zip(base, other, strict=True)]
        keys[word] = [
            rows if len(rows) < call.key.shape[2] else [] for rows, call in zip(found, base, strict=True)
        ]  # HunyuanDiT tells the picture of all its text at once
    patch = patch_of(name)
    size = noise.shape[-len(patch) :]
    starts = product(*(range(0, whole, extent) for whole, extent in zip(size, patch, strict=True)))
    grid = [  # the last pixel of each token: an edge is padded with the first pixels
        tuple(min(first + extent, whole) - 1 for first, extent, whole in zip(start, patch, size, strict=True))
        for start in starts
    ]
    batch = noise.repeat(1 + len(grid), *[1] * (noise.ndim - 1))
    for n, place in enumerate(grid):
        batch[(1 + n, ..., *place)] += 4.0
    calls = recorded(name, marked(name), batch)
    queries: list[list[int] | None] = []
    for call in calls:
        found = [changed(call.query[:1], call.query[1 + n : 2 + n]) for n in range(len(grid))]
        queries.append([rows[0] for rows in found] if all(len(rows) == 1 for rows in found) else None)
    return Provenance(queries, keys)


def expected(call: Seen, queries: Sequence[int], keys: Sequence[int], grid: tuple[int, ...]) -> Tensor:
    """The mean probability of a word's keys, over heads, at every second row and column, its own mean being 1; float64."""
    batch = call.query.shape[0] // len(call.groups)
    rows = slice(call.groups.index(0) * batch, (call.groups.index(0) + 1) * batch)
    scores = call.query[rows].double() @ call.key[rows].double().transpose(-1, -2) * call.scale
    if call.mask is not None:
        mask = call.mask if call.mask.ndim == 4 else call.mask[:, None] if call.mask.ndim == 3 else call.mask[None, None]
        mask = mask if mask.shape[0] == 1 else mask[rows]
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask.double()
    shares = scores.softmax(dim=-1)[:, :, list(queries)][..., list(keys)].mean(dim=(1, 3)).unflatten(-1, grid)
    shares = shares[..., ::2, ::2]
    return shares / mean(shares)


def mean(maps: Tensor) -> Tensor:
    """The mean of each map (B, ...)."""
    return maps.mean(dim=tuple(range(1, maps.ndim)), keepdim=True)


def check(name: str, seen: Snapshot, calls: Sequence[Seen], places: Provenance) -> None:
    """A step's maps are the mean of the blocks that are read."""
    network = transformer(name).model.diffusion_model
    family = family_of(network)
    grid = tuple(-(-size // extent) for size, extent in zip(seen.x.shape[2:], patch_of(name), strict=True))
    read = places.read[:: OTHERS.get(name, 1)]
    blocks = [read[block] for block in sorted(family.reading.chosen(network))]
    for n, keys in enumerate(places.keys.values()):
        maps = [expected(calls[block], places.queries[block], keys[block], grid) for block in blocks]
        want = torch.stack(maps).mean(dim=0)
        got = seen.attention.shares[:, n]
        assert got.shape[1:] == grid and want.std() > 1e-3
        got = got[..., ::2, ::2].double()
        assert (got / mean(got) - want).abs().amax() < 2e-5 * max(1.0, float(want.amax())), name


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("negative", ["as long", "shorter"])
def test_it_is_the_attention_to_the_words(name: str, negative: str) -> None:
    """In every step, also where tokens are at different sigmas; another pack's override attends as it would without."""
    if name in ONE_AT_A_TIME.get(comfyui_version.__version__, ()):
        pytest.skip("this ComfyUI itself has one at a time")
    places = provenance(name)
    assert places.read and all(len(keys[n]) for keys in places.keys.values() for n in places.read)
    record, steps = Record(), []

    def on_step(snapshot: Snapshot) -> None:
        steps.append((snapshot, list(record.calls)))
        record.calls.clear()

    other = prompt(name, 6)
    if negative == "shorter":
        if MODELS[name].tokens != other[0][0].shape[1] or "attention_mask" in other[0][1] or name in SECOND:
            pytest.skip("its texts have one length")
        other[0][0] = other[0][0][:, :13]
    patched = apply(overridden(transformer(name), record), TimestepMap(FOX_AND_HAT), Options(on_step=on_step))
    run = {"scheduler": "simple", "steps": 6, "cfg": 3.0, "negative": other, "image": picture(name, 2)}
    with told_of(record, name):
        ksampler(patched, positive=marked(name), **run)
    assert len(steps) == 6 and any(snapshot.sigma.unique().numel() > 1 for snapshot, _ in steps)
    for snapshot, calls in steps:
        with_words = [call for call in calls if 0 in call.groups]
        assert len(with_words) == len(places.queries)
        check(name, snapshot, with_words, places)


@pytest.mark.parametrize("name", READ)
def test_a_run_that_is_only_watched_is_stock(name: str) -> None:
    """Bit for bit; and what is seen is not the same everywhere."""
    if name in ONE_AT_A_TIME.get(comfyui_version.__version__, ()):
        pytest.skip("this ComfyUI itself has one at a time")
    run = {"scheduler": "simple", "steps": 2, "cfg": 3.0, "negative": prompt(name, 6), "image": picture(name)}
    steps: list[Snapshot] = []
    none = Regions((Target("fox", 0.0), Target("hat", 0.0)))
    watched = apply(transformer(name), TimestepMap(none), Options(on_step=steps.append))
    assert same(ksampler(watched, positive=marked(name), **run), ksampler(transformer(name), positive=marked(name), **run))
    assert len(steps) == 2 and all(snapshot.attention.shares.std() > 1e-3 for snapshot in steps)


@pytest.mark.parametrize("name", WITHOUT_OPTIONS)
def test_networks_that_hand_no_options_on_are_left_as_they_were(name: str) -> None:
    """Also where a call fails, and where another pack has put a forward of its own in place."""
    network = transformer(name).model.diffusion_model
    (block, *_), within = getattr(network, family_of(network).reading.blocks[0]), family_of(network).reading.within
    attending = getattr(block, within)

    def fail(*_: Any) -> None:
        assert vars(attending)["forward"] is not other
        raise InterruptedError

    handle = block.register_forward_hook(fail)
    attending.forward = other = attending.forward
    try:
        with pytest.raises(InterruptedError):
            watched = apply(transformer(name), TimestepMap(FOX_AND_HAT))
            ksampler(watched, positive=marked(name), negative=prompt(name, 6), image=picture(name))
        assert vars(attending)["forward"] is other
    finally:
        handle.remove()
        del attending.forward
    assert not any("forward" in vars(module) for module in network.modules())


# --- from the nodes to the picture ----------------------------------------------------------------------------------------


def test_words_from_the_nodes_to_the_picture() -> None:
    """With Z-Image's own tokenizer: the words that are typed are followed where the model looks for them."""
    name, made = "Z-Image with its text encoder", clip("Z-Image")
    positive, regions = CrossAttentionMask.execute(
        clip=made,
        text="a red fox with a (blue hat:1.2) on ice",
        targets="fox, blue hat:0.3",
        threshold=1.0,
        update="every step",
    ).result
    (timestep_map,) = TimestepMapNode.execute(regions, "quadratic", 0.9, "asynchronous").result
    negative = made.encode_from_tokens_scheduled(made.tokenize("blurry"))
    run = (transformer(name), timestep_map, 7, 6, 3.0, "euler", "simple", positive, negative, picture(name), 1.0)
    samples = AsynDMKSampler.execute(*run).result[0]["samples"]
    stock = {"scheduler": "simple", "steps": 6, "cfg": 3.0, "positive": positive, "negative": negative, "image": picture(name)}
    assert samples.isfinite().all() and not same(samples, ksampler(transformer(name), **stock))
    steps: list[Snapshot] = []
    ksampler(apply(transformer(name), timestep_map, Options(on_step=steps.append)), **stock)
    assert any(0.05 < (snapshot.owner >= 0).float().mean() < 0.95 for snapshot in steps)
    places = positive[0][1][ANNOTATION].positions
    assert len(places["fox"]) == 1 and len(places["blue hat"]) == 2 and places["fox"] < places["blue hat"]


@pytest.mark.parametrize("name", ["Z-Image", "Qwen-Image"])
def test_a_prompt_with_an_area(name: str) -> None:
    """Its words have pixels there only, whatever the frames of the latents; beside it another prompt has none."""
    area, combine = comfy_nodes.ConditioningSetArea(), comfy_nodes.ConditioningCombine()
    image, steps = empty(name, 1, (16, 16)), []
    positive = combine.combine(area.append(marked(name), 64, 128, 64, 0, 1.0)[0], prompt(name, 7))[0]
    fox = Regions((Target("fox"),))
    patched = apply(transformer(name), TimestepMap(fox), Options(on_step=steps.append))
    ksampler(patched, scheduler="simple", steps=6, cfg=3.0, positive=positive, negative=prompt(name, 6), image=image)
    owned = [snapshot.owner[0] >= 0 for snapshot in steps]
    assert all(not each[:, :8].any() and each[:, 8:].any() for each in owned)
    assert any(0.05 < each[:, 8:].float().mean() < 0.95 for each in owned)
