"""Vocabularies for tokenizers whose own are not in ComfyUI's tree but come with a checkpoint, in the files that ComfyUI reads.

The pieces are others that ComfyUI has: Qwen's, pieces of bytes as theirs are, with the special tokens and the numbers that each
model's templates and cuts go by; or T5's of Pile, for those that read sentencepiece.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import comfy.text_encoders.qwen_vl
import torch
from torch import Tensor

FOLDER = Path(comfy.text_encoders.qwen_vl.__file__).parent
QWEN, LLAMA, PILE = (FOLDER / name for name in ("qwen25_tokenizer", "llama_tokenizer", "t5_pile_tokenizer/tokenizer.model"))
PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Llama 3 parts a text before it looks for pieces."""
LLAMA_SIZE = 128_000
LLAMA_SPECIAL = {0: "<|begin_of_text|>", 6: "<|start_header_id|>", 7: "<|end_header_id|>", 9: "<|eot_id|>", 257: "<image>"}
"""By their numbers after the pieces, of 259."""
LLAMA_PIECES = {"user": 882, "ĊĊ": 271}
"""By these ComfyUI finds the prompt in HunyuanVideo's template."""
GPT_OSS_SPECIAL = ("<|endoftext|>", "<|channel|>", "<|start|>", "<|end|>", "<|message|>")
TEKKEN_SPECIAL = {
    "<unk>": 0, "<s>": 1, "</s>": 2, "[INST]": 3, "[/INST]": 4, "<pad>": 11, "[SYSTEM_PROMPT]": 17, "[/SYSTEM_PROMPT]": 18,
}  # fmt: skip
TEKKEN_SIZE, TEKKEN_FIRST = 131_072, 1000
FEWER = 50_000
"""Pieces where it does not matter how many there are."""


@cache
def _pieces() -> dict[str, int]:
    """Qwen's pieces, written as bytes, by their rank."""
    return json.loads((QWEN / "vocab.json").read_text(encoding="utf-8"))


def _letters() -> dict[str, int]:
    """The bytes as they are written in pieces: by their own letter where it is a visible one, else by one from 256 on."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in visible)
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _tokenizer_json(size: int, special: Sequence[str], numbers: Mapping[str, int], begin: str | None = None) -> bytes:
    """A tokenizer.json of the first pieces, some of them with other numbers, and special tokens after them.

    begin: that of them which stands before every text.
    """
    pieces = {piece: rank for piece, rank in _pieces().items() if rank < size}
    named = {rank: piece for piece, rank in pieces.items()}
    for piece, number in numbers.items():
        pieces[named[number]], pieces[piece] = pieces[piece], number
    lines = (QWEN / "merges.txt").read_text(encoding="utf-8").splitlines()
    opening = [] if begin is None else [{"SpecialToken": {"id": begin, "type_id": 0}}]
    plain = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    kept = {
        "version": "1.0",
        "added_tokens": [{"id": size + n, "content": name, **plain} for n, name in enumerate(special)],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [*opening, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {begin: {"id": begin, "ids": [size + special.index(begin)], "tokens": [begin]}} if begin else {},
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": pieces,
            "merges": [line for line in lines if line.count(" ") == 1 and line.replace(" ", "") in pieces],
        },
    }
    return json.dumps(kept).encode()


def llama3(folder: Path) -> Path:
    """A folder as ComfyUI's of Llama 3: its own configuration, and the stand-in of what is missing."""
    special = [LLAMA_SPECIAL.get(n, f"<|reserved_{n}|>") for n in range(259)]
    (folder / "tokenizer.json").write_bytes(_tokenizer_json(LLAMA_SIZE, special, LLAMA_PIECES, special[0]))
    shutil.copy(LLAMA / "tokenizer_config.json", folder)
    return folder


def gpt_oss() -> Tensor:
    """tokenizer_json of a checkpoint of gpt-oss."""
    return _as_tensor(_tokenizer_json(FEWER, GPT_OSS_SPECIAL, {}))


def tekken() -> Tensor:
    """tekken_model of a checkpoint of Mistral."""
    letters = _letters()
    kept = [
        {"rank": rank, "token_bytes": base64.b64encode(bytes(letters[letter] for letter in piece)).decode()}
        for piece, rank in _pieces().items()
        if rank < FEWER
    ]
    special = [{"rank": rank, "token_str": name} for name, rank in TEKKEN_SPECIAL.items()]
    config = {"pattern": PATTERN, "default_vocab_size": TEKKEN_SIZE, "default_num_special_tokens": TEKKEN_FIRST}
    return _as_tensor(json.dumps({"config": config, "vocab": kept, "special_tokens": special}).encode())


def sentencepiece() -> Tensor:
    """spiece_model of a checkpoint of Gemma, UMT5 or mT5."""
    return _as_tensor(PILE.read_bytes())


def _as_tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
