"""Prompts as pieces: the two templates, the four orders, several turns and images."""

import pytest

from voco_llama.choices import ORDERS
from voco_llama.data.prompts import VICUNA_SYSTEM, PromptStyle, Segment, Special, Text, render, with_marks
from voco_llama.data.records import Turn
from voco_llama.errors import DataError, SettingsError

QUESTION = (Turn("user", "<image>\nWhat is it?"),)
ANSWERED = (*QUESTION, Turn("assistant", "A cat."))
TEXT_ONLY = (Turn("user", "Why?"), Turn("assistant", "So."))


def drawn(turns, order: str = "first", template: str = "vicuna_v1", system: str = "Hi.", segments_per_mark: int = 1):
    """The prompt as one string: `[S]` for a segment, `{...}` around what is trained."""
    shown = ""
    for piece in render(turns, PromptStyle(template, order, system), segments_per_mark):
        if isinstance(piece, Segment):
            shown += "[S]"
            continue
        text = {"bos": "<s>", "eos": "</s>"}[piece.role] if isinstance(piece, Special) else piece.text
        shown += f"{{{text}}}" if piece.trained else text
    return shown


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("first", "[S]<s>Hi. USER: What is it? ASSISTANT:{ A cat.}{</s>}"),
        ("authors", "[S]\nHi. USER: What is it? ASSISTANT:{ A cat.}{</s>}"),
        ("llava", "<s>Hi. USER: [S]\nWhat is it? ASSISTANT:{ A cat.}{</s>}"),
        ("inline", "<s>Hi. USER: [S]\nWhat is it? ASSISTANT:{ A cat.}{</s>}"),
    ],
)
def test_orders_say_where_a_segment_stands(order, expected):
    assert drawn(ANSWERED, order) == expected


@pytest.mark.parametrize("order", ORDERS)
def test_a_text_only_conversation_is_the_same_in_every_order(order):
    assert drawn(TEXT_ONLY, order) == "<s>Hi. USER: Why? ASSISTANT:{ So.}{</s>}"


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("first", "[S]<s>Hi. USER: Is it\nred? ASSISTANT:"),
        ("llava", "<s>Hi. USER: [S]\nIs it\n\nred? ASSISTANT:"),
        ("inline", "<s>Hi. USER: Is it\n[S]\nred? ASSISTANT:"),
    ],
)
def test_a_mark_inside_a_turn(order, expected):
    assert drawn([Turn("user", "Is it\n<image>\nred?")], order) == expected


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("first", "[S][S][S]<s>Hi. USER: A\nB ASSISTANT:{ yes}{</s>}USER: C ASSISTANT:{ no}{</s>}"),
        ("authors", "[S][S][S]\nHi. USER: A\nB ASSISTANT:{ yes}{</s>}USER: C ASSISTANT:{ no}{</s>}"),
        ("llava", "<s>Hi. USER: A[S]B[S] ASSISTANT:{ yes}{</s>}USER: [S]\nC ASSISTANT:{ no}{</s>}"),
        ("inline", "<s>Hi. USER: A[S]B[S] ASSISTANT:{ yes}{</s>}USER: C[S] ASSISTANT:{ no}{</s>}"),
    ],
)
def test_several_images_in_several_turns(order, expected):
    turns = [Turn("user", "A<image>B<image>"), Turn("assistant", "yes"), Turn("user", "C<image>")]
    assert drawn([*turns, Turn("assistant", "no")], order) == expected


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("first", "[S]<s>{A cat.\n}"),
        ("authors", "[S]{A cat.\n}"),
        ("llava", "<s>[S]{A cat.\n}"),
        ("inline", "<s>[S]{A cat.\n}"),
    ],
)
def test_plain_writes_the_caption_alone(order, expected):
    assert drawn(ANSWERED, order, template="plain") == expected


def test_plain_needs_a_caption():
    with pytest.raises(DataError, match="'plain' writes captions, and the record has none"):
        drawn(QUESTION, template="plain")


@pytest.mark.parametrize("order", ORDERS)
def test_a_clip_has_a_segment_for_every_frame(order):
    assert drawn(ANSWERED, order, segments_per_mark=3).count("[S][S][S]") == 1
    assert drawn(ANSWERED, order, segments_per_mark=3).count("[S]") == 3


@pytest.mark.parametrize("order", ORDERS)
def test_a_question_is_the_beginning_of_its_answered_conversation(order):
    asked, answered = (render(turns, PromptStyle(order=order)) for turns in (QUESTION, ANSWERED))
    assert answered[: len(asked)] == asked
    assert not any(piece.trained for piece in asked if not isinstance(piece, Segment))


@pytest.mark.parametrize("order", ORDERS)
def test_newlines_of_question_and_answer_survive(order):
    turns = [Turn("user", "<image>\nOne:\n\n  two?\nthree"), Turn("assistant", "a\nb\n\nc\n")]
    assert "USER: One:\n\n  two?\nthree ASSISTANT:{ a\nb\n\nc\n}" in drawn(turns, order).replace("[S]\n", "")


def test_the_system_text_may_be_left_out():
    assert drawn(QUESTION, "first", system="") == "[S]<s>USER: What is it? ASSISTANT:"
    assert drawn(QUESTION, "authors", system="") == "[S]\nUSER: What is it? ASSISTANT:"
    assert drawn(TEXT_ONLY, "authors", system="").startswith("<s>USER:")


def test_the_default_is_llavas_system_text():
    assert render(TEXT_ONLY, PromptStyle())[1] == Text(f"{VICUNA_SYSTEM} ")


@pytest.mark.parametrize(("name", "value"), [("order", "last"), ("template", "chatml")])
def test_an_unknown_style_is_refused(name, value):
    with pytest.raises(SettingsError, match=f"prompt.{name} is '{value}': choose one of"):
        PromptStyle(**{name: value})


@pytest.mark.parametrize(
    ("text", "counts", "expected"),
    [
        ("What?", [], "What?"),
        ("What?", [1], "<image>\nWhat?"),
        ("What?", [1, 1], "<image> <image>\nWhat?"),
        ("What?", [3, 1], "<image><image><image> <image>\nWhat?"),
        ("<image>\nWhat?", [1], "<image>\nWhat?"),
        ("What?\n<image>", [3], "What?\n<image><image><image>"),
        ("Is <image> left of <image>?", [1, 2], "Is <image> left of <image><image>?"),
        ("<image><image>What?", [1], "<image>\nWhat?"),  # too many
        ("Is it <image>?", [1, 1], "<image> <image>\nIs it\n?"),  # too few
        ("<image>\nWhat?", [], "What?"),
        ("<image>", [1], "<image>"),
    ],
)
def test_a_question_has_a_mark_for_each_of_its_images(text, counts, expected):
    marked = with_marks(text, counts)
    assert marked == expected
    assert with_marks(marked, [1] * sum(counts)) == marked
