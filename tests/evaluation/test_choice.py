"""Numbers of VoCo tokens chosen by the image, in an evaluation: answers, what is kept of images, results."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.evaluation.runs import lines_of, save
from tests.model.heads import random_head, telling_quality
from tests.model.rows import random_images
from tests.tiny import tiny_model, tiny_processor
from voco_llama.errors import DataError, SettingsError
from voco_llama.evaluation.answering import Answerer
from voco_llama.evaluation.questions import Question
from voco_llama.evaluation.results import read_result
from voco_llama.evaluation.run import cost_of, evaluate
from voco_llama.inference import Inference

SHORT = {"max_new_tokens": 4}
SHOWN = [[0], [1], [0], [], [2, 0], [3], [4]]
"""Which images each question is about."""


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(num_voco=4)


@pytest.fixture(scope="module")
def images():
    return random_images(5)


@pytest.fixture(scope="module")
def model(processor):
    model = tiny_model(processor)
    model.set_quality_head(random_head(model, 4))
    return model


@pytest.fixture(scope="module")
def quality(model, processor, images):
    return telling_quality(model, model.quality_head, processor.pixels(images))


@pytest.fixture(scope="module")
def questions(images):
    return [Question(f"q{i}", f"What is {i}?", lambda k=k: [images[n] for n in k], SHORT) for i, k in enumerate(SHOWN)]


def answerer_of(model, processor, quality, **settings):
    return Answerer(Inference(model, processor), quality=quality, **settings)


def test_answers_are_those_of_each_images_number(model, processor, images, questions, quality):
    inference = Inference(model, processor)
    counts = inference.compress(images, quality=quality).counts.tolist()
    assert len(set(counts)) > 2
    expected = []
    for k, question in zip(SHOWN, questions, strict=True):
        cache = model.compress(processor.pixels([images[n] for n in k]), [counts[n] for n in k]) if k else None
        expected += inference.answer(question.prompt, cache, counts=[len(k)] if k else None, **SHORT)
    for batch_size in (1, 3):
        for reuse in (True, False):
            answerer = answerer_of(model, processor, quality, batch_size=batch_size, reuse=reuse)
            assert list(answerer.answer(questions)) == expected
            looked = [list(answerer.counts.looked[question.id].values()) for question in questions]
            assert looked == [[[counts[n]] for n in k] for k in SHOWN]
            assert answerer.counts.kept() == Counter(counts)


def test_the_cost_is_a_mean_over_images(model, processor, quality, caplog):
    caplog.set_level("INFO", "voco_llama")
    answerer = answerer_of(model, processor, quality)
    one = model.config.kv_bytes(1, model.dtype)
    assert cost_of(answerer, kept={1: 3, 4: 1}) == {
        "tokens_per_image": 1.75,
        "kv_bytes_per_image": 1.75 * one,
        "kv_dtype": "float32",
        "images_by_tokens": {"1": 3, "4": 1},
    }
    assert caplog.messages[-1] == "1.75 VoCo tokens an image, the mean of 4"
    with pytest.raises(DataError, match="the mean number of tokens is not known"):
        cost_of(answerer, kept={})
    whole = cost_of(answerer, kept={2: 5})
    assert [type(whole[f"{what}_per_image"]) for what in ("tokens", "kv_bytes")] == [int, int]
    assert cost_of(answerer_of(model, processor, None)) == {
        "tokens_per_image": 4,
        "kv_bytes_per_image": 4 * one,
        "kv_dtype": "float32",
    }


def test_what_was_kept_outlives_a_kill(model, processor, questions, quality, tmp_path):
    """A run that goes on asks the rest alone, and its mean is over all images; a torn line is that of a torn window."""
    record = tmp_path / "deep" / "a.looked"
    whole = answerer_of(model, processor, quality, batch_size=1, record=tmp_path / "whole")
    list(whole.answer(questions))
    first = answerer_of(model, processor, quality, batch_size=1, record=record)
    list(first.answer(questions[:3]))
    with record.open("a") as file:
        file.write('{"q3": {"torn')
    second = answerer_of(model, processor, quality, batch_size=1, record=record)
    second.read_record()
    list(second.answer(questions[3:]))
    assert second.counts.looked == whole.counts.looked
    again = answerer_of(model, processor, quality, record=record)
    again.read_record()
    assert again.counts.looked == whole.counts.looked


def test_what_is_refused(model, processor, settings_for):
    with pytest.raises(SettingsError, match="quality is -0.1: give a divergence in nats an answer token"):
        settings_for(quality=-0.1)
    with pytest.raises(SettingsError, match="leave it out under condition=blind"):
        settings_for(quality=0.1, condition="blind")
    for condition in ("full", "blind"):
        with pytest.raises(SettingsError, match=f"is about VoCo tokens: leave it out under condition={condition}"):
            answerer_of(model, processor, 0.05, condition=condition)
    headless = tiny_model(processor)
    with pytest.raises(SettingsError, match="the checkpoint has no head"):
        answerer_of(headless, processor, 0.05)


@pytest.mark.slow
def test_a_result_says_what_was_kept(settings_for, tmp_path):
    processor = tiny_processor(num_voco=4, num_frames=3)
    model = tiny_model(processor)
    folder = save(tmp_path / "checkpoint", processor)
    head = random_head(model, 4)
    head.save(folder, {})
    quality = telling_quality(model, head, processor.pixels(random_images(5)))
    asked = settings_for(checkpoint=folder, row="adaptive", tasks=["gqa"], quality=quality)
    file = evaluate(asked)
    result, lines = read_result(file), lines_of(file)
    kept = {key: tokens for line in lines for key, tokens in line["images"].items()}
    counts = Counter(n for tokens in kept.values() for n in tokens)
    assert result["images_by_tokens"] == {str(n): counts[n] for n in sorted(counts)}
    mean = sum(n * images for n, images in counts.items()) / counts.total()
    assert result["tokens_per_image"] == pytest.approx(mean)
    assert result["kv_bytes_per_image"] == pytest.approx(mean * model.config.kv_bytes(1, torch.float32))
    assert (result["num_voco"], result["quality"], len(result["quality_head"])) == (4, quality, 64)
    assert evaluate(asked) == file
    with pytest.raises(SettingsError, match="result of another evaluation: .*quality"):
        evaluate(replace(asked, quality=None))
    random_head(model, 4, seed=1).save(folder, {})
    with pytest.raises(SettingsError, match="result of another evaluation: .*quality_head"):
        evaluate(asked)
