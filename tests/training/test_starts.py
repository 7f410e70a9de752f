"""Trainings that start from what others published: a LLaVA's folder, an aligned projector, a tower of Hugging Face."""

import json
from pathlib import Path

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file

from tests.parity.llava_files import parts_of, tiny_llava, write_hub, write_own
from voco_llama import VoCoLlama, VoCoProcessor
from voco_llama.errors import CheckpointError, SettingsError
from voco_llama.inference import Inference
from voco_llama.tokens import add_special_tokens, token_ids
from voco_llama.training.build import build_or_load, load_tokenizer
from voco_llama.training.checks import check_settings
from voco_llama.training.run import train


@pytest.fixture(scope="module")
def llava():
    return tiny_llava()


@pytest.fixture(scope="module", params=["llava", "llava_hf"])
def folder(request, llava, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    return write_own(llava, folder) if request.param == "llava" else write_hub(llava, folder, "old")


def test_voco_training_starts_from_a_llava(settings_for, folder, llava):
    settings = settings_for("toy/voco_1", f"model.checkpoint={folder}", "trainer.max_steps=2")
    check_settings(settings)
    before, processor = build_or_load(settings)
    assert (before.config.condition, before.config.num_voco, processor.style.order) == ("voco", 1, "first")
    projector = before.projector.state_dict()
    assert all(torch.equal(projector[name], tensor) for name, tensor in parts_of(llava).projector.items())
    final = train(settings)
    after = VoCoLlama.from_pretrained(final)
    assert after.config.condition == "voco"
    assert torch.equal(after.vision.visual.conv1.weight, before.vision.visual.conv1.weight)
    assert not torch.equal(after.projector[0].weight, before.projector[0].weight)
    inputs = json.loads((final.parent / "inputs.json").read_text())
    assert "model.checkpoint" in inputs


def test_the_same_folder_is_an_upper_bound_for_evaluation_and_training(settings_for, folder):
    saved = Inference.load(Path(folder), "cpu")
    model, processor = saved.model, saved.processor
    assert (model.config.condition, processor.condition, processor.style.order) == ("full", "full", "llava")
    settings = settings_for("toy/instruct", f"model.checkpoint={folder}", "prompt.order=llava")
    trained, its_processor = build_or_load(settings)
    assert trained.config.condition == "full"
    mine, theirs = (m.language_model.state_dict() for m in (trained, model))
    assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())
    assert its_processor.tokens == processor.tokens


def test_weights_that_were_replaced_since_are_seen(settings_for, folder, tmp_path, llava):
    copied = write_own(llava, tmp_path / "copied")
    settings = settings_for("toy/voco_1", f"model.checkpoint={copied}", "trainer.max_steps=1")
    train(settings)
    shard = copied / "pytorch_model-00001-of-00002.bin"
    torch.save({name: tensor + 1 for name, tensor in torch.load(shard).items()}, shard)
    with pytest.raises(SettingsError, match="what model.checkpoint named then"):
        train(settings)


# ---- parts


def parts(world, llava, tmp_path, *more: str) -> list[str]:
    """Overrides: the toy world's language model would not fit, so the LLaVA's is written alone, as Vicuna is."""
    language = tmp_path / "language"
    llava.config.text_config.save_pretrained(language)
    write_hub(llava, tmp_path / "hub", "old")
    weights = parts_of(llava).language
    torch.save(weights, language / "pytorch_model.bin")
    own = write_own(llava, tmp_path / "own", tower="elsewhere")
    return [
        f"model.language.pretrained={language}",
        "model.language.config=null",
        f"model.tokenizer={own}",
        f"model.vision.name={own}/clip",
        *more,
    ]


@pytest.mark.parametrize("kind", ["mm_projector.bin", "a whole LLaVA"])
def test_an_aligned_projector_and_the_parts_it_belongs_to(settings_for, world, llava, tmp_path, kind):
    weights = parts_of(llava).projector
    if kind == "a whole LLaVA":
        source = tmp_path / "hub"
    else:
        source = tmp_path / "mm_projector.bin"
        torch.save({f"model.mm_projector.{name}": tensor for name, tensor in weights.items()}, source)
    overrides = parts(world, llava, tmp_path, f"model.projector_weights={source}")
    model, _ = build_or_load(settings_for("toy/voco_1", *overrides))
    assert all(torch.equal(model.projector.state_dict()[name], tensor) for name, tensor in weights.items())
    tower = load_file(tmp_path / "own" / "clip" / "model.safetensors")
    assert torch.equal(model.vision.visual.conv1.weight, tower["vision_model.embeddings.patch_embedding.weight"])


def test_what_does_not_fit_is_refused(settings_for, world, llava, tmp_path):
    source = tmp_path / "mm_projector.bin"
    torch.save({"model.mm_projector.weight": torch.zeros(32, 16)}, source)
    overrides = parts(world, llava, tmp_path, f"model.projector_weights={source}")
    with pytest.raises(CheckpointError, match="projector's weights do not fit.*check model.projector"):
        build_or_load(settings_for("toy/voco_1", *overrides))
    with pytest.raises(SettingsError, match="model.projector_weights"):
        check_settings(settings_for("toy/voco_1", *overrides, "model.projector_weights=nowhere"))
    with pytest.raises(CheckpointError, match="the tokenizer has .* embeddings"):
        build_or_load(settings_for("toy/voco_1", *parts(world, llava, tmp_path), f"model.tokenizer={world}/tokenizer"))


def sentencepiece_folder(folder: Path) -> sentencepiece.SentencePieceProcessor:
    """A tokenizer as Vicuna and LLaVA-1.5 have it: `tokenizer.model` and its configuration, nothing else."""
    sentences = ["the red circle is left of the blue square", "what color is it? is there a circle?"] * 50
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        pad_id=-1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    described = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(described | {"legacy": False, "add_bos_token": True}))
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def test_a_tokenizer_of_sentencepiece_alone(tmp_path):
    theirs = sentencepiece_folder(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert len(tokenizer) == theirs.vocab_size()
    tokens = add_special_tokens(tokenizer)
    assert (tokens.image, tokens.voco, tokens.bos, tokens.eos) == (len(theirs), len(theirs) + 1, 1, 2)
    tokenizer.save_pretrained(tmp_path / "ours")
    for read in (tokenizer, load_tokenizer(str(tmp_path / "ours"))):
        for text in ("the red circle", "\nis it 3?", "What is \u00fc in the\nsquare"):
            assert read(text, add_special_tokens=False)["input_ids"] == theirs.encode(text)
        assert token_ids(read) == tokens


def test_ids_are_checked_on_load(settings_for, folder, tmp_path):
    model, processor = VoCoLlama.from_pretrained(folder), VoCoProcessor.from_pretrained(folder)
    model.config.voco_token_id = 5
    model.save_pretrained(tmp_path / "mixed")
    processor.save_pretrained(tmp_path / "mixed")
    with pytest.raises(CheckpointError, match="voco_token_id 5 and .* the files are of different models"):
        build_or_load(settings_for("toy/voco_1", f"model.checkpoint={tmp_path}/mixed"))
