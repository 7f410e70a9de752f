"""Stage clip: it learns, its folder is read by open_clip and by the other stages, and pairs are told apart."""

import json

import pytest
import torch

from voco_llama.errors import DataError, SettingsError
from voco_llama.toyworld.train_clip import check_captions, encode_caption, retrieval_accuracy, train_clip
from voco_llama.training.build import load_tokenizer
from voco_llama.training.run import train
from voco_llama.vision_config import read_vision_config


@pytest.fixture
def clip_settings(settings_for):
    def make(*overrides: str):
        return settings_for("toy/clip", "trainer.per_device_train_batch_size=12", "trainer.max_steps=40", *overrides)

    return make


def test_it_learns_and_the_folder_is_a_tower(clip_settings, settings_for, tmp_path, caplog):
    import open_clip

    with caplog.at_level("INFO"):
        folder = train_clip(clip_settings())
    assert f"trained: {folder}" in caplog.text
    result = json.loads((folder / "result.json").read_text())
    curve = [entry["loss"] for entry in result["loss_curve"]]
    assert curve[-1] < curve[0] - 0.3
    assert result["held_out_pairs"] == 2
    assert set(result["retrieval_accuracy"]) == {"image_to_text", "text_to_image"}

    clip = open_clip.create_model(f"local-dir:{folder}")
    final = train(
        settings_for(
            "toy/align", f"model.vision.name={folder}", f"output_dir={tmp_path / 'align'}", "trainer.max_steps=1"
        )
    )
    from voco_llama.model.voco_llama import VoCoLlama

    tower = VoCoLlama.from_pretrained(final).vision.visual
    for name, weight in clip.visual.state_dict().items():
        torch.testing.assert_close(tower.state_dict()[name], weight)


def test_retrieval_counts_equal_captions_as_one():
    class Fixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.unused = torch.nn.Parameter(torch.zeros(1))

        def features(self, pixel_values, text):
            return torch.eye(3), torch.tensor([[0.9, 1.0, 0.0], [1.0, 0.0, 0.9], [0.0, 0.9, 1.0]])

    def pairs(*captions):
        return [{"pixel_values": torch.zeros(3, 2, 2), "text": torch.tensor([caption])} for caption in captions]

    # images 0, 1, 2 find captions 1, 0, 2; captions 0, 1, 2 find images 1, 0, 2
    assert retrieval_accuracy(Fixed(), pairs(5, 6, 7)) == pytest.approx(
        {"image_to_text": 1 / 3, "text_to_image": 1 / 3}
    )
    assert retrieval_accuracy(Fixed(), pairs(5, 5, 7)) == {"image_to_text": 1.0, "text_to_image": 1.0}


def test_a_caption_ends_with_the_end_token(world):
    tokenizer = load_tokenizer(str(world / "tokenizer"))
    full = encode_caption("a red circle", tokenizer, 8)
    assert full.shape == (8,)
    assert full.tolist().count(tokenizer.eos_token_id) == 1
    cut = encode_caption("a red circle", tokenizer, 4)
    assert (cut[0], cut[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert cut[1:3].tolist() == full[1:3].tolist()


def test_what_it_cannot_do(clip_settings):
    with pytest.raises(SettingsError, match="no accumulation"):
        train_clip(clip_settings("trainer.gradient_accumulation_steps=2"))
    with pytest.raises(DataError, match="needs records of one image and its caption"):
        train_clip(clip_settings("data=toy_text"))
    with pytest.raises(DataError, match="more than 48 pairs"):
        train_clip(clip_settings("trainer.per_device_train_batch_size=64"))
    with pytest.raises(SettingsError, match="needs the package flash-attn"):
        train_clip(clip_settings("model.attention=flash_attention_2"))


def test_a_tokenizer_that_the_text_tower_has_no_embeddings_for(world, clip_settings):
    tokenizer = load_tokenizer(str(world / "tokenizer"))
    config = read_vision_config(f"{world}/clip/tiny_clip.json")
    check_captions(tokenizer, config, "tiny")
    tokenizer.add_tokens([f"more{number}" for number in range(100)])
    with pytest.raises(SettingsError, match=r"^model.tokenizer has \d+ tokens, and the text tower of tiny \d+ emb"):
        check_captions(tokenizer, config, "tiny")
    with pytest.raises(SettingsError, match="tiny has no text_cfg"):
        check_captions(tokenizer, {"vision_cfg": config["vision_cfg"]}, "tiny")


def test_an_unfinished_tower_is_named(clip_settings, settings_for, monkeypatch, tmp_path):
    settings = clip_settings()
    monkeypatch.setattr("voco_llama.toyworld.train_clip.ContrastiveModel", None)
    with pytest.raises(TypeError):
        train_clip(settings)
    started = settings_for("toy/language", f"model.vision.name={settings.output_dir}", f"output_dir={tmp_path}/next")
    with pytest.raises(SettingsError, match=r"run holds no open_clip_config.json or config.json; train stage clip to"):
        train(started)


def test_the_training_of_the_other_stages_refuses_it(clip_settings, tmp_path):
    with pytest.raises(SettingsError, match="stage clip trains a tower alone"):
        train(clip_settings())
    assert not list(tmp_path.iterdir())
