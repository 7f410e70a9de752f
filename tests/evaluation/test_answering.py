"""Answers come in the order of the questions, each image is compressed once, and neither batches nor reuse change any.

What a question's answer must be is worked out by hand here: its own images, its own batch of one.
"""

import logging
from dataclasses import replace

import pytest
import torch
from PIL import Image

from tests.evaluation.hub import write_clip
from tests.tiny import tiny_model, tiny_processor
from voco_llama.configuration import VoCoLlamaConfig
from voco_llama.data.media.video import read_frames
from voco_llama.errors import DataError, SettingsError
from voco_llama.evaluation import answering
from voco_llama.evaluation.answering import Answerer, first_token_seconds
from voco_llama.evaluation.questions import Question, cut, see_clip
from voco_llama.inference import Inference

NUM_FRAMES = 3
SHORT = {"max_new_tokens": 5}
SHOWN = [0, 1, 0, 2, 1, 0, 2]
"""Which image each question of `questions` is about."""


@pytest.fixture(scope="module")
def processor():
    return tiny_processor(num_voco=2, num_frames=NUM_FRAMES)


@pytest.fixture(scope="module")
def model(processor):
    return tiny_model(processor)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8, generator=generator).numpy() for _ in range(3)]
    return [Image.fromarray(array) for array in pixels]


@pytest.fixture(scope="module")
def questions(images):
    """Seven questions of unequal length on three images; each look gives an object of its own."""
    return [
        Question(f"gqa {i}", f"What{' ever' * (i % 4)} is {i}?", lambda k=k: [images[k].copy()], SHORT)
        for i, k in enumerate(SHOWN)
    ]


@pytest.fixture(scope="module")
def mixed(images, tmp_path_factory):
    """Text alone, one image, several, a clip; lengths, beams and ends of answers that differ."""
    clip = tmp_path_factory.mktemp("clips") / "c.mp4"
    write_clip(clip, "red", "green", "blue")
    one, two, three = images
    beams = {"max_new_tokens": 4, "num_beams": 2}
    return [
        Question("0", "What is two and two?", generation=SHORT),
        Question("1", "Which?", lambda: [one], {"max_new_tokens": 2}),
        Question("2", "Which of these two images is it, if any?", lambda: [two, one], SHORT),
        Question("3", "What happens?", lambda: [str(clip)], SHORT),
        Question("4", "And in all of these?", lambda: [three, one, two], beams),
        Question("5", "Which color comes last in the clip that is shown?", lambda: [clip], beams),
        Question("6", "Is it?", lambda: [one], SHORT),
        Question("7", "Why?", generation=beams),
        Question("8", "Now again, a question that is a good deal longer than the others are.", lambda: [two], SHORT),
        Question("9", "Which?", lambda: [one], SHORT, until=("a", "e", " ")),
    ]


def said(model, processor, laid_out, cache=None, **generation):
    with torch.inference_mode():
        ids = model.generate(**laid_out, cache=cache, do_sample=False, **generation)
    return [text.strip() for text in processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def by_hand(model, processor, question, condition="voco", num_voco=2):
    """The answer of one question, without an `Answerer`."""
    shown, marks = [], []
    for visual in question.look() if condition != "blind" else ():
        frames = [visual] if isinstance(visual, Image.Image) else read_frames(visual, NUM_FRAMES)
        shown += frames
        marks.append("<image>" * len(frames))
    text = f"{' '.join(marks)}\n{question.prompt}" if marks else question.prompt
    if condition == "full":
        laid_out, cache = processor(text=[text], images=shown or None, condition="full"), None
    else:
        laid_out = processor(text=[text], condition="voco", num_voco=num_voco)
        cache = model.compress(processor.pixels(shown), num_voco=num_voco) if shown else None
    (answer,) = said(model, processor, laid_out, cache, **question.generation)
    return cut(answer, question.until)


def answer(model, processor, questions, **settings):
    answerer = Answerer(Inference(model, processor), **settings)
    return list(answerer.answer(questions)), answerer.counts


@pytest.mark.parametrize("condition", ["voco", "full", "blind"])
def test_batched_answers_are_those_of_single_questions_in_order(model, processor, mixed, questions, condition):
    asked = [*mixed, *questions]
    expected = [by_hand(model, processor, question, condition) for question in asked]
    for batch_size in (1, 3, 7):
        assert answer(model, processor, asked, condition=condition, batch_size=batch_size)[0] == expected
    assert len(set(expected)) > len(expected) // 2  # else nothing is seen of their order


def test_order_holds_over_windows_and_each_image_is_compressed_once(model, processor, questions, monkeypatch):
    monkeypatch.setattr(answering, "WINDOW_BATCHES", 1)
    sizes, compress = [], type(model).compress
    monkeypatch.setattr(
        type(model), "compress", lambda self, pixels, **kw: sizes.append(len(pixels)) or compress(self, pixels, **kw)
    )
    expected = [by_hand(model, processor, question) for question in questions]
    sizes.clear()
    given, counts = answer(model, processor, questions, batch_size=2)
    assert given == expected
    assert (counts.compressed, counts.visuals, counts.answers, sum(sizes)) == (3, 7, 7, 3)
    assert 0 < counts.model_seconds < counts.seconds


@pytest.mark.parametrize("condition", ["full", "blind"])
def test_nothing_is_compressed_under_the_other_conditions(model, processor, questions, condition):
    _, counts = answer(model, processor, questions, condition=condition)
    assert (counts.compressed, counts.visuals) == (0, 7 if condition == "full" else 0)


@pytest.mark.parametrize(
    ("images_kept", "compressed"),
    # of 0 1 0 2 1 0 2: all three; those used last of two (the third question alone finds its image); one
    [(3, 3), (2, 6), (1, 7)],
)
def test_the_images_unused_longest_are_let_go(model, processor, questions, monkeypatch, images_kept, compressed):
    expected, _ = answer(model, processor, questions)
    monkeypatch.setattr(answering, "WINDOW_BATCHES", 1)
    monkeypatch.setattr(answering, "REUSE_BYTES", images_kept * model.config.kv_bytes(2, torch.float32))
    answerer = Answerer(Inference(model, processor), batch_size=1)
    assert list(answerer.answer(questions)) == expected
    assert answerer.counts.compressed == compressed
    assert len(answerer._kept) == images_kept


def test_kept_images_serve_the_next_call(model, processor, questions):
    answerer = Answerer(Inference(model, processor))
    first = list(answerer.answer(questions))
    assert list(answerer.answer(questions)) == first
    assert answerer.counts.compressed == 3


def test_answers_without_reuse_are_the_same(model, processor, mixed, questions):
    asked = [*mixed, *questions]
    (with_reuse, few), (without, many) = (
        answer(model, processor, asked, batch_size=3, reuse=reuse) for reuse in (True, False)
    )
    assert with_reuse == without
    assert (few.compressed, few.visuals) == (3 + NUM_FRAMES, 9 + 2 * NUM_FRAMES + 7)
    assert many.compressed == many.visuals == few.visuals


@pytest.fixture
def clip(tmp_path):
    write_clip(tmp_path / "c.mp4", "red", "green", "blue")
    return tmp_path / "c.mp4"


@pytest.mark.parametrize("condition", ["voco", "full"])
def test_any_order_of_a_clips_frames_reads_the_same_entries(model, processor, clip, condition):
    """In order of time, in another order, and a part of the frames; all are compressed in one go, once."""
    orders = [(0, 1, 2), (2, 0, 1), (1, 1), None]
    asked = [Question(str(o), "What happens?", lambda o=o: [see_clip(clip, NUM_FRAMES, o)], SHORT) for o in orders]
    given, counts = answer(model, processor, asked, condition=condition)
    assert counts.compressed == (3 if condition == "voco" else 0)
    frames = read_frames(clip, NUM_FRAMES)
    for order, text in zip(orders, given, strict=True):
        shown = frames if order is None else [frames[i] for i in order]
        if condition == "full":
            laid_out, cache = (
                processor(text=["<image>" * len(shown) + "\nWhat happens?"], images=shown, condition="full"),
                None,
            )
        else:
            laid_out = processor(text=["<image>" * len(shown) + "\nWhat happens?"])
            cache = model.compress(processor.pixels(frames))[range(3) if order is None else order]
        assert [text] == said(model, processor, laid_out, cache, **SHORT)


def test_a_clip_is_told_by_its_content(model, processor, clip):
    copy = clip.with_name("copy.mp4")
    copy.write_bytes(clip.read_bytes())
    answerer = Answerer(Inference(model, processor))
    asked = [Question(str(file), "What?", lambda file=file: [file], SHORT) for file in (clip, copy)]
    first = list(answerer.answer(asked))
    assert answerer.counts.compressed == NUM_FRAMES  # the same bytes under two paths
    write_clip(clip, "blue", "green", "red")
    replaced, other = answerer.answer(asked)
    assert (replaced, other) == (by_hand(model, processor, asked[0]), first[1])
    assert answerer.counts.compressed == 2 * NUM_FRAMES
    list(answerer.answer([replace(asked[0], look=lambda: [see_clip(clip, 2)])]))
    assert answerer.counts.compressed == 2 * NUM_FRAMES + 2
    clip.unlink()
    with pytest.raises(DataError, match=r"cannot be answered \(FileNotFoundError: .*c.mp4"):
        list(answerer.answer(asked))


def test_condition_decides_what_is_seen(model, processor, questions):
    swapped = [replace(q, look=lambda: [Image.new("RGB", (16, 16))]) for q in questions]
    for condition, changes in (("voco", True), ("full", True), ("blind", False)):
        one, other = (answer(model, processor, asked, condition=condition)[0] for asked in (questions, swapped))
        assert (one != other) == changes


def test_fewer_voco_tokens_are_the_cache_cut_short(model, processor, questions):
    """num_voco reaches both the compression and the layout of the rows."""
    short, _ = answer(model, processor, questions, num_voco=1)
    for text, question in zip(short, questions, strict=True):
        cache = model.compress(processor.pixels(question.look()), num_voco=2).truncate(1)
        laid_out = processor(text=[f"<image>\n{question.prompt}"], num_voco=1)
        assert [text] == said(model, processor, laid_out, cache, **SHORT)
    assert short != answer(model, processor, questions)[0]


def test_an_answer_ends_before_the_first_of_its_ends():
    assert cut(" a b. c, d\n", (",", ".")) == "a b"
    assert cut("a b", ()) == "a b"
    assert cut(".a", (".",)) == ""


@pytest.fixture
def no_file(questions):
    """The questions, the fifth of them on a file that is gone."""

    def look():
        raise OSError("no such file:\nred.png")

    return [replace(q, look=look) if i == 4 else q for i, q in enumerate(questions)]


@pytest.mark.parametrize("condition", ["voco", "full"])
def test_a_failing_question_stops_and_is_named_after_the_earlier_windows(
    model, processor, questions, no_file, condition, monkeypatch
):
    monkeypatch.setattr(answering, "WINDOW_BATCHES", 1)
    given = []
    with pytest.raises(DataError, match=r"^gqa 4: cannot be answered \(OSError: no such file: red.png\): .*go_on=true"):
        given.extend(Answerer(Inference(model, processor), condition, batch_size=2).answer(no_file))
    assert given == [by_hand(model, processor, question, condition) for question in questions[:4]]


@pytest.mark.parametrize("condition", ["voco", "full"])
def test_a_failing_question_is_listed_where_the_rest_goes_on(model, processor, questions, no_file, condition):
    expected, _ = answer(model, processor, questions, condition=condition)
    given, counts = answer(model, processor, no_file, condition=condition, batch_size=3, go_on=True)
    assert given == [*expected[:4], "", *expected[5:]]
    assert counts.failures == {"gqa 4": "OSError: no such file: red.png"}


def test_a_question_on_something_else_fails(model, processor, questions):
    with pytest.raises(DataError, match="gqa 0: .* looks at a int: images and paths of clips can be answered on"):
        answer(model, processor, [replace(questions[0], look=lambda: [3])])


def out_of_memory(monkeypatch, model, name, fails):
    """`model.<name>` runs out of memory where `fails(tensor)`; returns the sizes of batches that were tried."""
    tried, method = [], getattr(type(model), name)

    def scarce(self, pixel_values=None, *arguments, **named):
        tensor = pixel_values if pixel_values is not None else named["input_ids"]
        tried.append(len(tensor))
        if fails(tensor):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return method(self, *([pixel_values] if pixel_values is not None else []), *arguments, **named)

    monkeypatch.setattr(type(model), name, scarce)
    return tried


@pytest.mark.parametrize("name", ["generate", "compress"])
def test_a_batch_that_is_too_large_is_worked_through_one_by_one(model, processor, questions, monkeypatch, caplog, name):
    expected, _ = answer(model, processor, questions)
    tried = out_of_memory(monkeypatch, model, name, lambda tensor: len(tensor) > 1)
    with caplog.at_level(logging.WARNING):
        given, counts = answer(model, processor, questions)
    assert given == expected
    assert tried == ([7, *[1] * 7] if name == "generate" else [3, 1, 1, 1])
    assert (counts.compressed, counts.failures) == (3, {})
    assert "OutOfMemoryError: CUDA out of memory" in caplog.text
    assert "one by one" in caplog.text


def test_a_question_too_large_alone_is_named(model, processor, questions, monkeypatch):
    expected, _ = answer(model, processor, questions)
    longest = max(len(processor(text=[f"<image>\n{q.prompt}"])["input_ids"][0]) for q in questions)
    out_of_memory(monkeypatch, model, "generate", lambda ids: len(ids) > 1 or ids.shape[1] == longest)
    with pytest.raises(DataError, match="gqa 3: .*OutOfMemoryError"):
        answer(model, processor, questions)
    given, counts = answer(model, processor, questions, go_on=True)
    assert given == [*expected[:3], "", *expected[4:]]
    assert counts.failures == {"gqa 3": "OutOfMemoryError: CUDA out of memory"}


def test_an_image_that_cannot_be_compressed_fails_every_question_on_it(model, processor, questions, monkeypatch):
    expected, _ = answer(model, processor, questions)
    bad = processor.pixels(questions[3].look())[0]
    out_of_memory(monkeypatch, model, "compress", lambda pixels: any(torch.equal(image, bad) for image in pixels))
    with pytest.raises(DataError, match="gqa 3"):
        answer(model, processor, questions)
    given, counts = answer(model, processor, questions, go_on=True)
    assert given == [*expected[:3], "", *expected[4:6], ""]
    assert list(counts.failures) == ["gqa 3", "gqa 6"]
    assert counts.compressed == 2


def test_a_checkpoint_without_voco_tokens_is_not_read_through_none():
    llava = tiny_model(tiny_processor(num_voco=0, condition="full"))
    with pytest.raises(SettingsError, match="made without VoCo tokens .*condition=full, or num_voco"):
        Answerer(Inference(llava, None), "voco")
    assert Answerer(Inference(llava, None), "voco", num_voco=1).num_voco == 1
    assert Answerer(Inference(llava, None), "full").num_voco == 0


@pytest.mark.parametrize("condition", ["voco", "full"])
def test_more_voco_tokens_than_the_model_can_make_are_refused_before_any_question(model, processor, condition):
    with pytest.raises(SettingsError, match="^num_voco 99 makes no sense for"):
        Answerer(Inference(model, processor), condition, num_voco=99)
    assert Answerer(Inference(model, processor), "blind", num_voco=99).num_voco == 99


def test_more_voco_tokens_than_training_had_are_warned_of_and_fewer_not(model, processor, caplog):
    for num_voco, condition, times in (
        (None, "voco", 0),
        (1, "voco", 0),
        (2, "voco", 0),
        (3, "full", 0),
        (3, "voco", 1),
    ):
        Answerer(Inference(model, processor), condition, num_voco=num_voco)
        assert caplog.text.count("num_voco=3: in training an image had 2 VoCo tokens, never so many") == times


def test_unknown_condition(model, processor):
    with pytest.raises(SettingsError, match="choose one of full, voco, blind"):
        Answerer(Inference(model, processor), "lower")


def test_an_external_compressor_cannot_be_cut_short(questions):
    processor = replace(tiny_processor(num_voco=2), num_vision=0)
    model = tiny_model(processor, compressor="q_former", q_former={"layers": 1, "width": 8, "heads": 2})
    with pytest.raises(SettingsError, match="q_former makes 2 tokens, no other number: leave num_voco out"):
        Answerer(Inference(model, processor), num_voco=1)
    for num_voco in (None, 2):
        given, counts = answer(model, processor, questions, num_voco=num_voco)
        assert counts.compressed == 3
        assert given == [by_hand(model, processor, question) for question in questions]


def test_time_to_the_first_token(model, processor, mixed, questions):
    for condition, timed in (("voco", {"image", "cache"}), ("full", {"image"}), ("blind", {"image"})):
        answerer = Answerer(Inference(model, processor), condition)
        times = first_token_seconds(answerer, [*mixed[:4], questions[0]])
        assert {name for name, seconds in times.items() if seconds is not None} == timed
        assert all(0 < times[name] < 60 for name in timed)
        assert answerer.counts == answering.Counts()
    assert first_token_seconds(Answerer(Inference(model, processor)), []) == {"image": None, "cache": None}


def test_kv_bytes_are_those_of_the_cache(model, processor, images):
    for num_voco in (1, 2):
        cache = model.compress(processor.pixels(images[:1]), num_voco=num_voco)
        assert model.config.kv_bytes(num_voco, torch.float32) == cache.bytes_per_entry
    from transformers import LlamaConfig

    assert VoCoLlamaConfig(text_config=LlamaConfig()).kv_bytes(1, torch.float16) == 524_288  # a 7B Llama, paper.md
