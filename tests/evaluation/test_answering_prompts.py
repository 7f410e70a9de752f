"""What questions look at: marks in their own text, the checkpoint's own condition, and how long they may be."""

from dataclasses import replace

import pytest

from tests.evaluation.hub import write_clip
from tests.evaluation.test_answering import NUM_FRAMES, SHORT, answer, by_hand
from tests.model.rows import random_images
from tests.tiny import tiny_model, tiny_processor, tiny_text_config
from voco_llama.errors import DataError
from voco_llama.evaluation.questions import Question
from voco_llama.inference import Inference


@pytest.fixture(scope="module")
def questions():
    """On one image each, of unequal length."""
    images = random_images(3)
    return [
        Question(f"gqa {i}", f"What{' ever' * (i % 4)} is {i}?", lambda k=i % 3: [images[k].copy()], SHORT)
        for i in range(7)
    ]


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """On text alone, two images, a clip."""
    clip = tmp_path_factory.mktemp("clips") / "c.mp4"
    write_clip(clip, "red", "green", "blue")
    return [
        Question("0", "What is two and two?", generation=SHORT),
        Question("1", "Which of these two images is it, if any?", lambda: random_images(2), SHORT),
        Question("2", "What happens?", lambda: [str(clip)], SHORT),
    ]


@pytest.mark.parametrize("condition", ["voco", "full", "blind"])
@pytest.mark.parametrize("order", ["first", "llava"])
def test_marks_in_a_questions_own_text(questions, others, condition, order):
    """As many as it looks at: they say where; in any other number they are nothing to it; nothing is lost of either."""
    processor = tiny_processor(num_voco=2, num_frames=NUM_FRAMES, order=order)
    model = tiny_model(processor)
    plain = [*questions, *others]
    texts = [f"<image>\n{q.prompt}" if i % 2 else f"<image>\n<image>\n<image>\n{q.prompt}" for i, q in enumerate(plain)]
    marked = [replace(question, prompt=text) for question, text in zip(plain, texts, strict=True)]
    expected = [by_hand(model, processor, question, condition) for question in plain]
    assert answer(model, processor, marked, condition=condition, batch_size=4)[0] == expected


def test_the_condition_is_the_checkpoints_own_unless_it_is_said(questions):
    """The lower bound is asked for by name."""
    processor = tiny_processor(num_voco=2, condition="full")
    model = tiny_model(processor)
    expected = {c: [by_hand(model, processor, question, c) for question in questions] for c in ("full", "voco")}
    assert expected["full"] != expected["voco"]
    assert answer(model, processor, questions)[0] == expected["full"]
    for condition, given in expected.items():
        assert answer(model, processor, questions, condition=condition)[0] == given


@pytest.mark.parametrize("condition", ["voco", "full"])
def test_a_question_longer_than_the_positions_is_listed(questions, condition):
    processor = tiny_processor(num_voco=2)
    model = tiny_model(processor, text_config=tiny_text_config(max_position_embeddings=90))
    asked = [*questions[:3], replace(questions[3], prompt="Why? " * 20), *questions[4:]]
    expected, _ = answer(model, processor, questions, condition=condition)
    with pytest.raises(
        DataError, match="gqa 3: cannot be answered .*takes 1.. tokens, and the language model was made"
    ):
        answer(model, processor, asked, condition=condition)
    given, counts = answer(model, processor, asked, condition=condition, go_on=True)
    assert given == [*expected[:3], "", *expected[4:]]
    assert list(counts.failures) == ["gqa 3"]
    assert "90 (max_position_embeddings): use fewer images" in counts.failures["gqa 3"]


@pytest.mark.parametrize("condition", ["voco", "full", "blind"])
def test_a_question_may_have_a_history(questions, condition):
    """The image stands where its turn has the mark, or before the first turn; a bad conversation is the question's."""
    processor = tiny_processor(num_voco=2, order="inline")
    model = tiny_model(processor)
    said = [{"role": "user", "content": "So?"}, {"role": "assistant", "content": "Yes."}]
    mark = "" if condition == "blind" else "<image>\n"
    talks, expected = [], []
    for question in questions[:3]:
        talks.append(replace(question, prompt=[*said, {"role": "user", "content": question.prompt}]))
        marked = [{"role": "user", "content": f"{mark}So?"}, *talks[-1].prompt[1:]]
        shown = {} if condition == "blind" else {"images": question.look(), "condition": condition}
        expected += Inference(model, processor).answer(marked, **shown, **SHORT)
    assert answer(model, processor, [*talks, questions[3]], condition=condition)[0][:3] == expected
    with pytest.raises(DataError, match="gqa 0: cannot be answered .*conversation 0 ends with the assistant's turn"):
        answer(model, processor, [replace(questions[0], prompt=said)], condition=condition)
