"""Small tokenizers of the families of instruct models, each with a chat template that behaves as the family's own.

They are trained here on a few lines; what makes a family is kept: its special tokens, how it cuts a text into words,
its normalizer, and where a space begins a text.
"""

import json
from functools import cache
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from voco_llama.data.media.images import ImageTransform
from voco_llama.data.processor import VoCoProcessor
from voco_llama.data.prompts import PromptStyle
from voco_llama.tokens import add_special_tokens

TEMPLATES = Path(__file__).parent / "templates"
LINES = [
    "What is it? It is a cat. Is it 1 or 2? Why? So it says. Yes, No.",
    "system user assistant You are a helpful assistant. Today Date: USER: ASSISTANT: [INST] [/INST]",
    "the image\n\nof a cat  and a dog\nis here\n\n\n",
] * 4

GPT2 = None
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA3_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def _byte_level(special: tuple[str, ...], words: str | None, plain: tuple[str, ...] = (), **named) -> Tokenizer:
    """As GPT-2: bytes, and no space of its own at the beginning of a text."""
    tokenizer = Tokenizer(models.BPE())
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if words is None else []
    split = [] if words is None else [pre_tokenizers.Split(Regex(words), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, *split, bytes_of])
    tokenizer.normalizer = normalizers.NFC() if words == QWEN else None
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in plain])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def _sentence_piece(scheme: str, special: tuple[str, ...] = (), **named) -> PreTrainedTokenizerFast:
    """As Llama 2: "▁" for a space, and before each text (`legacy`) or the first of a row (`first`); bytes at need."""
    bytes_of = [f"<0x{byte:02X}>" for byte in range(256)]
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    learned.train_from_iterator(
        [line.replace("\n", " ") for line in LINES], trainers.BpeTrainer(vocab_size=200, show_progress=False)
    )
    model = json.loads(learned.to_str())["model"]
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *bytes_of])}
    for token in model["vocab"]:
        vocabulary.setdefault(token, len(vocabulary))
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if scheme == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>", *special)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **named
    )


_CHATML = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
_LLAMA3 = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
_INST = ("[INST]", "[/INST]")

FAMILIES = {
    "smollm2": lambda: _byte_level(CHATML_TOKENS, GPT2, bos_token="<|im_start|>", unk_token="<|endoftext|>", **_CHATML),
    "qwen2": lambda: _byte_level(CHATML_TOKENS, QWEN, **_CHATML),
    "qwen3": lambda: _byte_level(CHATML_TOKENS, QWEN, ("<think>", "</think>"), **_CHATML),
    "llama3": lambda: _byte_level(LLAMA3_TOKENS, LLAMA3, **_LLAMA3),
    "mistral": lambda: _sentence_piece("legacy", _INST),
    "mistral_first": lambda: _sentence_piece("first", _INST),
    "vicuna": lambda: _sentence_piece("legacy"),
    "vicuna_first": lambda: _sentence_piece("first"),
}
"""What makes the tokenizer of each. Llama 3's names another end than the one that its template writes."""

ENDS = {"smollm2": "<|im_end|>", "qwen2": "<|im_end|>", "qwen3": "<|im_end|>", "llama3": "<|eot_id|>"}
"""What ends an answer; of all others `</s>`."""


def template_of(family: str) -> str:
    """Its chat template."""
    return (TEMPLATES / f"{family.removesuffix('_first')}.jinja").read_text(encoding="utf-8")


@cache
def family_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """With its chat template, and `<image>` and `<voco>`; the same object each time: leave it as it is."""
    return new_tokenizer(family)


def new_tokenizer(family: str, chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One of its own, with another chat template if one is given."""
    tokenizer = FAMILIES[family]()
    tokenizer.chat_template = template_of(family) if chat_template is None else chat_template
    add_special_tokens(tokenizer)
    return tokenizer


def chat_processor(
    family: str,
    order: str = "first",
    system: str | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **named,
) -> VoCoProcessor:
    """A processor with images of 4 vision and 2 VoCo tokens, whose template is `chat`."""
    tokenizer = tokenizer or family_tokenizer(family)
    return VoCoProcessor(tokenizer, ImageTransform(16), PromptStyle("chat", order, system), 4, 2, **named)
