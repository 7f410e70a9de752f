"""The tiny tokenizer keeps every text, and the tiny configurations build."""

import json
import math
from pathlib import Path

import pytest

from voco_llama.data.prompts import VICUNA_SYSTEM
from voco_llama.toyworld import ToyWorldSettings
from voco_llama.toyworld.models import language_config, write_language_model, write_models
from voco_llama.toyworld.questions import SHORT_PROMPT

SETTINGS = ToyWorldSettings()
CAPTIONS = ["red circle top left, blue square bottom right", "red circle top left"]
TEXTS = [
    *CAPTIONS, VICUNA_SYSTEM, "USER:", " ASSISTANT:", " red", " yes", " A", " 2",
    f"What color is the circle?\n{SHORT_PROMPT}",
    "blue", "yes", "A", "There are several options:\nA. red\nB. blue\n\nAnswer with the option's letter",
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_models(folder, TEXTS, CAPTIONS, SETTINGS)
    return folder


@pytest.fixture(scope="module")
def tokenizer(root: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(root / "tokenizer")


@pytest.mark.parametrize(
    "text",
    [
        *TEXTS,
        "a\nb\n\nc \n d\t",
        " leading and trailing ",
        "two  spaces   three",
        "naïve ЖЖ 漢字 🙂 \u200b",
        "<image>\n",
        "USER: what?! ASSISTANT: it's 42.5% (yes)…",
        "",
    ],
)
def test_text_comes_back_exactly(tokenizer, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "word",
    [
        *("USER:", " ASSISTANT:", " red", " yes", " A", " 2", "red", "yes", "A", " circle", "A.", " option's"),
        *(" ", "\n", "\n\n", "?", ","),
    ],
)
def test_words_are_single_tokens(tokenizer, word: str) -> None:
    assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1


def test_special_tokens_are_llamas(tokenizer) -> None:
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>"]) == [0, 1, 2]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert tokenizer("red").input_ids[0] == 1
    assert len(tokenizer("red").input_ids) == 2
    assert "<image>" not in tokenizer.get_vocab()
    assert len(tokenizer) <= SETTINGS.vocabulary


@pytest.fixture(scope="module")
def language_model(root: Path):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(root / "language")


def test_language_model_loads(language_model, tokenizer) -> None:
    model = language_model
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), 128)
    assert model.config.max_position_embeddings == 2048
    assert 0.9e6 < sum(weight.numel() for weight in model.parameters()) < 1.0e6


def test_language_model_starts_with_words_that_can_be_told_apart(language_model, tokenizer) -> None:
    """Unit embeddings, a residual stream that stays near their size, and no word likelier than another."""
    import torch

    embeddings = language_model.get_input_embeddings().weight
    assert 0.95 < embeddings.std() < 1.05
    ids = torch.tensor([tokenizer("red circle top left, blue square bottom right").input_ids])
    with torch.no_grad():
        output = language_model(ids, labels=ids, output_hidden_states=True)
    before_norm = output.hidden_states[-2]  # the last one is normalized
    assert 1.0 < before_norm.pow(2).mean().sqrt() < 2.0
    words = torch.nn.functional.cosine_similarity(before_norm[0], embeddings[ids[0]].detach(), dim=-1)
    assert words.min() > 0.5
    assert abs(output.loss - math.log(len(tokenizer))) < 0.1


def test_language_model_follows_the_seed(root: Path, tmp_path: Path) -> None:
    config = language_config(SETTINGS, vocabulary=400)
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        write_language_model(tmp_path / name, config, seed)
    one, again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "again", "other"))
    assert one == again != other


def test_contrastive_model_builds_and_pools_at_the_end(root: Path, tokenizer) -> None:
    import open_clip
    import torch

    open_clip.add_model_config(root / "clip")
    model = open_clip.create_model("tiny_clip").eval()
    config = json.loads((root / "clip" / "tiny_clip.json").read_text())
    assert model.visual.image_size == (32, 32)
    assert model.vocab_size == len(tokenizer)
    length = config["text_cfg"]["context_length"]
    longest = max(len(tokenizer(caption).input_ids) for caption in CAPTIONS)
    assert length == longest + 1  # and `</s>`
    ids = [[*tokenizer(caption).input_ids, tokenizer.eos_token_id] for caption in CAPTIONS]
    padded = torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in ids])
    with torch.no_grad():
        features = model.encode_text(padded)
        other = padded.clone()
        other[1, len(ids[1]) :] = 5
        assert torch.equal(model.encode_text(other)[1], features[1])
        other[1, 1] = 5
        assert not torch.equal(model.encode_text(other)[1], features[1])
        assert model.encode_image(torch.zeros(2, 3, 32, 32)).shape == features.shape == (2, SETTINGS.clip_embedding)
