"""Words are found where ComfyUI's tokenizers put them: checked by decoding the tokens at the positions found."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import comfy.sd
import comfy.sd1_clip
import comfy.sdxl_clip
import comfy.supported_models_base
import comfy.text_encoders.sd2_clip
import pytest
import torch
from asyndm_pack.asyndm_core.tokens import UnknownWordError
from asyndm_pack.nodes.comfy import conditioning as pack_conditioning
from asyndm_pack.nodes.comfy.conditioning import ANNOTATION, annotate, annotate_given, find_targets
from asyndm_pack.nodes.comfy.words import tokenize
from asyndm_pack.nodes.demo_model import load_demo_model
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny import CONTEXT, clip, node

from nodes import ConditioningAverage, ConditioningConcat

TOKENIZERS: dict[str, Callable[..., Any]] = {
    "SD1": comfy.sd1_clip.SD1Tokenizer,
    "SD2": comfy.text_encoders.sd2_clip.SD2Tokenizer,
    "SDXL and its refiner": comfy.sdxl_clip.SDXLTokenizer,
}
KEYS = {"SD1": ["l"], "SD2": ["h"], "SDXL and its refiner": ["g", "l"]}


@cache
def clip_of(family: str, embeddings: str | None = None) -> comfy.sd.CLIP:
    """A CLIP object of a family that can tokenise. (SDXL's encoders are too large to be made here.)"""
    made = comfy.sd.CLIP(no_init=True)
    made.tokenizer = TOKENIZERS[family](embedding_directory=embeddings)
    made.tokenizer_options = {}
    return made


def tokens(made: comfy.sd.CLIP, key: str, text: str) -> list[Any]:
    """What the encoder is given, chunk after chunk: position in the conditioning -> token."""
    return [entry[0] for chunk in made.tokenize(text)[key] for entry in chunk]


def check(made: comfy.sd.CLIP, text: str, target: str, said: list[str]) -> tuple[int, ...]:
    """The tokens at the target's positions, decoded run by run, are ``said``. Returns the positions."""
    (found,), annotation, _ = find_targets(made, text, target)
    positions = annotation.positions[found.text]
    for key, chunks in made.tokenize(text).items():
        assert annotation.length == 77 * len(chunks)
        decoder = getattr(made.tokenizer, f"clip_{key}").tokenizer
        ids = tokens(made, key, text)
        assert decoder.decode([ids[p] for p in positions]).split() == " ".join(said).split()
    return positions


@pytest.fixture(params=TOKENIZERS)
def made(request: pytest.FixtureRequest) -> comfy.sd.CLIP:
    """Every family's tokenizers."""
    assert list(clip_of(request.param).tokenize("a")) == KEYS[request.param]
    return clip_of(request.param)


CASES = [
    ("a red fox wearing a hat", "fox", ["fox"], (3,)),
    ("a red fox wearing a hat", "red fox", ["red fox"], (2, 3)),
    ("a fox and a fox", "fox", ["fox", "fox"], (2, 5)),
    ("a (red fox:1.3) chasing (cats:0.8)", "red fox", ["red fox"], (2, 3)),
    ("a (red fox:1.3) chasing (cats:0.8)", "cats", ["cats"], (5,)),
    ("a (red:1.3) fox", "red fox", ["red fox"], (2, 3)),
    ("a ((red)) (fox)", "red fox", ["red fox"], (2, 3)),
    (r"a \(red fox\) runs", "red fox", ["red fox"], (3, 4)),
    ("A Red FOX", "fox", ["fox"], (3,)),
    ("a red fox", "Red Fox", ["red fox"], (2, 3)),
    ("fox,hat. dog!", "hat", ["hat"], (3,)),
    ("fox,hat. dog!", "dog", ["dog"], (5,)),
    ("a   red\nfox", "red fox", ["red fox"], (2, 3)),
    ("a black-and-white cat", "black-and-white cat", ["black - and - white cat"], (2, 3, 4, 5, 6, 7)),
    ("the fox's hat", "fox's", ["fox 's"], (2, 3)),
]


@pytest.mark.parametrize("text, target, said, where", CASES)
def test_words_and_phrases(made: comfy.sd.CLIP, text: str, target: str, said: list[str], where: tuple[int, ...]) -> None:
    assert check(made, text, target, said) == where


def test_word_of_several_pieces(made: comfy.sd.CLIP) -> None:
    positions = check(made, "a photo of capybaras asleep", "capybaras", ["capybaras"])
    assert len(positions) > 1 and list(positions) == list(range(positions[0], positions[-1] + 1))


def test_part_of_a_word_is_not_the_word(made: comfy.sd.CLIP) -> None:
    with pytest.raises(UnknownWordError, match="foxes, run"):
        find_targets(made, "foxes run", "fox")


def test_several_targets_with_strengths(made: comfy.sd.CLIP) -> None:
    targets, annotation, _ = find_targets(made, "a rabbit with a basketball", "basketball:0.4, rabbit")
    assert [(t.text, t.strength) for t in targets] == [("basketball", 0.4), ("rabbit", None)]
    assert annotation.positions == {"basketball": (5,), "rabbit": (2,)}


def test_targets_chosen_automatically(made: comfy.sd.CLIP) -> None:
    targets, annotation, _ = find_targets(made, "a (green boat:1.2) on the sea", "")
    assert [t.text for t in targets] == ["green boat", "sea"]
    assert annotation.positions == {"green boat": (2, 3), "sea": (6,)}


# --- prompts of more than 75 words: chunks of 77, each with a start and an end ------------------------------------------


def test_word_of_the_second_chunk(made: comfy.sd.CLIP) -> None:
    """One segment that is cut: 75 words, then the start of the next chunk."""
    text = "dog " * 74 + "fox cat"
    assert check(made, text, "fox", ["fox"]) == (75,)
    assert check(made, text, "cat", ["cat"]) == (78,)
    assert check(made, text, "fox cat", ["fox cat"]) == (75, 78)


def test_short_segment_moves_whole_to_the_next_chunk(made: comfy.sd.CLIP) -> None:
    """73 words and a weighted segment of three: ComfyUI does not cut it, the first chunk is padded early."""
    text = "dog " * 73 + "(red fox hat:1.2) runs"
    assert check(made, text, "red fox", ["red fox"]) == (78, 79)
    assert check(made, text, "hat", ["hat"]) == (80,)
    assert check(made, text, "runs", ["runs"]) == (81,)


def test_three_chunks(made: comfy.sd.CLIP) -> None:
    positions = check(made, "dog " * 80 + "fox " + "dog " * 79 + "fox", "fox", ["fox", "fox"])
    assert positions == (77 + 1 + 5, 2 * 77 + 1 + 10)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_prompt(data: st.DataObject) -> None:
    """Random words with random weights and punctuation, up to three chunks: decoding says what was looked for."""
    words = st.sampled_from(["fox", "red", "hat", "capybara", "a", "of", "Zebra", "blue", "ultramarine", "café"])
    parts = []
    for chosen in data.draw(st.lists(st.lists(words, min_size=1, max_size=9), min_size=1, max_size=30)):
        segment = " ".join(chosen)
        weight = data.draw(st.sampled_from(["", "", "1.3", "0.5"]))
        parts.append(f"({segment}:{weight})" if weight else segment + data.draw(st.sampled_from(["", ",", "."])))
    text = " ".join(parts)
    target = data.draw(st.sampled_from(["fox", "red hat", "capybara", "ultramarine"]))
    plain = " ".join(text.replace("(", " ").replace(")", " ").replace(":1.3", "").replace(":0.5", "").split())
    spaced = plain.replace(",", " ,").replace(".", " .").lower().split()
    wanted = target.split()
    places = [i for i in range(len(spaced)) if spaced[i : i + len(wanted)] == wanted]
    for family in ("SD1", "SDXL and its refiner"):
        if not places:
            with pytest.raises(UnknownWordError):
                find_targets(clip_of(family), text, target)
        else:
            check(clip_of(family), text, target, [target] * len(places))


# --- textual inversions -----------------------------------------------------------------------------------------------


def test_embedding(tmp_path: Path) -> None:
    """Each of its vectors is a position; the words after it are found behind them."""
    vectors = torch.randn(3, 768, generator=torch.Generator().manual_seed(1))
    save_file({"emb_params": vectors}, tmp_path / "glimmer.safetensors")
    made = clip_of("SD1", str(tmp_path))
    text = "a photo of embedding:glimmer and a fox"
    _, annotation, _ = find_targets(made, text, "embedding:glimmer, fox")
    assert annotation.positions["embedding:glimmer"] == (4, 5, 6)
    placed = tokens(made, "l", text)
    assert all(torch.equal(placed[4 + n], vectors[n]) for n in range(3))
    assert annotation.positions["fox"] == (9,)
    assert check(made, text, "fox", ["fox"]) == (9,)
    with pytest.raises(UnknownWordError, match="embedding:glimmer"):
        find_targets(made, "a photo of a fox", "embedding:glimmer")


def test_embedding_of_sdxl(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    vectors = {"clip_g": torch.randn(2, 1280, generator=generator), "clip_l": torch.randn(2, 768, generator=generator)}
    save_file(vectors, tmp_path / "glimmer.safetensors")
    made = clip_of("SDXL and its refiner", str(tmp_path))
    text = "embedding:glimmer, a (fox:1.2)"
    _, annotation, _ = find_targets(made, text, "embedding:glimmer")
    assert annotation.positions["embedding:glimmer"] == (1, 2)
    for key in ("g", "l"):
        assert all(torch.equal(tokens(made, key, text)[1 + n], vectors[f"clip_{key}"][n]) for n in range(2))
    check(made, text, "fox", ["fox"])


def test_embedding_of_more_vectors_in_one_encoder(tmp_path: Path) -> None:
    """The words behind it are at other positions in the other encoder: both are followed."""
    vectors = {"clip_g": torch.randn(3, 1280), "clip_l": torch.randn(1, 768)}
    save_file(vectors, tmp_path / "glimmer.safetensors")
    made = clip_of("SDXL and its refiner", str(tmp_path))
    _, annotation, _ = find_targets(made, "embedding:glimmer and a fox", "embedding:glimmer, fox")
    assert annotation.positions == {"embedding:glimmer": (1, 2, 3), "fox": (4, 6)}


# --- words as people write them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "target", "said"),
    [
        (r"1girl, tracer \(overwatch\), orange_hair", r"tracer \(overwatch\)", ["tracer (overwatch"]),
        (r"1girl, tracer \(overwatch\), orange_hair", "orange_hair", ["orange _ hair"]),
        (r"1girl, tracer \(overwatch\), orange_hair", "hair", ["hair"]),
        (r"tracer \(overwatch\), 1girl, tracer \(overwatch\)", "tracer overwatch", ["tracer (overwatch", "tracer (overwatch"]),
        ('a "red fox", a hat', '"red fox"', ["red fox"]),
        ("a [red fox], a hat", "[red fox]", ["red fox"]),
        ("a cat!, a cat", "cat!", ["cat", "cat"]),
        ("a 'neon sign', lit", "'neon sign'", ["neon sign"]),
        ("a (cat!:1.2), lit", "cat", ["cat"]),
        ("a fox!!! and 🦊🦊", "🦊", ["🦊🦊"]),
        ("一只兔子在草地上", "兔子", ["兔子"]),
        ("<lora:cat:0.8> a cat", "cat", ["cat", "cat"]),
    ],
)
def test_letters_decide(made: comfy.sd.CLIP, text: str, target: str, said: list[str]) -> None:
    """CLIP joins neighbouring punctuation into one token; the words are found all the same, each time that they occur."""
    (found,), annotation, _ = find_targets(made, text, target)
    for key in made.tokenize(text):
        ids = tokens(made, key, text)
        decoded = getattr(made.tokenizer, f"clip_{key}").tokenizer.decode([ids[p] for p in annotation.positions[found.text]])
        assert decoded.replace(" ", "") == "".join(said).replace(" ", "")


def test_lost_targets_are_skipped_where_asked() -> None:
    made = clip_of("SD1")
    targets, annotation, lost = find_targets(made, "a fox", "wolf, fox:0.4, hat", skip_lost=True)
    assert [(t.text, t.strength) for t in targets] == [("fox", 0.4)] and lost == ("wolf", "hat")
    assert annotation.positions == {"fox": (2,)}
    targets, annotation, lost = find_targets(made, "a fox", "wolf", skip_lost=True)
    assert targets == () and annotation.positions == {} and lost == ("wolf",)


# --- positions are those of the encoded conditioning --------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a red fox", "dog " * 80 + "fox"])
def test_length_is_that_of_the_conditioning(text: str) -> None:
    """By ComfyUI's own encoder: it accepts the annotation, and a changed word changes the rows from its position on."""
    conditioning = clip().encode_from_tokens_scheduled(clip().tokenize(text))
    changed = clip().encode_from_tokens_scheduled(clip().tokenize(text.replace("fox", "cat")))
    _, annotation, _ = find_targets(clip(), text, "fox")
    chunks = 1 + len(tokenize(clip(), text)["l"].pieces) // 75
    assert annotate(conditioning, annotation)[0][0].shape[1] == annotation.length == 77 * chunks
    (position,) = annotation.positions["fox"]
    moved = (conditioning[0][0] - changed[0][0]).abs().amax(dim=-1)[0] > 1e-6
    assert int(moved.nonzero()[0]) == position


# --- conditionings made elsewhere ----------------------------------------------------------------------------------------


@cache
def demo_clip() -> comfy.sd.CLIP:
    """The demo model's text encoder: a trained one."""
    return load_demo_model()[1]


def encoded(text: str, made: comfy.sd.CLIP | None = None, **options: Any) -> list[Any]:
    """What CLIP Text Encode makes, with more entries in its dict."""
    made = made or demo_clip()
    return [[tensor, {**source, **options}] for tensor, source in made.encode_from_tokens_scheduled(made.tokenize(text))]


def marked(
    conditioning: list[Any], text: str, targets: str, made: comfy.sd.CLIP | None = None
) -> list[dict[str, tuple[int, ...]]]:
    """The positions that the conditionings get."""
    made = made or demo_clip()
    found = find_targets(made, text, targets)
    annotated = annotate_given(conditioning, made, text, found.annotation)
    for (tensor, options), (source, before) in zip(annotated, conditioning, strict=True):
        assert tensor is source and options.items() >= {k: v for k, v in before.items() if k != ANNOTATION}.items()
    return [options[ANNOTATION].positions for _, options in annotated]


def joined(*parts: list[Any]) -> list[Any]:
    """As Conditioning (Concat)."""
    result = parts[0]
    for part in parts[1:]:
        (result,) = ConditioningConcat().concat(result, part)
    return result


def test_the_same_text_is_accepted() -> None:
    """However other packs weigh the words: between the word and an empty prompt, or by its length alone."""
    text, positions = "a (green boat:1.5) on the sea", [{"green boat": (2, 3), "sea": (6,)}]
    for other in (text, "a green boat on the sea", "a (green boat:1.2) on the (sea:0.9)", "a green boat on the sea in winter"):
        assert marked(encoded(other, strength=0.5), text, "green boat, sea") == positions, other
    ((tensor, options),) = encoded("a green boat on the sea")
    longer = torch.ones(77, 1).index_fill(0, torch.tensor([2, 3]), 2.0)
    assert marked([[tensor * longer, options]], "a (green boat:2) on the sea", "green boat, sea") == positions


def test_another_text_of_the_same_length_is_refused() -> None:
    """The words would be followed where others are."""
    for other in ("in a meadow", "a red fish on the sea", "", "green"):
        with pytest.raises(ValueError, match="'green boat' as the text of Cross-Attention Mask has: it was made from another"):
            marked(encoded(other), "a green boat on the sea", "green boat")
    with pytest.raises(ValueError, match="another text encoder"):
        marked([[torch.randn(1, 77, CONTEXT), {}]], "a green boat", "boat")


def test_words_after_concat() -> None:
    """Those of the second part too, and beside those of the first."""
    first, second = "a green boat", "a red fish and a car"
    source = joined(encoded(first), encoded(second))
    assert marked(source, second, "fish, car") == [{"fish": (77 + 3,), "car": (77 + 6,)}]
    assert marked(source, first, "green boat") == [{"green boat": (2, 3)}]
    _, annotation, _ = find_targets(demo_clip(), first, "boat")
    both = joined(annotate(encoded(first), annotation), encoded(second))
    assert marked(both, second, "fish") == [{"boat": (3,), "fish": (77 + 3,)}]
    assert marked(joined(encoded(second), encoded(second)), second, "fish") == [{"fish": (3,)}]


def test_words_of_a_text_that_another_pack_divides() -> None:
    """BREAK begins another 77 tokens, AND another conditioning: each part was encoded alone."""
    parts = ["a red fish, ", " a car, a fish"]
    assert marked(joined(*map(encoded, parts)), "BREAK".join(parts), "fish, car") == [{"fish": (3, 77 + 5), "car": (77 + 2,)}]
    both = [encoded(part)[0] for part in parts]
    assert marked(both, "AND".join(parts), "fish, car") == [{"fish": (3,)}, {"fish": (5,), "car": (2,)}]


def test_average() -> None:
    """What was marked before stays; marked after, the words are there where they are the greater part."""
    to, text = encoded("a red fish"), "a red fish"
    _, annotation, _ = find_targets(demo_clip(), text, "fish")
    (mixed,) = ConditioningAverage().addWeighted(annotate(to, annotation), encoded("in a meadow"), 0.3)
    assert mixed[0][1][ANNOTATION].positions == {"fish": (3,)}
    (mixed,) = ConditioningAverage().addWeighted(to, encoded("in a meadow"), 0.9)
    assert marked(mixed, text, "fish") == [{"fish": (3,)}]
    (mixed,) = ConditioningAverage().addWeighted(to, encoded("in a meadow"), 0.4)
    with pytest.raises(ValueError, match=r"mixes words .*Conditioning \(Average\)"):
        marked(mixed, text, "fish")


WIDTHS = (32, 48)


@pytest.fixture
def sdxl(monkeypatch: pytest.MonkeyPatch) -> comfy.sd.CLIP:
    """SDXL's two encoders with their real tokenizers, random and small."""
    monkeypatch.setitem(pack_conditioning.JOINED_FEATURES, sum(WIDTHS), WIDTHS)
    small = {"intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3}
    sizes = {f"clip_{name}_model_config": {**small, "hidden_size": size} for name, size in zip("lg", WIDTHS, strict=True)}
    target = comfy.supported_models_base.ClipTarget(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel)
    made = comfy.sd.CLIP(target, model_options={**sizes, "dtype": torch.float32})
    generator = torch.Generator().manual_seed(6)
    for name, parameter in made.cond_stage_model.named_parameters():
        if parameter.ndim > 1:
            spread = 0.3 if "embedding" in name else 0.1
            parameter.data = spread * torch.randn(parameter.shape, generator=generator)
        else:
            parameter.data = torch.full_like(parameter, 1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return made


@pytest.mark.parametrize("other", ["in a meadow", "dog " * 80])
def test_two_texts_for_two_encoders(sdxl: comfy.sd.CLIP, other: str) -> None:
    """SDXL's text_g and text_l, of any lengths: the words of both are where they are."""
    text = "a red fox with a hat"
    sizes = {"width": 64, "height": 64, "crop_w": 0, "crop_h": 0, "target_width": 64, "target_height": 64}
    for texts in ({"text_g": text, "text_l": other}, {"text_g": other, "text_l": text}):
        source = node("nodes_clip_sdxl", "CLIPTextEncodeSDXL", sdxl, **sizes, **texts)
        assert source[0][0].shape[1] == (77 if len(other) < 77 else 154)
        assert marked(source, text, "red fox, hat", sdxl) == [{"red fox": (2, 3), "hat": (6,)}]
        with pytest.raises(ValueError, match="'boat'"):
            marked(source, "a boat with a hat", "boat", sdxl)
    assert marked(encoded(text, sdxl), text, "fox", sdxl) == [{"fox": (3,)}]


def test_key_and_value_of_each_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CLIP NegPip: every token has two rows, the second negative where its weight is."""
    encoder = demo_clip().cond_stage_model.clip_l
    stock = encoder.encode_token_weights
    text, plain = "a red fish, (a car:-1.0)", encoded("a red fish")

    def in_pairs(pairs: list[list[tuple[int, float]]]) -> tuple[Any, ...]:
        rows, *others = stock([[(token, abs(weight)) for token, weight in chunk] for chunk in pairs])
        signs = torch.tensor([[1.0 if weight >= 0 else -1.0 for _, weight in chunk] for chunk in pairs]).reshape(1, -1, 1)
        return torch.stack([rows, rows * signs], dim=2).flatten(1, 2), *others

    monkeypatch.setattr(encoder, "encode_token_weights", in_pairs)
    source = encoded(text)
    assert source[0][0].shape[1] == 154
    _, annotation, _ = find_targets(demo_clip(), text, "red fish, car")
    rows = {"red fish": (4, 6), "car": (12,)}
    assert annotate(source, annotation)[0][1][ANNOTATION].positions == rows
    assert marked(source, text, "red fish, car") == [rows]
    assert marked(plain, "a red fish", "fish") == [{"fish": (3,)}]
    monkeypatch.undo()
    assert marked(source, text, "red fish") == [{"red fish": (4, 6)}]
    with pytest.raises(ValueError, match="153 vectors of the 77 tokens"):
        annotate([[source[0][0][:, 1:], {}]], annotation)
