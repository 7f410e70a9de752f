"""Conversations to be answered: messages as turns, rows as training has them, answers from caches as without."""

from dataclasses import replace

import pytest
import torch

from tests.data.chat.families import FAMILIES, chat_processor, new_tokenizer, template_of
from tests.model.rows import greedy_from_scratch, random_images
from tests.tiny import tiny_model, tiny_processor
from voco_llama.choices import CONDITIONS, ORDERS
from voco_llama.data.chat_template import ARGUMENTS
from voco_llama.data.conversations import Conversation, conversations_of, read_messages, with_marks_in
from voco_llama.data.prompts import PromptStyle
from voco_llama.data.records import Record, Turn
from voco_llama.errors import DataError
from voco_llama.inference import Inference
from voco_llama.layout import ROW_FIELDS

SYSTEM = {"role": "system", "content": "Be brief."}


def said(*texts):
    """Messages of user and assistant by turns."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


# ---- rows


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "texts",
    [
        ["<image>\nWhat is it?", "A cat.", "Is it\nblack?"],
        ["Why?", " So. ", "And <image> there?"],
        ["<image> or <image>?", "3", "Or <image>?", "No.", "Who says?"],
        ["Why?", "é", ""],
    ],
)
def test_a_conversation_is_the_training_row_up_to_its_last_answer(texts, order, condition):
    processor = tiny_processor(order=order, condition=condition)
    number = "".join(texts).count("<image>")
    turns = tuple(Turn(message["role"], message["content"]) for message in said(*texts, "Yes."))
    trained = processor.lay_out_record(Record("0", turns, images=tuple("abc"[:number])))
    images = random_images(number)
    for form in (said(*texts), [said(*texts)], Conversation(turns[:-1])):
        asked = processor(text=form, images=images)
        length = asked["input_ids"].shape[1]
        assert processor.tokenizer.decode(trained.input_ids[length:]) == " Yes.</s>"
        for name in ROW_FIELDS:
            if name != "labels":
                assert torch.equal(asked[name][0], getattr(trained, name)[:length]), name


def test_a_system_message_takes_the_place_of_the_styles():
    processor = tiny_processor()
    own = replace(processor, style=PromptStyle(order="first", system="Be brief."))
    for texts in (["Why?"], ["Why?", "So.", "And?"]):
        batch = processor(text=[SYSTEM, *said(*texts)])
        assert torch.equal(batch["input_ids"], own(text=said(*texts))["input_ids"])
        assert not torch.equal(batch["input_ids"], processor(text=said(*texts))["input_ids"])
    empty = processor(text=[SYSTEM | {"content": ""}, *said("Why?")])["input_ids"][0]
    assert processor.tokenizer.decode(empty) == "<s>USER: Why? ASSISTANT:"


def test_parts_of_a_message_say_what_its_text_says():
    parts = [{"type": "image"}, {"type": "text", "text": "What?"}]
    (one,) = conversations_of([[{"role": "user", "content": parts}]])
    assert one == Conversation((Turn("user", "<image>\nWhat?"),))
    (two,) = conversations_of([[{"role": "user", "content": [*parts, {"type": "image"}, *parts]}]])
    assert two.turns[0].text == "<image>\nWhat?<image><image>\nWhat?"
    (text,) = conversations_of([[{"role": "user", "content": [{"type": "text", "text": t} for t in ("a", "b")]}]])
    assert text.turns[0].text == "ab"


@pytest.mark.parametrize(
    ("texts", "counts", "expected"),
    [
        (["What?"], [1], ["<image>\nWhat?"]),
        (["A <image>", "B <image>"], [1, 2], ["A <image>", "B <image><image>"]),
        (["A", "B <image>"], [3], ["A", "B <image><image><image>"]),
        (["A", "B"], [1, 1], ["<image> <image>\nA", "B"]),
        (["A <image>", "B <image>"], [1], ["<image>\nA", "B"]),
        (["A <image>", "B"], [1, 1], ["<image> <image>\nA", "B"]),
        (["A <image>", "B"], [], ["A", "B"]),
    ],
)
def test_marks_over_the_turns_of_a_conversation(texts, counts, expected):
    assert with_marks_in(texts, counts) == expected
    assert with_marks_in(expected, [1] * sum(counts)) == expected


# ---- answers


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("order", ORDERS)
def test_answers_with_history_are_those_of_the_whole_masked_pass(order, condition):
    """Together with a question on text alone and one on an image; from a cache and from images."""
    processor = tiny_processor(num_voco=2, order=order, condition=condition)
    model = tiny_model(processor)
    inference, images = Inference(model, processor), random_images(3)
    talk = [SYSTEM, *said("<image>\nIs it red?", "No.", "Is <image> left?", "So it is.", "Why?")]
    prompts, counts, steps = [talk, "What is two and two?", "What is it?"], [2, 0, 1], 6
    rows = [
        processor.lay_out(one.looking_at([1] * count).turns, system=one.system)
        for one, count in zip(conversations_of(prompts), counts, strict=True)
    ]
    ids = greedy_from_scratch(model, processor, rows, processor.pixels(images), steps)
    expected = processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
    looks = [{"images": images}]
    if condition == "voco":
        looks.append({"cache": inference.compress(images)})
    for look in looks:
        answers = inference.answer(prompts, counts=counts, **look, max_new_tokens=steps, min_new_tokens=steps)
        assert answers == [text.strip() for text in expected]
        one_by_one = inference.answer([talk], **{name: what[:2] for name, what in look.items()}, max_new_tokens=steps)
        assert one_by_one[0] == answers[0]


# ---- what is no conversation


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([], "conversation 1 is empty: give a user's turn to answer"),
        ([SYSTEM], "conversation 1 is empty"),
        (said("a", "b")[1:], "conversation 1: message 0 is the assistant's where the user's turn belongs"),
        (said("a")[:1] * 2, "conversation 1: message 1 is the user's where the assistant's turn belongs"),
        (said("a", "b", "c")[::2], "conversation 1: message 1 is the user's where the assistant's"),
        (said("a", "b"), "conversation 1 ends with the assistant's turn: end it with the user's"),
        ([*said("a"), SYSTEM], "conversation 1: message 1 is the system's: the first message may be"),
        ([{"role": "tool", "content": "a"}], "conversation 1: message 0 is from 'tool', an unknown role"),
        ([{"role": ["user"], "content": "a"}], "message 0 is from \\['user'\\], an unknown role"),
        ([{"from": "human", "value": "a"}], "message 0 is .*: give each 'role' and 'content'"),
        ([*said("a"), "b"], "message 1 is 'b': give each"),
        ([{"role": "user", "content": None}], "message 0 has the content None: give a text"),
        (said("a", "<image>", "b"), "message 1 is the assistant's and holds <image>: only what the user says"),
        ([SYSTEM | {"content": "<image>"}, *said("a")], "message 0 is the system's and holds <image>"),
        ([said("a")[0] | {"tool_calls": [1]}], "message 0 has 'tool_calls', which no prompt says"),
        ([{"role": "user", "content": [{"type": "image", "url": "a.png"}]}], "images themselves are passed beside"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "message 0 has the part {'type': 'audio'}"),
        ([{"role": "user", "content": ["a"]}], "message 0 has the part 'a'"),
        (said("a", "b\ud83d", "c"), r"message 1 holds half a surrogate pair \('.ud83d'\): mend the text"),
        ("a\udcff", "conversation 1 holds half a surrogate pair"),
        (3, "conversation 1 is 3: give a text, or a list of messages"),
    ],
)
def test_what_is_no_conversation_is_named(messages, complaint):
    with pytest.raises(DataError, match=complaint) as refused:
        tiny_processor()(text=["What?", messages])
    assert "\n" not in str(refused.value)


def test_a_history_ends_with_an_answer_or_has_no_turn():
    assert read_messages([], "h", "assistant") == Conversation(())
    assert read_messages([SYSTEM], "h", "assistant") == Conversation((), "Be brief.")
    with pytest.raises(DataError, match="h ends with the user's turn: end it with an answer"):
        read_messages(said("a"), "h", "assistant")


def test_a_model_of_captions_answers_nothing():
    processor = tiny_processor()
    plain = replace(processor, style=PromptStyle("plain"))
    for texts in (["Why?"], ["Why?", "So.", "And?"]):
        with pytest.raises(DataError, match="prompt.template=plain writes captions"):
            plain(text=said(*texts))


# ---- in a chat template


@pytest.mark.parametrize("family", FAMILIES)
def test_in_a_chat_template_a_conversation_is_what_transformers_makes_of_it(family):
    """Its own system message too; a text stands for a conversation of one turn."""
    processor = chat_processor(family)
    for messages in (said("Why?", "So. 3", "Is it?"), [SYSTEM, *said("Why?")], [SYSTEM, *said("Why?", "So.", "And?")]):
        arguments = ARGUMENTS | {"add_generation_prompt": True, "return_dict": False}
        expected = processor.tokenizer.apply_chat_template(messages, **arguments)
        assert processor(text=messages)["input_ids"].tolist() == [expected]
    assert torch.equal(processor(text="Why?")["input_ids"], processor(text=said("Why?"))["input_ids"])


def test_a_system_message_that_the_chat_template_refuses_is_one_line():
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    processor = chat_processor("smollm2", tokenizer=new_tokenizer("smollm2", refusal + template_of("smollm2")))
    with pytest.raises(DataError, match="the chat template refuses the conversation .no system role.") as refused:
        processor(text=[SYSTEM, *said("Why?")])
    assert "\n" not in str(refused.value)
