"""Answers come in the order of the questions, each image is compressed once, and batching changes no answer."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from tests.evaluation.hub import write_clip
from tests.tiny import tiny_model, tiny_processor
from voco_llama.errors import DataError, SettingsError
from voco_llama.evaluation import answering
from voco_llama.evaluation.answering import Answerer, first_token_seconds
from voco_llama.evaluation.efficiency import kv_bytes
from voco_llama.evaluation.questions import Question

NUM_NEW = {"max_new_tokens": 5}


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(num_voco=2, num_frames=3)


@pytest.fixture(scope="module")
def model(processor):
    return tiny_model(processor)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8, generator=generator).numpy() for _ in range(3)]
    return [Image.fromarray(array) for array in noise]


@pytest.fixture(scope="module")
def questions(images, tmp_path_factory):
    """Unequal lengths; one image, several, a clip, none; beams and other lengths among them."""
    clip = tmp_path_factory.mktemp("clip") / "a.mp4"
    write_clip(clip, "red", "green", "blue")
    looks = [[0], [1], [0], [], [2, 0], [clip], [0], [1], [clip, 2]]
    kinds = [NUM_NEW] * 9
    kinds[2], kinds[6] = {"max_new_tokens": 3}, NUM_NEW | {"num_beams": 2}
    return [
        Question(
            f"task document {i}",
            f"What{' ever' * (i % 4)} is {i}?",
            lambda look=look: [images[k] if isinstance(k, int) else k for k in look],
            kind,
        )
        for i, (look, kind) in enumerate(zip(looks, kinds, strict=True))
    ]


def answers(model, processor, questions, condition="voco", **settings):
    return list(Answerer(model, processor, condition, **settings).answer(questions))


@pytest.mark.parametrize("condition", ["voco", "full", "blind"])
@pytest.mark.parametrize("batch_size", [1, 3, 9])
def test_batched_answers_are_those_of_single_questions_in_order(model, processor, questions, condition, batch_size):
    single = [answers(model, processor, [q], condition)[0] for q in questions]
    assert answers(model, processor, questions, condition, batch_size=batch_size) == single
    assert len(set(single)) > 1  # else nothing is seen of their order


def test_each_image_is_compressed_once_also_across_windows(model, processor, questions, monkeypatch):
    expected = answers(model, processor, questions)
    monkeypatch.setattr(answering, "WINDOW_BATCHES", 1)
    answerer = Answerer(model, processor, batch_size=2)
    assert list(answerer.answer(questions)) == expected
    counts = answerer.counts
    assert (counts.answers, counts.compressed, counts.visuals) == (9, 3 + 3, 5 + 2 + 3 + 3 + 1)
    assert counts.seconds >= counts.model_seconds > 0

    once_a_question = Answerer(model, processor, batch_size=2, reuse=False)
    assert list(once_a_question.answer(questions)) == expected
    assert once_a_question.counts.compressed == counts.visuals

    monkeypatch.setattr(answering, "REUSE_BYTES", 0)
    forgetful = Answerer(model, processor, batch_size=3)
    assert list(forgetful.answer(questions)) == expected
    assert counts.compressed < forgetful.counts.compressed < counts.visuals


@pytest.mark.parametrize("condition", ["full", "blind"])
def test_nothing_is_compressed_where_nothing_is_read_from_a_cache(model, processor, questions, condition):
    answerer = Answerer(model, processor, condition)
    list(answerer.answer(questions))
    assert answerer.counts.compressed == 0


def test_condition_decides_what_is_seen(model, processor, questions):
    other = Image.new("RGB", (16, 16))
    swapped = [replace(q, look=lambda q=q: [other for _ in q.look()]) for q in questions]
    for condition, changes in (("voco", True), ("full", True), ("blind", False)):
        one, two = (answers(model, processor, asked, condition) for asked in (questions, swapped))
        assert (one != two) == changes


def test_fewer_voco_tokens_are_the_cache_cut_short(model, processor, questions, images):
    one = answers(model, processor, questions[:1], num_voco=1)
    cache = model.compress(processor.pixels([images[0]]), num_voco=2).truncate(1)
    laid_out = processor(text=[f"<image>\n{questions[0].prompt}"], num_voco=1)
    assert one == answering.generate_texts(model, processor, laid_out, cache, **NUM_NEW)


def test_an_external_compressor_is_not_cut_short(processor):
    pooled = tiny_model(replace(processor, num_vision=0), compressor="average_pool")
    with pytest.raises(SettingsError, match="average_pool was made for 2 tokens"):
        Answerer(pooled, processor, num_voco=1)


def test_answers_end_before_a_stop(model, processor, questions):
    (whole,) = answers(model, processor, questions[:1])
    stop = whole[len(whole) // 2]
    (cut,) = answers(model, processor, [replace(questions[0], until=("never", stop))])
    assert cut == whole.split(stop)[0].strip() != whole


def broken():
    raise OSError("broken file")


def test_a_failing_question_stops_with_its_name_and_earlier_windows_are_given(model, processor, questions, monkeypatch):
    monkeypatch.setattr(answering, "WINDOW_BATCHES", 1)
    asked = [*questions[:4], replace(questions[4], look=broken), *questions[5:]]
    stream = Answerer(model, processor, batch_size=2).answer(asked)
    assert [next(stream) for _ in range(4)] == answers(model, processor, questions[:4])
    with pytest.raises(DataError, match="task document 4: cannot be answered .*broken file.*go_on=true"):
        next(stream)


def test_go_on_lists_what_failed_and_answers_the_rest(model, processor, questions):
    answerer = Answerer(model, processor, go_on=True)
    asked = [*questions[:4], replace(questions[4], look=broken), *questions[5:]]
    expected = answers(model, processor, questions)
    assert list(answerer.answer(asked)) == [*expected[:4], "", *expected[5:]]
    ((failed, why),) = [(f.id, f.error) for f in answerer.counts.failures]
    assert failed == "task document 4"
    assert "broken file" in why


def test_a_batch_that_runs_out_of_memory_is_answered_one_by_one(model, processor, questions, monkeypatch):
    expected = answers(model, processor, questions)
    generate = type(model).generate

    def short_of_memory(self, input_ids, **rest):
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return generate(self, input_ids, **rest)

    monkeypatch.setattr(type(model), "generate", short_of_memory)
    assert answers(model, processor, questions) == expected
    monkeypatch.setattr(type(model), "generate", lambda *a, **k: short_of_memory(None, [0, 0]))
    with pytest.raises(DataError, match="task document 0: .*out of memory"):
        answers(model, processor, questions[:1])


def test_a_compression_that_fails_names_its_question(model, processor, questions, monkeypatch):
    compress = type(model).compress

    def fail_on_clips(self, pixels, **rest):
        if len(pixels) != 1:
            raise torch.OutOfMemoryError("out of memory")
        return compress(self, pixels, **rest)

    expected = answers(model, processor, questions)
    monkeypatch.setattr(type(model), "compress", fail_on_clips)
    answerer = Answerer(model, processor, go_on=True)
    found = list(answerer.answer(questions))
    clips = [5, 8]
    assert [f.id for f in answerer.counts.failures] == ["task document 5"]  # the clip is looked at once
    assert found == ["" if i in clips else text for i, text in enumerate(expected)]


def test_time_to_the_first_token(model, processor, questions):
    for condition, from_cache in (("voco", True), ("full", False), ("blind", False)):
        found = first_token_seconds(Answerer(model, processor, condition), questions[:2])
        assert found["image"] > 0
        assert (found["cache"] is not None) == from_cache


def test_unknown_condition(model, processor):
    with pytest.raises(SettingsError, match="choose one of full, voco, blind"):
        Answerer(model, processor, "lower")


def test_kv_bytes_are_those_of_the_cache(model, processor, images):
    pixels = processor.pixels(images[:1])
    for num_voco in (1, 2):
        cache = model.compress(pixels, num_voco=num_voco)
        assert kv_bytes(model.config.text_config, num_voco, torch.float32) == cache.bytes_per_entry
    from transformers import LlamaConfig

    assert kv_bytes(LlamaConfig(), 1, torch.float16) == 524_288  # a 7B Llama, paper.md
