"""The words of a prompt: which there are, which are worth following, and where a target is among them. Text only.

``web/lib/prompt.mjs`` does the same for the screen; tests/web compares the two.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from .regions import Target, check_strength

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)"  # with one way to read it: two would take time to the square of its length
_TYPED_NUMBER = r"[-+]?(?:[0-9０-９]+(?:[.．][0-9０-９]*)?|[.．][0-9０-９]+|nan|inf)"
_SYNTAX = re.compile(rf"(?P<kept>\\[()])|(?P<open>\()|:\s*(?P<weight>{_NUMBER})\s*(?=\))|(?P<close>\))")
_STRENGTH = re.compile(rf"^(?P<text>.*\S)\s*[:：]\s*(?P<strength>{_TYPED_NUMBER})$", re.DOTALL | re.IGNORECASE)
_COMMA = re.compile("[,，､、،\n]")

_HAN = "々〆〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_KANA = "ぁ-ゟァ-ヺー-ヿㇰ-ㇿｦ-ﾟ"
_UNSPACED = f"{_HAN}{_KANA}가-힣\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
"""Scripts whose words are not parted by spaces, or carry endings: Chinese, Japanese, Korean, Thai, Lao, Burmese, Khmer."""
_LETTERS = rf"[^\W_{_HAN}{_KANA}]+"
_PIECE = re.compile(
    rf"embedding:[^\s,()]+|[{_HAN}]|[ぁ-ゟ]+|[ァ-ヺー-ヿㇰ-ㇿｦ-ﾟ]+|{_LETTERS}(?:(?:['’-]{{1,2}}|_+){_LETTERS})*|[^\w\s]|_"
)
_ATOM = re.compile(rf"embedding:[^\s,()]+|[{_UNSPACED}]|\d+|[^\W\d_{_UNSPACED}]+", re.IGNORECASE)
"""What a target is compared by: letters and digits."""
_LOOSE = re.compile(r"[\s_()\"“”„'‘’«»「」『』\\]+")
"""What may stand between the words of a phrase without parting them."""

_NO_CONTENT = re.compile(r"<[^<>:]*:[^<>]*>|__[\w*/-]+?__|embedding:[^\s,()]+|depth of field", re.IGNORECASE)
_ALTERNATIVES = re.compile(r"\{[^{}|]*\|[^{}]*\}")
_TAG = re.compile(r"(?:score|rating|source)_|\d+mm$|[a-z]$")
_ING = re.compile(r"[aeiouy].*ing$")

FUNCTION_WORDS = frozenset(
    "a an the this that these those some any each every no and or but nor so as of to in on at by for from with without "
    "into onto over under above below behind beside between near next left right front back top bottom around across "
    "through along against inside outside during while is are was were be been being has have had do does did it its "
    "their his her my your our he she they we you i who which what where when there here very really quite too also "
    "several few many his wears wore holds held sits sat stands stood lies lay looks rides runs walks "
    "的 了 在 和 与 及 或 是 有 着 被 这 那 很 个 只 の を に は が で と も へ や から まで".split()
)
NUMBER_WORDS = frozenset(
    "one two three four five six seven eight nine ten eleven twelve 一 二 两 三 四 五 六 七 八 九 十".split()
)
"""They count what follows, and are nothing by themselves. So do digits."""
STYLE_WORDS = frozenset(
    "masterpiece best good great high highly higher highest low worst normal detailed detail details ultra extremely intricate "
    "realistic photorealistic hyperrealistic photoreal realism hd uhd fhd 2k 4k 8k 16k hdr cinematic sharp bokeh trending "
    "artstation deviantart pixiv closeup close-up macro telephoto fisheye wide-angle dslr slr raw canon nikon sony fujifilm "
    "kodak leica hasselblad polaroid iso dof exposure vignette grain pores unreal octane blender vray cgi 3d 2d absurdres "
    "highres lowres newest oldest recent score rating safe sfw nsfw questionable explicit sensitive "
    "general uncensored official solo viewer "
    "beautiful gorgeous stunning amazing perfect professional award-winning dramatic volumetric ambient "
    "portrait portraits "
    "杰作 最佳质量 高质量 高清 超高清 大师作品 写实 照片 插画 油画 水彩 傑作 最高品質 高画質".split()
)
STYLE_NOUNS = frozenset(
    "quality photo photos photograph photography picture image painting drawing illustration render rendering sketch artwork "
    "art style film lens shot angle focus view scene body lighting background foreground resolution composition palette "
    "aesthetic atmosphere mood tone tones grading texture textures skin 背景 风格 画风".split()
)
"""Words of style or camera that take what stands before them along: "oil painting", "white background"."""
ARTICLES = frozenset("a an the".split())
PLACE_WORDS = frozenset("in at during inside outside 在".split())
ING_THINGS = frozenset(
    "building ceiling lightning clothing earring morning evening wedding pudding duckling herring viking stocking starling "
    "railing awning dumpling sapling seedling gosling icing frosting topping crossing bedding darling sibling earthling "
    "lemming nestling hatchling stuffing necking siding roofing flooring plumbing".split()
)
"""Things that end in -ing. (Words without another vowel, as ring and string, are things anyway.)"""

WORD_LISTS = {
    "function": sorted(FUNCTION_WORDS),
    "number": sorted(NUMBER_WORDS),
    "style": sorted(STYLE_WORDS),
    "styleNoun": sorted(STYLE_NOUNS),
    "place": sorted(PLACE_WORDS),
    "ingThing": sorted(ING_THINGS),
}
"""As they are sent to the screen."""

MOST_CHOSEN = 3
"""Targets that are chosen automatically, at most: with more of them hardly a pixel is left to run ahead."""
LONGEST_TEXT = 20_000
"""Characters of a prompt or of the targets, at most: some 50 times a long prompt. A text encoder takes seconds for them."""
MOST_TARGETS = 256


class Plain(NamedTuple):
    """A prompt without the syntax of weights.

    starts, ends: where each of its characters is in the prompt. emphasised: whether it stands in brackets that give it a
    weight above 1.
    """

    text: str
    starts: list[int]
    ends: list[int]
    emphasised: list[bool]


class Word(NamedTuple):
    """A piece of a plain text at [start, end): a word, or else one character of punctuation."""

    text: str
    start: int
    end: int
    is_word: bool


def check_text(text: str, widget: str) -> None:
    """ValueError, naming the widget of Cross-Attention Mask, for what is no text, or more than any prompt has."""
    if not isinstance(text, str):
        raise ValueError(
            f"The input {widget} of Cross-Attention Mask got {type(text).__name__} instead of a text: check its link."
        )
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(
            f"The widget {widget} of Cross-Attention Mask holds half a character (a lone surrogate): type it anew."
        )
    if len(text) > LONGEST_TEXT:
        raise ValueError(
            f"The widget {widget} of Cross-Attention Mask holds {len(text)} characters: at most {LONGEST_TEXT} are taken. "
            "Shorten it, or check what is linked to it."
        )


def check_count(targets: Sequence[Target]) -> None:
    """ValueError for more targets than a run can follow."""
    if len(targets) > MOST_TARGETS:
        raise ValueError(
            f"There are {len(targets)} targets: at most {MOST_TARGETS} can be followed. Name the 1 to 3 things that matter "
            "in the widget targets of Cross-Attention Mask."
        )


def shortened(text: str, most: int = 80) -> str:
    """A text as an error quotes it: its beginning, where it is long."""
    return text if len(text) <= most else text[: most - 1] + "…"


def parse_targets(text: str) -> tuple[Target, ...]:
    """Targets as typed: words or phrases between commas or line breaks, each with an optional strength after a colon.

    "rabbit, basketball:0.4" -> rabbit with the map's strength, basketball with 0.4. Commas, colons and digits may be those
    of Chinese and Japanese keyboards. Raises ValueError for a strength out of [0, 1] or a target that is listed twice.
    """
    targets: list[Target] = []
    known: set[str] = set()
    for entry in _COMMA.split(text):
        entry = " ".join(entry.split())
        if not entry:
            continue
        match = _STRENGTH.match(entry)
        strength = None
        if match:
            entry = match["text"]
            number = float(match["strength"].replace("．", "."))
            strength = check_strength(number, f"The strength of target '{shortened(entry)}' (widget targets)")
        if entry.lower() in known:
            raise ValueError(f"The target '{shortened(entry)}' is listed twice in the widget targets: name it once.")
        known.add(entry.lower())
        targets.append(Target(entry, strength))
    return tuple(targets)


def plain(prompt: str) -> Plain:
    """The prompt without the syntax of weights: "a (red fox:1.3)" -> "a red fox". Escaped brackets stay as brackets."""
    parts: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    depth = [0] * (len(prompt) + 1)
    opened: list[int] = []
    weight: float | None = None

    def keep(start: int, end: int) -> None:
        parts.append(prompt[start:end])
        starts.extend(range(start, end))
        ends.extend(range(start + 1, end + 1))

    at = 0
    for match in _SYNTAX.finditer(prompt):
        keep(at, match.start())
        at = match.end()
        if match["kept"]:
            parts.append(match[0][1])
            starts.append(match.start())
            ends.append(match.end())
        elif match["weight"]:
            weight = float(match["weight"])
        elif match["open"]:
            opened.append(len(starts))
        elif opened:
            start = opened.pop()
            if weight is None or weight > 1:
                depth[start] += 1
                depth[len(starts)] -= 1
        if match["close"]:
            weight = None
    keep(at, len(prompt))
    return Plain("".join(parts), starts, ends, [count > 0 for count in accumulate(depth[: len(starts)])])


def plain_text(prompt: str) -> str:
    """The text of ``plain``."""
    return plain(prompt).text


def pieces(text: str) -> list[Word]:
    """The words and the punctuation of a plain text; marks upon letters are neither.

    A word goes on over hyphens, apostrophes and underscores. Of Chinese every character is one, of Japanese kana a run:
    what is more than that is a phrase.
    """
    found = []
    for match in _PIECE.finditer(text):
        piece = match[0]
        is_word = len(piece) > 1 or piece.isalnum()
        if is_word or not unicodedata.category(piece).startswith("M"):
            found.append(Word(piece, *match.span(), is_word))
    return found


def prompt_words(prompt: str) -> list[str]:
    """The words of a prompt, each once, in order, without weights and punctuation."""
    return list(dict.fromkeys(piece.text for piece in pieces(plain_text(prompt)) if piece.is_word))


def joined(words: Sequence[Word]) -> str:
    """Words as one phrase: with a space between them, but where they touch."""
    text = ""
    for before, word in zip([None, *words], words, strict=False):
        text += word.text if before is None or before.end == word.start else f" {word.text}"
    return text


def content_phrases(prompt: str) -> list[str]:
    """The phrases that are followed where no target is typed: at most three things, emphasised ones first.

    "a green boat on the sea, in winter" -> ["green boat", "sea"]. Things are runs of words between function words, -ing
    words and punctuation; a number counts only with what it numbers. Words of style, quality or the camera, tags of scores,
    LoRAs, embeddings and alternatives of wildcards are none. Places named by "in" or "at" and what belongs to a word of
    style ("oil painting") are taken only where nothing else is left. BREAK, which other programs know as a divider, divides
    here too.
    """
    shown = plain(_without_alternatives(prompt))
    text = _NO_CONTENT.sub(lambda match: "," * len(match[0]), shown.text)
    things: list[tuple[bool, str]] = []
    second: list[tuple[bool, str]] = []
    run: list[Word] = []
    opened_by = ""

    def close(divider: str) -> None:
        nonlocal opened_by
        phrase = joined(run)
        if any(not _is_number(word.text) for word in run) and not _divides(phrase.lower()):
            aside = opened_by in PLACE_WORDS or divider in STYLE_NOUNS
            emphasised = any(shown.emphasised[word.start] for word in run)
            (second if aside else things).append((emphasised, phrase))
        passed_over = divider in ARTICLES or divider in STYLE_WORDS
        if run or not passed_over:
            opened_by = "" if passed_over else divider
        run.clear()

    end = 0
    for piece in [*pieces(text), Word(".", len(text), len(text), is_word=False)]:
        if "\n" in text[end : piece.start]:
            close("\n")
        end = piece.end
        if not piece.is_word and _LOOSE.fullmatch(piece.text):
            continue
        lower = piece.text.lower()
        if not piece.is_word or piece.text == "BREAK" or _divides(lower):
            close(lower)
        else:
            run.append(piece)
    chosen = sorted(things or second, key=lambda entry: not entry[0])
    return list(dict.fromkeys(phrase for _, phrase in chosen))[:MOST_CHOSEN]


def divided(prompt: str) -> list[str]:
    """The parts of a prompt between BREAK and AND, which other programs encode one by one; none where it has only one."""
    parts = [part for part in re.split(r"\b(?:BREAK|AND)\b", prompt) if part.strip()]
    return parts if len(parts) > 1 else []


def _is_number(word: str) -> bool:
    return word.lower() in NUMBER_WORDS or word.isdigit()


def _divides(lower: str) -> bool:
    """Whether a word, in small letters, is no part of a thing."""
    if lower in FUNCTION_WORDS or lower in STYLE_WORDS or lower in STYLE_NOUNS or _TAG.match(lower):
        return True
    return _ING.search(lower) is not None and lower not in ING_THINGS


def _without_alternatives(prompt: str) -> str:
    """The prompt with commas in place of {red|blue}: which of them it will be is not known."""
    before = None
    while before != prompt:
        before, prompt = prompt, _ALTERNATIVES.sub(lambda match: "," * len(match[0]), prompt)
    return prompt


def places(text: str, target: str) -> list[tuple[int, int]]:
    """Where a target is in a plain text: [start, end) of every occurrence, from its first letter to its last.

    Letters and digits decide, in any case; punctuation at the target's edges is not looked at, and what may stand within a
    phrase (spaces, underscores, brackets, quotes) need not be the same. A target without letters is looked for as it is.
    """
    wanted = plain_text(target)
    atoms, gaps = _atoms(wanted)
    if not atoms:
        return [match.span() for match in re.finditer(re.escape(wanted.strip()), text)] if wanted.strip() else []
    found: list[tuple[int, int]] = []
    there, between = _atoms(text)
    for n in range(len(there) - len(atoms) + 1):
        window = there[n : n + len(atoms)]
        if [atom for atom, _, _ in window] == [atom for atom, _, _ in atoms] and between[n : n + len(gaps)] == gaps:
            found.append((window[0][1], window[-1][2]))
    return found


def _atoms(text: str) -> tuple[list[tuple[str, int, int]], list[str]]:
    """The runs of letters or digits of a plain text with their places, and what parts each from the next."""
    atoms = [(match[0].lower(), *match.span()) for match in _ATOM.finditer(text)]
    return atoms, [_LOOSE.sub("", text[a[2] : b[1]]) for a, b in pairwise(atoms)]


def is_unspaced(text: str) -> bool:
    """Whether a text has letters of a script whose words are not parted by spaces."""
    return re.search(f"[{_UNSPACED}]", text) is not None


def stretches(prompt: str, target: str) -> Iterator[tuple[int, int]]:
    """Where a target is in a prompt as it is written: [start, end) of every stretch of it.

    An occurrence is one stretch, but where brackets or weights stand within.
    """
    text, starts, ends, _ = plain(prompt)
    for first, last in places(text, target):
        begin = first
        for n in range(first, last):
            if n + 1 == last or ends[n] != starts[n + 1]:
                part = text[begin : n + 1]
                if part.strip():
                    yield starts[begin + len(part) - len(part.lstrip())], ends[begin + len(part.rstrip()) - 1]
                begin = n + 1
