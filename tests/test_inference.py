"""A saved checkpoint that answers: the same in batches, from a cache, from images; and `ask`."""

import pytest
import torch
from PIL import Image

from tests.evaluation.hub import write_clip
from tests.tiny import tiny_model, tiny_processor
from voco_llama.errors import CheckpointError, SettingsError
from voco_llama.inference import AskSettings, Inference, ask

QUESTIONS = ["What is it?", "Is it red, or is it blue?"]
MARKED = [f"<image>\n{question}" for question in QUESTIONS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    processor = tiny_processor(num_voco=2, num_frames=3)
    tiny_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def inference(folder):
    return Inference.load(folder, "cpu")


@pytest.fixture(scope="module")
def images():
    return [Image.new("RGB", (16, 16), color) for color in ("red", "green", "blue")]


def test_loaded_as_saved_or_in_another_dtype(folder, inference, tmp_path):
    assert (inference.model.dtype, inference.model.training, inference.processor.num_frames) == (
        torch.float32,
        False,
        3,
    )
    assert Inference.load(folder, "cpu", "bfloat16").model.dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match=r"holds no saved model \(no config.json\)"):
        Inference.load(tmp_path)


def test_compressed_in_batches_in_order(inference, images):
    whole = inference.compress(images)
    assert (len(whole), whole.num_voco) == (3, 2)
    for batch_size in (1, 2, 5):
        torch.testing.assert_close(inference.compress(images, batch_size=batch_size).keys, whole.keys)
    torch.testing.assert_close(inference.compress(images, num_voco=1).keys, whole.truncate(1).keys)


def test_answers_from_a_cache_are_those_from_images(inference, images):
    """Each mark reads an entry; the number of tokens is the cache's; images without a cache are compressed first."""
    for num_voco in (1, 2):
        cache = inference.compress(images[:2], num_voco)
        from_cache = inference.answer(MARKED, cache, max_new_tokens=5)
        assert from_cache == inference.answer(MARKED, images=images[:2], num_voco=num_voco, max_new_tokens=5)
        alone = [inference.answer([text], cache[i], max_new_tokens=5) for i, text in enumerate(MARKED)]
        assert from_cache == [text for (text,) in alone]
    seen = inference.answer(MARKED, images=images[:2], condition="full", max_new_tokens=5)
    assert seen != from_cache


def test_ask_compresses_once_and_answers_every_question(folder, inference, images, tmp_path):
    """Of a clip, every question reads all frames."""
    images[0].save(tmp_path / "image.png")
    asked = AskSettings(folder, image=tmp_path / "image.png", questions=QUESTIONS, max_new_tokens=5, device="cpu")
    assert ask(asked) == inference.answer(QUESTIONS, inference.compress(images[:1]), max_new_tokens=5)
    write_clip(tmp_path / "clip.mp4", "red", "green", "blue")
    asked = AskSettings(folder, video=tmp_path / "clip.mp4", questions=QUESTIONS, num_voco=1, device="cpu")
    assert len(ask(asked)) == len(QUESTIONS)


@pytest.mark.parametrize("changes", [{}, {"image": "a.png", "video": "b.mp4"}])
def test_ask_looks_at_one_thing_and_has_a_question(folder, changes):
    with pytest.raises(SettingsError, match="either image=FILE or video=FILE"):
        AskSettings(folder, questions=QUESTIONS, **changes)
    with pytest.raises(SettingsError, match="there is no question"):
        AskSettings(folder, image="a.png")
