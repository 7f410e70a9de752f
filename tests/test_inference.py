"""A saved checkpoint that answers: the same in batches, from a cache, from images; and `ask`."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from tests.tiny import tiny_model, tiny_processor
from voco_llama.asking import AskSettings, ask
from voco_llama.errors import CheckpointError, DataError, SettingsError
from voco_llama.inference import Inference, checkpoint_fingerprint

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
def full_folder(tmp_path_factory):
    """The upper bound: text sees the images."""
    folder = tmp_path_factory.mktemp("full")
    processor = tiny_processor(num_voco=2, num_frames=3, condition="full")
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


# ---- marks in questions


def alone(inference, question, images, **more):
    """The answer to one question whose images stand before it."""
    marked = "<image> " * (len(images) - 1) + f"<image>\n{question}"
    return inference.answer([marked], images=images, max_new_tokens=5, **more)[0]


@pytest.mark.parametrize("condition", ["voco", "full"])
@pytest.mark.parametrize("order", ["first", "authors", "llava", "inline"])
def test_every_question_looks_at_the_image_marks_or_none(images, order, condition):
    """One mark, none, several, one in some of the questions, one in the middle: all look at the one image."""
    processor = tiny_processor(num_voco=2, order=order)
    inference = Inference(tiny_model(processor), processor)
    expected = [alone(inference, question, images[:1], condition=condition) for question in QUESTIONS]
    assert expected != inference.answer(QUESTIONS, condition=condition, max_new_tokens=5)
    looks = {"images": images[:1]} if condition == "full" else {"cache": inference.compress(images[:1])}
    for texts in (QUESTIONS, MARKED, [MARKED[0], QUESTIONS[1]], [QUESTIONS[0], MARKED[1]]):
        assert inference.answer(texts, **looks, condition=condition, max_new_tokens=5) == expected
    surplus = [f"<image>\n<image>\n{QUESTIONS[0]}", f"{QUESTIONS[1]} <image> <image>"]
    assert inference.answer(surplus, **looks, condition=condition, max_new_tokens=5) == expected


def test_marks_that_are_as_many_as_the_images_say_where_they_stand(images):
    processor = tiny_processor(num_voco=2, order="inline")
    inference = Inference(tiny_model(processor), processor)
    cache = inference.compress(images)
    texts = ["Is <image> left of <image>?", "<image>?"]
    own = [
        inference.answer([text], cache[places], max_new_tokens=5)[0]
        for text, places in zip(texts, ([0, 1], [2]), strict=True)
    ]
    assert inference.answer(texts, cache, max_new_tokens=5) == own
    assert inference.answer(["Is  left of ?", "<image>?"], cache, max_new_tokens=5)[0] != own[0]


def test_questions_on_different_numbers_of_images(inference, images):
    """`counts` says who looks at what, also where nobody has a mark; unmarked ones get an image each if that is it."""
    cache, questions = inference.compress(images), [QUESTIONS[0], "What is two and two?", QUESTIONS[1]]
    expected = [alone(inference, QUESTIONS[0], images[:1]), *inference.answer(questions[1:2], max_new_tokens=5)]
    expected.append(alone(inference, QUESTIONS[1], images[1:]))
    assert inference.answer(questions, cache, counts=[1, 0, 2], max_new_tokens=5) == expected
    each = [alone(inference, question, [image]) for question, image in zip(QUESTIONS, images, strict=False)]
    assert inference.answer(QUESTIONS, images=images[:2], max_new_tokens=5) == each
    everything = [alone(inference, question, images) for question in QUESTIONS]
    assert inference.answer(QUESTIONS, cache, max_new_tokens=5) == everything
    with pytest.raises(SettingsError, match=r"counts \[1\] is not about 2 questions and 3 images"):
        inference.answer(QUESTIONS, cache, counts=[1])
    with pytest.raises(SettingsError, match="either images or a cache"):
        inference.answer(QUESTIONS, cache, images=images)


def test_one_question_and_one_image_need_no_list(inference, images):
    expected = [alone(inference, QUESTIONS[0], images[:1])]
    assert inference.answer(QUESTIONS[0], images=images[0], max_new_tokens=5) == expected
    assert inference.answer(QUESTIONS[0], inference.compress(images[0]), max_new_tokens=5) == expected
    with pytest.raises(SettingsError, match="no image to compress"):
        inference.compress([])


def test_a_question_without_an_image_loses_its_marks(inference):
    for condition in ("voco", "full"):
        said = inference.answer(MARKED, condition=condition, max_new_tokens=5)
        assert said == inference.answer(QUESTIONS, condition=condition, max_new_tokens=5)


# ---- the checkpoint's own condition


def test_images_are_seen_as_the_checkpoint_was_trained(folder, full_folder, images, tmp_path):
    images[0].save(tmp_path / "image.png")
    for trained, where in (("voco", folder), ("full", full_folder)):
        inference = Inference.load(where, "cpu")
        said = {c: inference.answer(QUESTIONS, images=images[:1] * 2, condition=c) for c in ("voco", "full")}
        assert said["voco"] != said["full"]
        assert inference.answer(QUESTIONS, images=images[:1] * 2) == said[trained]
        for condition, expected in ((None, said[trained]), *said.items()):
            asked = AskSettings(where, tmp_path / "image.png", questions=QUESTIONS, condition=condition, device="cpu")
            assert ask(asked) == expected
        asked = AskSettings(where, questions=MARKED, condition="blind", device="cpu")
        assert ask(asked) == inference.answer(QUESTIONS)


def test_a_cache_of_the_upper_bound_is_asked_for_by_name(full_folder, images):
    inference = Inference.load(full_folder, "cpu")
    with pytest.raises(SettingsError, match="trained with condition full, .* learned nothing: .*condition='voco'"):
        inference.compress(images)
    cache = inference.compress(images[:1], condition="voco")
    assert inference.answer(MARKED[:1], cache) == inference.answer(MARKED[:1], images=images[:1], condition="voco")


def test_a_llava_is_asked_in_full(images, tmp_path):
    """No VoCo tokens at all: the lower bound needs a number."""
    images[0].save(tmp_path / "image.png")
    processor = tiny_processor(num_voco=0, condition="full")
    model = tiny_model(processor)
    model.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    settings = {"image": tmp_path / "image.png", "questions": QUESTIONS[0], "device": "cpu", "max_new_tokens": 5}
    expected = alone(Inference(model, processor), QUESTIONS[0], images[:1], condition="full")
    assert ask(AskSettings(tmp_path / "llava", **settings)) == [expected]
    with pytest.raises(SettingsError, match="made without VoCo tokens .*: set condition=full, or num_voco"):
        ask(AskSettings(tmp_path / "llava", **settings, condition="voco"))
    assert ask(AskSettings(tmp_path / "llava", **settings, condition="voco", num_voco=2))


def test_an_external_compressor_has_no_condition_full(images, tmp_path):
    images[0].save(tmp_path / "image.png")
    processor = replace(tiny_processor(num_voco=1), num_vision=0)
    tiny_model(processor, compressor="average_pool").save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match="condition=full: .* what the average_pool makes of it"):
        ask(AskSettings(tmp_path, tmp_path / "image.png", questions="What?", condition="full", device="cpu"))


@pytest.mark.parametrize("condition", ["Full", "blind", "lower"])
def test_an_unknown_condition_is_not_taken_for_another(inference, images, condition):
    with pytest.raises(SettingsError, match=f"condition is '{condition}': choose one of voco, full"):
        inference.answer(QUESTIONS, images=images[:1], condition=condition)
    with pytest.raises(SettingsError, match="there is no question"):
        inference.answer([], images=images[:1])


@pytest.mark.parametrize("name", ["model.safetensors", "voco_processor.json", "chat_template.jinja", "tokenizer.model"])
def test_a_checkpoints_fingerprint_is_of_what_a_question_becomes_too(tmp_path, name):
    (tmp_path / name).write_text("before")
    (tmp_path / "README.md").write_text("before")
    before = checkpoint_fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("after")
    assert checkpoint_fingerprint(tmp_path) == before
    (tmp_path / name).write_text("after")
    assert checkpoint_fingerprint(tmp_path) != before


def test_a_question_too_long_is_refused(inference, images):
    with pytest.raises(DataError, match="language model was made for 512"):
        inference.answer(["a" * 600], images=images[:1])
