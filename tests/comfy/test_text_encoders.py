"""Words are marked in the rows where a transformer's text encoder puts them: by ComfyUI's own encoders with their real
tokenizers, whose networks are small, random and without attention, so that a row is its own token's alone.

Vocabularies that come with a checkpoint, not with ComfyUI, have stand-ins (see ``vocabularies``).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

import comfy.sd
import comfy.supported_models_base
import comfy.text_encoders.hunyuan_video
import comfy.text_encoders.qwen_vl
import pytest
import torch
import transformers
import vocabularies
from asyndm_pack.asyndm_core.tokens import UnreadableWordError
from asyndm_pack.nodes.comfy.conditioning import ANNOTATION, annotate, annotate_given, find_targets
from tiny import node
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from nodes import ConditioningConcat

LANGUAGE_MODEL = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1}
T5 = {"d_model": 16, "d_ff": 16, "d_kv": 16, "num_heads": 1, "num_layers": 2}
CLIP = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1, "num_hidden_layers": 3}
BERT = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1, "num_hidden_layers": 2}
SMALL = {
    **dict.fromkeys(("t5xxl", "pile_t5xl", "umt5xxl", "mt5xl", "byt5"), T5), "clip_l": CLIP, "clip_g": CLIP, "hydit_clip": BERT,
}  # fmt: skip
NEW_TRANSFORMERS = int(transformers.__version__.partition(".")[0]) >= 5
GPT_OSS = {"num_local_experts": 2, "num_experts_per_tok": 1, "vocab_size": 60_000}
VOCABULARIES: dict[str, Callable[[], Tensor]] = {
    "tekken_model": vocabularies.tekken, "tokenizer_json": vocabularies.gpt_oss,
    **dict.fromkeys(
        ("spiece_model", "mt5xl.spiece_model", "gemma_spiece_model", "jina_spiece_model"), vocabularies.sentencepiece
    ),
}  # fmt: skip


class Kind(NamedTuple):
    """One of ComfyUI's text encoders.

    make: () -> its module's tokenizer and network. keys: of the encoders that are attended to. entry: of the conditioning that
    holds the rows of the last of them. reads: what its vocabulary has ("all", or "latin" for T5's). data: what of its
    tokenizer comes with a checkpoint. own: what a row has of other tokens, at most, in units of its own; not 0 where ComfyUI
    brings a whole text's vectors to one range.
    """

    module: str
    tokenizer: str
    network: Callable[[Any], Any]
    keys: tuple[str, ...]
    entry: str | None = None
    reads: str = "all"
    data: tuple[str, ...] = ()
    own: float = 0.0

    @property
    def spelled(self) -> bool:
        """Whether its tokens can be spelled: ComfyUI's reader of sentencepiece can't in every version."""
        return not any(name.endswith("spiece_model") for name in self.data)


def te(module: Any) -> Any:
    return module.te()


def in_two(module: Any) -> Any:
    """With vectors of its own for the picture and the sound."""
    try:
        return module.ltxav_te(text_projection_type="dual_linear")
    except TypeError as missing:
        raise ImportError from missing


def of_hunyuan_image(module: Any) -> Any:
    return importlib.import_module("comfy.text_encoders.hunyuan_image").te()


KINDS = {
    "Flux": Kind("flux", "FluxTokenizer", lambda m: m.flux_clip(), ("t5xxl",), reads="latin"),
    "SD3": Kind("sd3_clip", "SD3Tokenizer", lambda m: m.sd3_clip(), ("t5xxl", "l", "g"), reads="latin"),
    "SD3 without T5": Kind("sd3_clip", "SD3Tokenizer", lambda m: m.sd3_clip(t5=False), ("l", "g")),
    "SD3 without CLIP": Kind("sd3_clip", "SD3Tokenizer", lambda m: m.sd3_clip(False, False), ("t5xxl",), reads="latin"),
    "Chroma, PixArt": Kind("pixart_t5", "PixArtTokenizer", lambda m: m.pixart_te(), ("t5xxl",), reads="latin"),
    "LTX-Video": Kind("lt", "LTXVT5Tokenizer", lambda m: m.ltxv_te(), ("t5xxl",), reads="latin"),
    "Mochi": Kind("genmo", "MochiT5Tokenizer", lambda m: m.mochi_te(), ("t5xxl",), reads="latin"),
    "CogVideoX": Kind("cogvideo", "CogVideoXTokenizer", lambda m: m.cogvideo_te(), ("t5xxl",), reads="latin"),
    "Cosmos Predict2": Kind("cosmos", "CosmosT5Tokenizer", te, ("t5xxl",), reads="latin"),
    "AuraFlow": Kind("aura_t5", "AuraT5Tokenizer", lambda m: m.AuraT5Model, ("pile_t5xl",)),
    "Z-Image": Kind("z_image", "ZImageTokenizer", te, ("qwen3_4b",)),
    "Qwen-Image": Kind("qwen_image", "QwenImageTokenizer", te, ("qwen25_7b",)),
    "HunyuanImage": Kind("hunyuan_image", "HunyuanImageTokenizer", te, ("qwen25_7b",)),
    "HunyuanVideo 1.5": Kind("hunyuan_video", "HunyuanVideo15Tokenizer", of_hunyuan_image, ("qwen25_7b",)),
    "Kandinsky5": Kind("kandinsky5", "Kandinsky5TokenizerImage", te, ("qwen25_7b",)),
    "Kandinsky5 Video": Kind("kandinsky5", "Kandinsky5Tokenizer", te, ("qwen25_7b",)),
    "Omnigen2": Kind("omnigen2", "Omnigen2Tokenizer", te, ("qwen25_3b",)),
    "Ovis": Kind("ovis", "OvisTokenizer", te, ("qwen3_2b",)),
    "Flux.2 Klein": Kind("flux", "KleinTokenizer", lambda m: m.klein_te(), ("qwen3_4b",)),
    "LongCat": Kind("longcat_image", "LongCatImageTokenizer", te, ("qwen25_7b",)),
    "MiniMax H3": Kind("minimax", "MiniMaxH3Tokenizer", te, ("qwen3vl_32b",)),
    "Krea2": Kind("krea2", "Krea2Tokenizer", te, ("qwen3vl_4b",)),
    "Mage-Flow": Kind("mage_flow", "MageFlowTokenizer", te, ("qwen3vl_4b",)),
    "Boogu": Kind("boogu", "BooguTokenizer", te, ("qwen3vl_8b",)),
    "Ideogram4": Kind("ideogram4", "Ideogram4Qwen3VLTokenizer", lambda m: m.te_qwen3vl(), ("qwen3vl_8b",)),
    "JoyImage": Kind("joyimage", "JoyImageTokenizer", te, ("qwen3vl_8b",)),
    "Anima": Kind("anima", "AnimaTokenizer", te, ("t5xxl",), "t5xxl_ids", "latin"),
    "HiDream-I1": Kind("hidream", "HiDreamTokenizer", lambda m: m.hidream_clip(), ("t5xxl", "llama"), "conditioning_llama3"),
    "HunyuanDiT": Kind(
        "hydit", "HyditTokenizer", lambda m: m.HyditModel, ("hydit_clip", "mt5xl"), "conditioning_mt5xl",
        data=("mt5xl.spiece_model",),
    ),
    "HunyuanVideo": Kind("hunyuan_video", "HunyuanVideoTokenizer", lambda m: m.hunyuan_video_clip(), ("llama",)),
    "Flux.2 dev": Kind("flux", "Flux2Tokenizer", lambda m: m.flux2_te(), ("mistral3_24b",), data=("tekken_model",)),
    "ERNIE": Kind("ernie", "ErnieTokenizer", te, ("ministral3_3b",), data=("tekken_model",)),
    "Lens": Kind("gpt_oss", "LensTokenizer", lambda m: m.lens_te(), ("gpt_oss",), data=("tokenizer_json",), own=1e-3),
    "Lumina2": Kind("lumina2", "LuminaTokenizer", te, ("gemma2_2b",), data=("spiece_model",)),
    "Lumina2, Gemma 3": Kind(
        "lumina2", "NTokenizer", lambda m: m.te(model_type="gemma3_4b"), ("gemma3_4b",), data=("spiece_model",)
    ),
    "NewBie": Kind("newbie", "NewBieTokenizer", te, ("gemma",), data=("gemma_spiece_model", "jina_spiece_model")),
    "PixelDiT": Kind("pixeldit", "PixelDiTGemma2Tokenizer", lambda m: m.pixeldit_te(), ("gemma2_2b",), data=("spiece_model",)),
    "LTX-2": Kind("lt", "LTXAVGemmaTokenizer", lambda m: m.ltxav_te(), ("gemma3_12b",), data=("spiece_model",), own=0.3),
    "LTX-2.3": Kind("lt", "LTXAVGemmaTokenizer", in_two, ("gemma3_12b",), data=("spiece_model",)),
    "Wan": Kind("wan", "WanT5Tokenizer", te, ("umt5xxl",), data=("spiece_model",)),
}  # fmt: skip
PLAIN = ["Flux", "SD3", "Z-Image", "Qwen-Image", "LongCat", "Krea2", "Anima", "HiDream-I1"]
ALL = [name if name in PLAIN else pytest.param(name, marks=pytest.mark.whole) for name in KINDS]


@pytest.fixture(scope="module", autouse=True)
def _let_go() -> Iterator[None]:
    """Together they hold many gigabytes, of which most is never touched: a process that goes on with them cannot fork."""
    yield
    for made in (clip, attending):
        made.cache_clear()


@cache
def clip(name: str) -> comfy.sd.CLIP:
    """The encoder, made once; the test is skipped where this ComfyUI has it not."""
    kind = KINDS[name]
    try:
        module = importlib.import_module(f"comfy.text_encoders.{kind.module}")
        tokenizer, network = getattr(module, kind.tokenizer), kind.network(module)
    except (ImportError, AttributeError):
        pytest.skip(f"this ComfyUI has no {name}")
    options: dict[str, Any] = {"dtype": torch.float32, "vocab_size": 152_000, "gpt_oss_config": LANGUAGE_MODEL | GPT_OSS}
    for key in ("", *kind.keys, "t5xxl", "byt5", "clip_l", "clip_g"):
        options[f"{key}_model_config"] = dict(SMALL.get(key, LANGUAGE_MODEL))
    if "gemma3_12b" in kind.keys:
        options["_model_config"]["num_hidden_layers"] = 6
    if name == "NewBie":  # two encoders that ComfyUI gives one configuration
        options["_model_config"] = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 4}
    if kind.tokenizer == "SD3Tokenizer":
        options["t5xxl_model_config"]["d_model"] = 4096
    if "tekken_model" in kind.data and "bpe_tokenizer" not in dir(comfy.text_encoders) and NEW_TRANSFORMERS:
        pytest.skip("this ComfyUI cannot read Mistral's vocabulary with transformers 5")
    target = comfy.supported_models_base.ClipTarget(tokenizer, partial(_with_weights, network))
    with patch("comfy.text_encoders.hunyuan_video.LlamaTokenizerFast", _Llama):
        made = comfy.sd.CLIP(target, tokenizer_data={each: VOCABULARIES[each]() for each in kind.data}, model_options=options)
    if hasattr(made.cond_stage_model, "video_embeddings_connector"):
        pytest.skip("this ComfyUI mixes the rows in the encoder")
    generator = torch.Generator().manual_seed(5)
    for weight, parameter in made.cond_stage_model.named_parameters():
        if "visual" in weight:  # of its real size, and asked for no more than its place: no memory for it
            parameter.data = torch.zeros(1).expand(parameter.shape)
            continue
        random = torch.randn(1 + sum(parameter.shape), generator=generator)
        random = random.as_strided(parameter.shape, (1,) * parameter.ndim)  # no memory for SD3's T5, which must be wide
        if parameter.ndim < 2:
            random = torch.full_like(random, float("norm" in weight.lower() and not weight.endswith("bias")))
        if any(f"{part}.weight" in weight for part in ("o_proj", "attention.o", "SelfAttention.o", "out_proj", "output.dense")):
            random = torch.zeros(1).expand(parameter.shape)
        parameter.data = random
    return made


def _with_weights(network: Any, **options: Any) -> Any:
    """The network, where ComfyUI makes layers without weights, as of gpt-oss, with some."""
    made = network(**options)
    for module in made.modules():
        if hasattr(module, "in_features") and getattr(module, "weight", None) is None:
            experts = (module.num_experts,) if hasattr(module, "num_experts") else ()
            module.weight = torch.nn.Parameter(torch.empty(*experts, module.out_features, module.in_features))
    return made


class _Llama:
    """ComfyUI's reader of Llama 3's vocabulary, at the stand-in's folder.

    That of 0.8.0 is transformers', which since 5 leaves out the spaces: there the same file is read as it is.
    """

    READER = comfy.text_encoders.hunyuan_video.LlamaTokenizerFast

    @classmethod
    def from_pretrained(cls, path: str, **kwargs: Any) -> Any:
        own = cls.READER if cls.READER.__module__.startswith("comfy") else PreTrainedTokenizerFast
        with TemporaryDirectory() as folder:
            return own.from_pretrained(vocabularies.llama3(Path(folder)), **kwargs)


def encode(made: comfy.sd.CLIP, tokens: Any) -> list[Any]:
    return made.encode_from_tokens_scheduled(tokens)


def rows(conditioning: list[Any], entry: str | None) -> Tensor:
    """All rows of a conditioning (rows, features), a further encoder's behind the tensor's."""
    (tensor, options), *_ = conditioning
    if entry is None:
        return tensor[0]
    more = options[entry]
    if more.ndim == 1:
        return more[:, None].float()
    more = more[0, -1] if more.ndim == 4 else more[0]
    width = max(tensor.shape[-1], more.shape[-1])
    return torch.cat([torch.nn.functional.pad(each, (0, width - each.shape[-1])) for each in (tensor[0], more)])


def changed(before: list[Any], after: list[Any], entry: str | None, own: float = 0.0) -> set[int]:
    """The rows that differ, by more than a share of the largest difference."""
    first, second = rows(before, entry), rows(after, entry)
    assert first.shape == second.shape
    apart = (first - second).abs().amax(dim=-1)
    return set((apart > max(1e-6, own * float(apart.max()))).nonzero()[:, 0].tolist())


def with_other_tokens(made: comfy.sd.CLIP, text: str, places: dict[str, Iterable[int]]) -> Any:
    """The tokens of a text, with others at some places of each encoder. Without weights: 0.8.0 makes NaN of OmniGen2's."""
    tokens = {key: [[(entry[0], 1.0) for entry in chunk] for chunk in chunks] for key, chunks in made.tokenize(text).items()}
    for key, where in places.items():
        flat = [(n, m) for n, chunk in enumerate(tokens[key]) for m in range(len(chunk))]
        for place in where:
            n, m = flat[place]
            tokens[key][n][m] = (tokens[key][n][m][0] + 1, 1.0)
    return tokens


def decoded(made: comfy.sd.CLIP, key: str, text: str, places: Iterable[int]) -> str:
    """What the tokens at some places are."""
    inner = next(getattr(made.tokenizer, name) for name in (key, f"clip_{key}") if hasattr(made.tokenizer, name)).tokenizer
    flat = [entry[0] for chunk in made.tokenize(text)[key] for entry in chunk]
    inner = inner if hasattr(inner, "decode") else inner.tokenizer
    return inner.decode([int(flat[place]) for place in places])


TEXTS = [
    ("a red fox with a (blue hat:1.3), and a fox in a capybara's house", "fox", "foxfox"),
    ("a red fox with a (blue hat:1.3), and a fox in a capybara's house", "blue hat", "bluehat"),
    ("a red fox with a (blue hat:1.3), and a fox in a capybara's house", "capybara's", "capybara's"),
    ('{"subject": "a red fox", "props": ["hat", "umbrella"]}', "umbrella", "umbrella"),
    ("a neon sign that says \"OPEN SOON\", and 'a bar'", "open soon", "opensoon"),
    ("[fox] wearing a hat! (photo)", "hat", "hat"),
    ("un café crème", "crème", "crème"),
    ("一只兔子坐在草地上", "兔子", "兔子"),
    ("ウサギと帽子", "帽子", "帽子"),
    ("a fox 🦊, a hat", "🦊", "🦊"),
]


@pytest.mark.parametrize("name", ALL)
def test_the_rows_of_words(name: str) -> None:
    """Other tokens at the places that were found change the rows that are marked and no others; and they are the word's."""
    made, kind = clip(name), KINDS[name]
    for text, target, said in TEXTS:
        if kind.reads == "latin" and not said.isascii() and target != "crème":
            if "l" not in kind.keys:
                with pytest.raises(UnreadableWordError, match="does not read the target"):
                    find_targets(made, text, target)
            continue
        (found,), places, _ = find_targets(made, text, target)
        for part in places.each:
            positions = part.positions.get(found.text, ())
            key = part.encoder.key
            if positions and kind.spelled:
                spelled = decoded(made, key, text, positions).lower()
                assert "".join(letter for letter in spelled if letter not in ' "([{:,.').removesuffix("'") == said, (key, text)
            assert positions or (part is not places.each[-1] and not said.isascii())
        plain = encode(made, with_other_tokens(made, text, {}))
        where = {part.encoder.key: part.positions.get(found.text, ()) for part in places.each}
        other = encode(made, with_other_tokens(made, text, where))
        marked = annotate(plain, places)[0][1][ANNOTATION]
        assert set(marked.positions[found.text]) == changed(plain, other, kind.entry, kind.own), (text, target)
        assert marked.length >= len(rows(plain, kind.entry))


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_read(name: str) -> None:
    """Of several encoders those that the model attends to."""
    _, places, _ = find_targets(clip(name), "a red fox", "fox")
    assert tuple(part.encoder.key for part in places.each) == KINDS[name].keys


def test_a_word_behind_the_last_token() -> None:
    """LongCat takes 512 tokens: a word before the cut is found, though all behind it moves; a word after it is not."""
    made, text = clip("LongCat"), "dog " * 300 + "capybara " + "dog cat " * 150 + "fox"
    _, places, _ = find_targets(made, text, "capybara")
    assert decoded(made, "qwen25_7b", text, places.positions["capybara"]).strip() == "capybara"
    with pytest.raises(UnreadableWordError, match="behind the last token"):
        find_targets(made, text, "fox")
    assert find_targets(made, text, "fox", skip_lost=True).lost == ("fox",)


# --- conditionings made by other nodes -----------------------------------------------------------------------------------

TEXT = "put a blue hat on the fox, and a (red ball:1.2) beside it"


def marked(
    name: str, conditioning: list[Any], text: str = TEXT, word: str = "hat", made: comfy.sd.CLIP | None = None
) -> tuple[int, ...]:
    made = made or clip(name)
    _, places, _ = find_targets(made, text, word)
    return annotate_given(conditioning, made, text, places)[0][1][ANNOTATION].positions[word]


def from_the_end(
    name: str, conditioning: list[Any], word: str = "hat", made: comfy.sd.CLIP | None = None
) -> tuple[int, ...]:  # fmt: skip
    """Where a word must be: the same number of tokens before the end as in the text's own encoding."""
    made = made or clip(name)
    own = annotate(encode(made, made.tokenize(TEXT)), find_targets(made, TEXT, word).annotation)
    return tuple(
        row - own[0][0].shape[1] + conditioning[0][0].shape[1] for row in own[0][1][ANNOTATION].positions[word]
    )  # fmt: skip


def small_eyes(made: comfy.sd.CLIP) -> None:
    """Qwen2.5-VL's vision network, small."""
    network = made.cond_stage_model.qwen25_7b.transformer
    seeing = comfy.text_encoders.qwen_vl.Qwen2VLVisionTransformer(
        hidden_size=32, output_hidden_size=16, intermediate_size=32, num_heads=2, num_layers=1, device="cpu",
        dtype=torch.float32, ops=made.cond_stage_model.qwen25_7b.operations,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(6)
    for parameter in seeing.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    network.visual = seeing


@pytest.mark.parametrize("images", [0, 1, 2])
@pytest.mark.parametrize("edit", ["TextEncodeQwenImageEdit", "TextEncodeQwenImageEditPlus"])
def test_images_before_the_text(edit: str, images: int) -> None:
    if edit.endswith("Edit") and images == 2:
        pytest.skip("takes one image")
    made = clip("Qwen-Image")
    small_eyes(made)
    names = ["image"] if edit.endswith("Edit") else ["image1", "image2"]
    given = node("nodes_qwen", edit, made, TEXT, **{name: torch.rand(1, 64, 64, 3) for name in names[:images]})
    own = encode(made, made.tokenize(TEXT))
    assert (given[0][0].shape[1] > own[0][0].shape[1]) == (images > 0)
    assert marked("Qwen-Image", given) == from_the_end("Qwen-Image", given)


def test_a_shorter_text_is_refused() -> None:
    made = clip("Qwen-Image")
    with pytest.raises(ValueError, match="does not have 'hat' as the text"):
        marked("Qwen-Image", encode(made, made.tokenize("a fox")))


@cache
def attending(name: str) -> comfy.sd.CLIP:
    """An encoder of its own with some attention: a row is its token's in all that comes before it."""
    made = clip.__wrapped__(name)
    generator = torch.Generator().manual_seed(7)
    for weight, parameter in made.cond_stage_model.named_parameters():
        if weight.endswith("o_proj.weight"):
            parameter.data = 0.001 * torch.randn(parameter.shape, generator=generator)
    return made


ONE_OTHER = "put a blue cat on the fox, and a (red ball:1.2) beside it"
ALL_OTHER = "see my green dog in that car, or our (big tree:1.2) behind us"


@pytest.mark.parametrize("name", ["Qwen-Image", "Z-Image"])
def test_another_text_of_the_same_length_is_refused(name: str) -> None:
    """Be it by one word, as what is before it is the same; the same text is not."""
    made = attending(name)
    same, *others = (encode(made, made.tokenize(text)) for text in (TEXT, ONE_OTHER, ALL_OTHER))
    assert marked(name, same, word="blue hat", made=made) == from_the_end(name, same, "blue hat", made)
    for other in others:
        assert other[0][0].shape == same[0][0].shape
        with pytest.raises(ValueError, match="made from another text"):
            marked(name, other, word="blue hat", made=made)


@pytest.mark.parametrize("images", [0, 1])
def test_another_text_behind_another_instruction_is_refused(images: int) -> None:
    """There the vectors of the same text are others too, but nearest to their own."""
    made = attending("Qwen-Image")
    small_eyes(made)
    pictures = {"image1": torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(8))} if images else {}
    same, other = (
        node("nodes_qwen", "TextEncodeQwenImageEditPlus", made, text, **pictures) for text in (TEXT, ALL_OTHER)
    )  # fmt: skip
    own = encode(made, made.tokenize(TEXT))
    assert (same[0][0].shape == own[0][0].shape) == (not images)
    assert (same[0][0][:, -20:] - own[0][0][:, -20:]).abs().amax() > 0.01
    assert marked("Qwen-Image", same, word="blue hat", made=made) == from_the_end("Qwen-Image", same, "blue hat", made)
    with pytest.raises(ValueError, match="made from another text"):
        marked("Qwen-Image", other, word="blue hat", made=made)


def test_flux_with_two_texts() -> None:
    """The words are those of T5's text; another one is refused, and of a longer conditioning they are found anywhere."""
    made = clip("Flux")
    given = node("nodes_flux", "CLIPTextEncodeFlux", made, "in a meadow", TEXT, 3.5)
    assert marked("Flux", given) == from_the_end("Flux", given) and marked("Flux", given)[0] < 20
    other = node("nodes_flux", "CLIPTextEncodeFlux", made, TEXT, "in a meadow", 3.5)
    with pytest.raises(ValueError, match="made from another text"):
        marked("Flux", other)
    (joined,) = ConditioningConcat().concat(other, given)
    assert marked("Flux", joined) == tuple(256 + row for row in marked("Flux", given))


def test_sd3_with_three_texts() -> None:
    made = clip("SD3")
    own = annotate(encode(made, made.tokenize(TEXT)), find_targets(made, TEXT, "hat").annotation)
    both = own[0][1][ANNOTATION].positions["hat"]
    of_t5 = tuple(row for row in both if row >= 77)
    assert of_t5 and of_t5 != both
    given = node("nodes_sd3", "CLIPTextEncodeSD3", made, "a meadow", "a meadow", TEXT, "none")
    assert marked("SD3", given) == of_t5
    assert marked("SD3", node("nodes_sd3", "CLIPTextEncodeSD3", made, TEXT, TEXT, TEXT, "none")) == both


def test_hidream_with_four_texts() -> None:
    made = clip("HiDream-I1")
    own = annotate(encode(made, made.tokenize(TEXT)), find_targets(made, TEXT, "hat").annotation)[0][1][ANNOTATION]
    both = own.positions["hat"]
    of_t5, of_llama = (tuple(row for row in both if (row < 128) == first) for first in (True, False))
    assert of_t5 and of_llama and max(both) < own.length
    for t5, llama, there in ((TEXT, TEXT, both), (TEXT, "a meadow", of_t5), ("a meadow", TEXT, of_llama)):
        assert marked("HiDream-I1", node("nodes_hidream", "CLIPTextEncodeHiDream", made, "", "", t5, llama)) == there


@pytest.mark.whole
def test_kandinsky_and_hunyuan_dit_with_two_texts() -> None:
    given = node("nodes_kandinsky5", "CLIPTextEncodeKandinsky5", clip("Kandinsky5"), "a meadow", TEXT)
    assert marked("Kandinsky5", given) == from_the_end("Kandinsky5", given)
    made = clip("HunyuanDiT")
    both = annotate(encode(made, made.tokenize(TEXT)), find_targets(made, TEXT, "hat").annotation)[0][1][ANNOTATION]
    hat = both.positions["hat"]
    given = node("nodes_hunyuan", "CLIPTextEncodeHunyuanDiT", made, "a meadow", TEXT)
    assert marked("HunyuanDiT", given) == tuple(row for row in hat if row >= 77) != hat


@pytest.mark.whole
def test_lumina_with_an_instruction() -> None:
    given = node("nodes_lumina2", "CLIPTextEncodeLumina2", clip("Lumina2"), user_prompt=TEXT, system_prompt="superior")
    assert marked("Lumina2", given) == from_the_end("Lumina2", given)


def test_z_image_omni() -> None:
    """With images it puts one more token behind the text."""
    made = clip("Z-Image")
    given = node("nodes_zimage", "TextEncodeZImageOmni", made, TEXT)
    assert marked("Z-Image", given) == from_the_end("Z-Image", given)
    given = node("nodes_zimage", "TextEncodeZImageOmni", made, TEXT, image1=torch.rand(1, 64, 64, 3))
    hat = tuple(row - 1 for row in from_the_end("Z-Image", given))
    assert marked("Z-Image", given) == hat
    template = "<|vision_end|>{}<|im_end|>\n<|im_start|>assistant\n<|vision_start|>"
    other = encode(made, made.tokenize(TEXT.replace("hat", "cat"), llama_template=template))
    assert changed(given, other, None) == set(hat)
