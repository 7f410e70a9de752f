"""The tiny tokenizer and the tiny open_clip and Llama configurations that go with the synthetic world.

The tokenizer is a byte-level BPE: every text comes back exactly, newlines included. Each word of the world is a token,
and so is each fixed phrase of the questions: short rows let the quickstart train in minutes. Its special tokens are
Llama's: `<unk>`, `<s>`, `</s>` are 0, 1, 2; padding is `<unk>`.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from voco_llama.errors import SettingsError
from voco_llama.toyworld.settings import ToyWorldSettings

UNK, BOS, EOS = SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
UNK_ID, BOS_ID, EOS_ID = range(len(SPECIAL_TOKENS))
# Newlines; a word with the space before it and the colon or full stop after it ("option's", ' ASSISTANT:', 'A.'); a
# digit; anything else.
WORD = r"\n+| ?\p{L}+(?:'\p{L}+)?[:.]?| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+"

HEAD_STD = 0.02
"""So small that at first every word is as likely as every other."""
RESIDUAL_OUTPUTS = ("o_proj.weight", "down_proj.weight")
"""The matrices whose outputs are added to the residual stream."""


def train_tokenizer(texts: Iterable[str], vocabulary: int, phrases: Sequence[str] = ()) -> Tokenizer:
    """Trains the tokenizer: every word of the texts becomes one token, and so does each phrase, wherever it stands.

    Raises:
        SettingsError: `vocabulary`, special tokens and the 256 bytes included, is too small for that.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNK))
    pattern = "|".join([*(rf" ?{re.escape(phrase)}(?!\p{{L}})" for phrase in phrases), WORD])
    splitter = pre_tokenizers.Split(Regex(pattern), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([splitter, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=1,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = sorted({word for text in set(texts) for word, _ in splitter.pre_tokenize_str(text)})
    tokenizer.train_from_iterator(words, trainer)
    split = [word for word in words if len(tokenizer.encode(word).ids) > 1]
    if split:
        raise SettingsError(
            f"toy world: vocabulary={vocabulary} is too small: {len(split)} of {len(words)} words, such as "
            f"{split[0]!r}, are not one token; use a larger vocabulary"
        )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path, settings: ToyWorldSettings) -> None:
    """Writes a folder that `AutoTokenizer.from_pretrained` loads."""
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    head = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNK,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": UNK,
        "clean_up_tokenization_spaces": False,
        "model_max_length": settings.max_positions,
        "padding_side": "right",
    }
    write_json(folder / "tokenizer_config.json", head)


def clip_config(settings: ToyWorldSettings, vocabulary: int, longest_caption: int) -> dict[str, Any]:
    """The open_clip model configuration.

    Its text tower reads `<s> caption </s>` padded with `<unk>` and pools at `</s>`, by the tiny tokenizer's ids;
    `longest_caption` counts tokens without the special ones.
    """
    return {
        "embed_dim": settings.clip_embedding,
        "quick_gelu": False,
        "vision_cfg": {
            "image_size": settings.image_size,
            "patch_size": settings.patch_size,
            "width": settings.vision_width,
            "head_width": settings.vision_width // settings.vision_heads,
            "layers": settings.vision_layers,
            # Learned positions start at a tenth of the patches' size and hardly grow in so short a training.
            "pos_embed_type": "sin_cos_2d",
        },
        "text_cfg": {
            "context_length": longest_caption + 2,
            "vocab_size": vocabulary,
            "width": settings.clip_text_width,
            "heads": 4,
            "layers": settings.clip_text_layers,
            "pad_id": UNK_ID,
            "eos_id": EOS_ID,
            "pool_type": "eos",
        },
    }


def language_config(settings: ToyWorldSettings, vocabulary: int) -> dict[str, Any]:
    """The Llama configuration, as keyword arguments of `LlamaConfig`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": settings.language_width,
        "intermediate_size": settings.language_mlp,
        "num_hidden_layers": settings.language_layers,
        "num_attention_heads": settings.language_heads,
        "num_key_value_heads": settings.language_heads,
        "max_position_embeddings": settings.max_positions,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "pad_token_id": UNK_ID,
        "use_cache": True,
    }


def write_language_model(folder: Path, config: dict[str, Any], seed: int) -> None:
    """Writes a Llama of random weights, which `AutoModelForCausalLM.from_pretrained` loads.

    Llama's own initialization has one standard deviation for all weights. At a width of about 100 that makes
    embeddings so small beside what the first layer adds to them that words are hard to tell apart; here embeddings
    have unit size, every layer keeps the size of what it reads, and the residual branches add up to about one.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), trust_remote_code=False)
    generator = torch.Generator().manual_seed(seed)
    branches = 2 * config["num_hidden_layers"]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim < 2:
                continue
            std = weight.shape[1] ** -0.5
            if weight is model.get_input_embeddings().weight:
                std = 1.0
            elif weight is model.get_output_embeddings().weight:
                std = HEAD_STD
            elif name.endswith(RESIDUAL_OUTPUTS):
                std *= branches**-0.5
            weight.normal_(0.0, std, generator=generator)
    model.save_pretrained(folder)


def write_models(
    root: Path, texts: Iterable[str], captions: Iterable[str], settings: ToyWorldSettings, phrases: Sequence[str] = ()
) -> None:
    """Writes `tokenizer/`, `clip/tiny_clip.json` and `language/` for a world of these texts and captions."""
    tokenizer = train_tokenizer(texts, settings.vocabulary, phrases)
    write_tokenizer(tokenizer, root / "tokenizer", settings)
    lengths = (len(entry.ids) for entry in tokenizer.encode_batch(list(captions), add_special_tokens=False))
    size = tokenizer.get_vocab_size()
    write_json(root / "clip" / "tiny_clip.json", clip_config(settings, size, max(lengths, default=1)))
    write_language_model(root / "language", language_config(settings, size), settings.seed)


def write_json(file: Path, content: Any) -> None:
    """Writes indented JSON, making the folder where it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
