"""Reading the words' attention of ComfyUI's diffusion transformers, through ComfyUI's own override of its attention.

A transformer has one kind of block for everything, and joins text and picture in one sequence or crosses them. The calls that
are read are told by their lengths: of queries and of keys. What a family's row says is in ``families.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import ceil, prod
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ...asyndm_core.attention import BlockMean, Sequences, spread_blocks
from ...asyndm_core.grid import TokenGrid

OVERRIDE = "optimized_attention_override"
"""ComfyUI's key in transformer_options of a function that is called in place of its attention, with it."""


class Call(NamedTuple):
    """One call of a network, as far as it decides where the words are.

    grid (h, w), of clips (t, h, w): the picture's tokens; head, tail: how many come before and after them in their stream.
    opens: whether that stream opens the sequences that it is a part of. text: rows of the conditioning as the network gets
    it, and rows as it was encoded, or more: where it has further ones, they are numbered on from those. inputs: what else
    the network is given.
    """

    network: nn.Module
    grid: tuple[int, ...]
    patch: tuple[int, ...]
    head: int
    tail: int
    opens: bool
    text: int
    rows: int
    inputs: Mapping[str, Any]

    @property
    def picture(self) -> int:
        """How many tokens the picture has."""
        return prod(self.grid)


class Span(NamedTuple):
    """A run of keys that are rows of the conditioning: the first key, the first row, how many."""

    key: int
    row: int
    count: int


class Place(NamedTuple):
    """Where words and picture are in the calls that are read. again: how many calls have these lengths for each that is
    read, which is the last of them; before: and how many come before all of them. between: the numbers of those among the
    rest that are of other blocks."""

    sequences: Sequences
    text: tuple[Span, ...]
    again: int = 1
    before: int = 0
    between: frozenset[int] = frozenset()


class Reading(NamedTuple):
    """How the words are read in the networks of one class.

    blocks: the attributes that hold the blocks in which pictures see text, in their order. choose: (network, how many blocks)
    -> which of them are read. place: where words and picture are. within: the attribute of a block that attends, where it
    does not hand ComfyUI's options to its attention.
    """

    blocks: tuple[str, ...]
    choose: Callable[[nn.Module, int], Collection[int]]
    place: Callable[[Call], Place]
    within: str | None = None

    def chosen(self, network: nn.Module) -> frozenset[int]:
        """The numbers of the blocks that are read."""
        return frozenset(self.choose(network, sum(len(getattr(network, name)) for name in self.blocks)))


def evenly(low: float, high: float, most: int) -> Callable[[nn.Module, int], Collection[int]]:
    """At most so many blocks, evenly spread over a part of the depth."""
    return lambda network, count: spread_blocks(count, low, high, most)


def late(low: float, most: int) -> Callable[[nn.Module, int], Collection[int]]:
    """The last blocks, at most so many, behind a part of the depth; at least one."""

    def choose(network: nn.Module, count: int) -> Collection[int]:
        return range(min(max(ceil(low * count), count - most), count - 1), count)

    return choose


def joint(call: Call, start: int = 0, between: int = 0, behind: int = 0, lead: int = 0) -> Place:
    """Text and picture in one sequence. start: tokens before both. between: after the text (or, where the picture opens the
    sequence, after the picture and its tail). behind: at the very end. lead: tokens of the text before its first row."""
    if call.opens:
        picture = start + call.head
        text = picture + call.picture + call.tail + between
        length = text + call.text + behind
    else:
        picture, text = start + call.text + between, start
        length = picture + call.picture + call.tail + behind
    return Place(Sequences(length, length, picture, call.grid), (Span(text + lead, 0, call.text - lead),))


def across(call: Call) -> Place:
    """The picture attends to the text in an attention of its own, after one to itself."""
    queries = call.head + call.picture + call.tail
    again = 2 if queries == call.text else 1
    return Place(Sequences(queries, call.text, call.head, call.grid), (Span(0, 0, call.text),), again)


def across_alone(call: Call) -> Place:
    """The same, where that attention alone is told of."""
    return across(call)._replace(again=1)


def across_beside_vace(call: Call) -> Place:
    """Wan VACE: after some of the blocks come blocks of each control video, which attend to the same text."""
    place, network = across(call), call.network
    of_controls, calls = [], 0
    for block in range(len(network.blocks)):
        calls += place.again
        more = place.again * call.inputs["vace_context"].shape[1] if block in network.vace_layers_mapping else 0
        of_controls.extend(range(calls, calls + more))
        calls += more
    return place._replace(between=frozenset(of_controls))


def across_beside_sound(call: Call) -> Place:
    """LTX-2: of a block's calls, in this order, the second is the clip's to the text; others may be of the same lengths."""
    shapes, reference = call.inputs.get("latent_shapes", ()), call.inputs.get("ref_audio")
    sound = shapes[1][2] if len(shapes) > 1 else 0
    sound += 0 if reference is None else reference["tokens"].shape[1]
    clip, text = call.head + call.picture + call.tail, call.text
    calls = [(clip, clip), (clip, text), (sound, sound), (sound, text), (clip, sound), (sound, clip)]
    alike = [number for number, lengths in enumerate(calls) if lengths == (clip, text)]
    blocks = range(len(call.network.transformer_blocks))
    others = (block * len(alike) + place for block in blocks for place, number in enumerate(alike) if number != 1)
    return across(call)._replace(again=1, between=frozenset(others))


def before_sound(call: Call) -> Place:
    """MiniMax H3: given pictures and the sound stand between text and clip."""
    return joint(call, between=call.inputs["minimax_payload"]["layout"].seq_len - call.text - call.picture)


def across_two_texts(call: Call) -> Place:
    """HunyuanDiT: the tokens of a second encoder follow those of the first."""
    further = call.inputs["encoder_hidden_states_t5"].shape[1]
    keys = call.text + further
    spans = (Span(0, 0, call.text), Span(call.text, call.rows, further))
    return Place(Sequences(call.picture, keys, 0, call.grid), spans)


def padded_before(call: Call) -> Place:
    """Flux: ComfyUI pads Flux.2's text before its first token."""
    return joint(call, lead=max(0, call.text - call.rows))


def behind_registers(call: Call) -> Place:
    """AuraFlow: eight tokens of the network's own come first."""
    return joint(call, start=call.network.register_tokens.shape[1])


def before_references(call: Call) -> Place:
    """Reference pictures stand between text and picture (or, where that opens the sequence, between it and the text)."""
    return joint(call, between=reference_tokens(call.inputs, call.patch))


def in_multiples(call: Call) -> Place:
    """Lumina: text and picture are filled up to a multiple, and so are the texts and pictures of references before them."""
    network, inputs, multiple = call.network, call.inputs, multiple_of(call.network)
    filled = lambda count: -(-count // multiple) * multiple  # noqa: E731
    references, texts = inputs.get("ref_latents") or (), inputs.get("ref_contexts") or ()
    if not references:
        return joint(call, between=-call.text % multiple)
    own = [filled(text.shape[1]) for text in texts]
    before = sum((own + [multiple] * len(references))[: len(references)])
    after = sum(own[len(references) :])
    seen = 0
    if getattr(network, "siglip_embedder", None) is not None:
        sizes = [filled(prod(features.shape[1:3])) for features in inputs.get("siglip_feats") or ()]
        seen = sum((sizes + [multiple] * len(references))[: len(references)]) + multiple
    pictures = sum(filled(tokens_of(latents, call.patch)) for latents in references)
    return joint(call, start=before, between=-call.text % multiple + after + seen + pictures)


def with_glyphs(call: Call) -> Place:
    """Hunyuan: a reference stands between text and picture. The tokens of a picture that CLIP has seen come before the text's,
    and those of quoted text after them, or, where the network tells the kinds apart, before them too."""
    network, inputs = call.network, call.inputs
    count = lambda name, taken: 0 if inputs.get(name) is None or taken is None else inputs[name].shape[1]  # noqa: E731
    glyphs, before = count("txt_byt5", network.byt5_in), count("clip_fea", network.vision_in)
    if network.cond_type_embedding is not None:
        glyphs, before = 0, before + glyphs
    if call.opens:
        return joint(call, between=before, behind=glyphs)
    return joint(call, start=before, between=glyphs + call.head)


def of_two_encoders(call: Call) -> Place:
    """HiDream: after the picture T5's tokens, then a language model's twice, of its last layer and of the block's own."""
    llama = call.inputs["encoder_hidden_states_llama3"].shape[-2]
    given = call.inputs.get("image_cond")
    beside = 0 if given is None else given.shape[-1] // call.patch[-1]
    place = joint(call._replace(grid=(*call.grid[:-1], call.grid[-1] + beside)), behind=2 * llama)
    place = place._replace(sequences=place.sequences._replace(grid=call.grid, beside=beside))
    (first,) = place.text
    more = (Span(first.key + call.text + n * llama, call.rows, llama) for n in range(2))
    return place._replace(text=(first, *more))


def cropped_behind(call: Call) -> Place:
    """Mochi: as many tokens of the text as it has, behind the picture."""
    return joint(call._replace(text=min(call.text, call.inputs["num_tokens"])))


def across_after_text(call: Call) -> Place:
    """Kandinsky: blocks of text alone come first."""
    place = across(call)
    return place._replace(before=len(call.network.text_transformer_blocks) if place.again > 1 else 0)


def up_to_most(call: Call) -> Place:
    """PixelDiT: a long text is cut."""
    return joint(call._replace(text=min(call.text, call.network.txt_max_length)))


def tokens_of(latents: Tensor, patch: tuple[int, ...]) -> int:
    """How many tokens latents (B, C, ..., H, W) have."""
    size = tuple(latents.shape[2:])
    return prod(TokenGrid(size, patch[-len(size) :]).shape)


def reference_tokens(inputs: Mapping[str, Any], patch: tuple[int, ...]) -> int:
    """How many tokens the reference pictures have that a network is given."""
    return sum(tokens_of(latents, patch) for latents in inputs.get("ref_latents") or ())


def multiple_of(network: nn.Module) -> int:
    """What multiple Lumina's networks fill text and picture up to."""
    return getattr(network, "pad_tokens_multiple", None) or 1


def _keyed(columns: Tensor, place: Place) -> Tensor:
    """Columns (rows, words) of a conditioning for the keys of the calls that are read: (keys, words)."""
    keys = columns.new_zeros(place.sequences.keys, columns.shape[-1])
    for span in place.text:
        part = columns[span.row : span.row + span.count]
        keys = keys + F.pad(part, (0, 0, span.key, place.sequences.keys - span.key - len(part)))
    return keys


Part = tuple[slice, BlockMean]
"""The rows of a batch that are one cond's, and what is seen of its words."""


class TokenReader(NamedTuple):
    """Reads one call of a transformer."""

    reading: Reading
    call: Call
    chosen: frozenset[int]

    def sum(self, columns: Tensor, rows: int) -> BlockMean:
        """What a cond's words are added to. columns (rows or more, words), see ``token_columns``; rows: of its tensor."""
        place = self.reading.place(self.call._replace(rows=rows))
        return BlockMean(_keyed(columns, place), place.sequences)

    @contextmanager
    def watching(self, parts: Sequence[Part], options: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """While it lasts, the parts see what is called with these transformer_options."""
        place, within = self.reading.place(self.call), self.reading.within
        if within is None:
            yield {**options, OVERRIDE: _Override(parts, place, self.chosen, options.get(OVERRIDE))}
            return
        blocks = [getattr(block, within) for name in self.reading.blocks for block in getattr(self.call.network, name)]
        with _overridden(blocks, _Override(parts, place, self.chosen, None)):
            yield options


ATTENTION = ("optimized_attention", "optimized_attention_masked")
"""The names by which ComfyUI's networks know its attention."""


@contextmanager
def _overridden(modules: Sequence[nn.Module], override: Callable) -> Iterator[None]:
    """While it lasts, the attention that modules call is overridden, though they hand no options on.

    They run their own code. Only in it ComfyUI's attention is another name's: the same function, given the option.
    """
    before = [vars(module).get("forward") for module in modules]
    given: dict[Any, FunctionType] = {}
    try:
        for module in modules:
            own = getattr(module.forward, "__func__", None)
            if isinstance(own, FunctionType):
                given[own] = given.get(own) or _with_option(own, override)
                module.forward = MethodType(given[own], module)
        yield
    finally:
        for module, earlier in zip(modules, before, strict=True):
            vars(module).pop("forward", None)
            if earlier is not None:
                module.forward = earlier


def _with_option(function: FunctionType, override: Callable) -> FunctionType:
    """A function that gives its attention the option."""
    names = function.__globals__
    given = {name: partial(names[name], transformer_options={OVERRIDE: override}) for name in ATTENTION if name in names}
    copy = FunctionType(
        function.__code__, {**names, **given}, function.__name__, function.__defaults__, function.__closure__
    )  # fmt: skip
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


class _Override:
    """Reads the calls between picture and text. An earlier override, of another pack, attends as it would without."""

    def __init__(self, parts: Sequence[Part], place: Place, chosen: frozenset[int], earlier: Callable | None) -> None:
        self._parts, self._place, self._chosen, self._earlier = parts, place, chosen, earlier
        self._calls, self._passed = -place.before, 0

    def __call__(self, attention: Callable, *args: Any, **kwargs: Any) -> Tensor:
        query, key = args[:2]
        tokens = -2 if kwargs.get("skip_reshape") else 1
        sequences = self._place.sequences
        if (query.shape[tokens], key.shape[tokens]) == (sequences.queries, sequences.keys):
            block, call = divmod(self._calls - self._passed, self._place.again)
            if self._calls in self._place.between:
                self._passed += 1
            elif call == self._place.again - 1 and block in self._chosen:
                self._read(query, key, *args[3:5], **kwargs)
            self._calls += 1
        if self._earlier is None:
            return attention(*args, **kwargs)
        return self._earlier(attention, *args, **kwargs)

    def _read(
        self, query: Tensor, key: Tensor, heads: int, mask: Tensor | None = None, skip_reshape: bool = False,
        scale: float | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Add a call's queries and keys, in either of the forms that ComfyUI's attention takes, to what is seen."""
        if not skip_reshape:
            width = query.shape[-1] // heads
            query, key = (each.unflatten(-1, (-1, width)).transpose(1, 2) for each in (query, key))
        if mask is not None:
            mask = mask[None, None] if mask.ndim == 2 else mask[:, None] if mask.ndim == 3 else mask
        for batch, seen in self._parts:
            own = mask if mask is None or mask.shape[0] == 1 else mask[batch]
            seen.add(query[batch], key[batch], own, scale)
