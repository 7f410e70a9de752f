"""Rows of LLaVA's conversations, odd ones among them, against a rewriting of LLaVA-1.5's own `llava/train/train.py`."""

import json

import pytest
import torch

from tests.data.test_processor import llama_like_tokenizer
from tests.tiny import IMAGE_SIZE, NUM_VISION, tiny_tokenizer
from voco_llama.choices import ORDERS
from voco_llama.data.media.images import ImageTransform
from voco_llama.data.processor import VoCoProcessor
from voco_llama.data.prompts import PromptStyle
from voco_llama.data.readers.llava_json import LlavaJson
from voco_llama.errors import DataError
from voco_llama.tokens import IGNORE_INDEX, add_special_tokens

SYSTEM = "Hi."
MARK, IMAGE = "<image>", -200
LONGEST = 90
"""Tokens of a row: fewer than the longest of the conversations below have."""


# ---- LLaVA's formula (preprocess_multimodal, get_prompt, preprocess_v1, preprocess_plain, tokenizer_image_token)


def their_prompt(messages) -> str:
    """`Conversation.get_prompt` of the separator style TWO: of an empty message the role alone."""
    prompt = SYSTEM + " "
    for place, (role, message) in enumerate(messages):
        prompt += f"{role}: {message}{(' ', '</s>')[place % 2]}" if message else f"{role}:"
    return prompt


def their_ids(text: str, tokenizer) -> list[int]:
    return [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]


def their_ids_with_images(text: str, tokenizer) -> list[int]:
    first, *rest = (their_ids(chunk, tokenizer) for chunk in text.split(MARK))
    return first + [token for chunk in rest for token in (IMAGE, *chunk[1:])]


def their_row(record: dict, template: str, tokenizer) -> tuple[list[int], list[int]]:
    """Ids, -200 for an image, and labels."""
    source, has_image = [dict(turn) for turn in record["conversations"]], "image" in record
    encode = their_ids_with_images if has_image else their_ids
    for sentence in source if has_image else ():
        if MARK in sentence["value"]:
            sentence["value"] = f"{MARK}\n{sentence['value'].replace(MARK, '').strip()}".strip()
    if template == "plain":
        assert len(source) == 2
        assert MARK in source[0]["value"]
        ids = their_ids_with_images(MARK + source[1]["value"] + "\n", tokenizer)
        asked = len(their_ids_with_images(MARK, tokenizer))
        return ids, [IGNORE_INDEX] * asked + ids[asked:]
    roles = {"human": "USER", "gpt": "ASSISTANT"}
    if source[0]["from"] != "human":
        source = source[1:]
    assert all(turn["from"] == ("human", "gpt")[place % 2] for place, turn in enumerate(source))
    prompt = their_prompt([(roles[turn["from"]], turn["value"]) for turn in source])
    ids = encode(prompt, tokenizer)[: None if has_image else LONGEST]
    labels, total, current = list(ids), len(ids), 1
    labels[:current] = [IGNORE_INDEX] * current
    for part in prompt.split("</s>"):
        halves = part.split(" ASSISTANT: ")
        if part == "" or len(halves) != 2:
            break
        length, asked = len(encode(part, tokenizer)), len(encode(f"{halves[0]} ASSISTANT: ", tokenizer)) - 2
        stop = min(current + asked, len(labels))
        labels[current:stop] = [IGNORE_INDEX] * (stop - current)
        current += length
    labels[current:] = [IGNORE_INDEX] * len(labels[current:])
    if current < LONGEST and current != total:
        labels = [IGNORE_INDEX] * len(labels)
    return ids, labels


def expanded(ids: list[int], labels: list[int], image_token: int) -> tuple[list[int], list[int]]:
    """`prepare_inputs_labels_for_multimodal`: the patches in place of an image, and the cut."""
    spread = [pair for token, label in zip(ids, labels, strict=True) for pair in _spread(token, label, image_token)]
    return tuple(map(list, zip(*spread[:LONGEST], strict=True)))


def _spread(token: int, label: int, image_token: int) -> list[tuple[int, int]]:
    return [(image_token, IGNORE_INDEX)] * NUM_VISION if token == IMAGE else [(token, label)]


# ---- ours


TOKENIZERS = {"bytes": tiny_tokenizer, "llama-like": llama_like_tokenizer}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizers(request):
    """Theirs, and ours with the two added tokens."""
    theirs, ours = TOKENIZERS[request.param](), TOKENIZERS[request.param]()
    add_special_tokens(ours)
    return theirs, ours


def our_row(record: dict, folder, tokenizer, template: str = "vicuna_v1", order: str = "llava"):
    style = PromptStyle(template, order, SYSTEM)
    transform = ImageTransform(IMAGE_SIZE)
    processor = VoCoProcessor(tokenizer, transform, style, NUM_VISION, 0, condition="full", max_length=LONGEST)
    (folder / "chat.json").write_text(json.dumps([record]))
    return processor, processor.lay_out_record(LlavaJson(folder / "chat.json", folder, marks="llava")[0], LONGEST)


def talk(*texts: str, first: str = "human", **more) -> dict:
    others = {"human": "gpt", "gpt": "human"}
    roles = [first if place % 2 == 0 else others[first] for place in range(len(texts))]
    return {"conversations": [{"from": role, "value": text} for role, text in zip(roles, texts, strict=True)], **more}


def seen(*texts: str, first: str = "human") -> dict:
    return talk(*texts, first=first, image="a.png")


LONG = "A long answer. " * 6
TRAINED = {
    "a text": talk("Why?", "So."),
    "two rounds": talk("Why?", "So.", "And?", "3"),
    "blanks and newlines": talk(" Why?\n", "\n So. ", "\n", "3 "),
    "an image": seen("<image>\nWhat?", "Yes"),
    "an image at the end": seen("What?\n<image>", "Yes", "And?", "No"),
    "an image in the middle": seen("Is \n<image> \nit?", "Yes"),
    "an image alone": seen("<image>", "Yes"),
    "an image later": seen("Hi", "Ho", " <image>What? ", "Yes"),
    "marks of one turn": seen("<image>\nIs <image>it?<image>", "Yes"),
    "an image without a mark": seen("Why?", "So."),
    "marks without an image": talk("What is <image>\n?", "A tag: <image>."),
    "the assistant first": talk("Hello.", "Why?", "So.", first="gpt"),
    "the assistant first, with an image": seen("Hello.", "<image>\nWhat?", "Yes", first="gpt"),
    "the assistant first, with the mark": seen("<image>", "What?", "Yes", first="gpt"),
    "an empty answer before others": talk("Why?", "", "And?", "So."),
    "an empty answer between others": seen("<image>\nWhat?", "Yes", "And?", "", "So?", "No"),
    "an answer of blanks": talk("Why?", "  \n"),
    "an empty question without an answer": talk("", "", "And?", "So."),
    "longer than the longest row": talk("Why?", LONG),
    "unanswered beyond the longest row": talk("Why?", LONG, "And?"),
    "unanswered beyond the longest row, with an image": seen("<image>\nWhat?", LONG, "And?", ""),
}
UNTRAINED = {
    "an empty answer": talk("Why?", ""),
    "an empty answer on an image": seen("<image>\nWhat?", ""),
    "an empty answer at the end": talk("Why?", "So.", "And?", ""),
    "an empty question": talk("", "So."),
    "an empty question later": talk("Why?", "So.", "", "Yes"),
    "an empty question after an empty answer": talk("Why?", "", "", "Yes", "And?", "So."),
    "the user last": seen("<image>\nWhat?", "Yes", "And?"),
    "the user last, saying nothing": talk("Why?", "So.", ""),
    "the user alone": talk("Why?"),
    "the user alone, with an image": seen("<image>"),
    "the assistant alone": talk("Hello.", first="gpt"),
    "the assistant and the user": talk("Hello.", "Why?", first="gpt"),
}


@pytest.mark.parametrize("name", [*TRAINED, *UNTRAINED])
def test_a_row_is_llavas(name, tokenizers, tmp_path):
    record = {**TRAINED, **UNTRAINED}[name]
    theirs, ours = tokenizers
    processor, row = our_row(record, tmp_path, ours)
    ids, labels = expanded(*their_row(record, "vicuna_v1", theirs), processor.tokens.image)
    assert row.input_ids.tolist() == ids
    assert row.labels.tolist() == labels
    assert bool(row.num_trained) == (name in TRAINED)


@pytest.mark.parametrize("order", ORDERS)
def test_no_order_changes_what_is_trained(order, tmp_path):
    tokenizer = tiny_tokenizer()
    add_special_tokens(tokenizer)
    for record in (*TRAINED.values(), *UNTRAINED.values()):
        _, row = our_row(record, tmp_path, tokenizer, order=order)
        _, expected = our_row(record, tmp_path, tokenizer)
        if len(row) < LONGEST:
            assert torch.equal(*(r.labels[r.labels != IGNORE_INDEX] for r in (row, expected)))
        assert bool(row.num_trained) == bool(expected.num_trained)


@pytest.mark.parametrize("order", ["llava", "inline"])
@pytest.mark.parametrize("caption", ["A bus.", "", " \n", "3"])
def test_a_plain_row_is_llavas(order, caption, tokenizers, tmp_path):
    theirs, ours = tokenizers
    record = seen("Describe it.\n<image>", caption)
    processor, row = our_row(record, tmp_path, ours, "plain", order)
    ids, labels = expanded(*their_row(record, "plain", theirs), processor.tokens.image)
    assert row.input_ids.tolist() == ids
    assert row.labels.tolist() == labels
    assert row.num_trained


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (talk("A", "B") | {"conversations": [{"from": "system", "value": "A"}]}, "unknown role"),
        (talk("A", "B", first="gpt") | {"conversations": [{"from": "gpt", "value": "A"}] * 2}, "user's turn belongs"),
        ({"conversations": [{"from": "human", "value": "A"}] * 2}, "assistant's turn belongs"),
        ({"conversations": []}, "is empty"),
        (seen("<image>", "A", "<image>", "B"), "2 <image> marks but 1 image"),
        (seen("A", "<image>"), "an answer holds an <image> mark"),
    ],
)
def test_what_stops_llava_or_has_it_read_another_records_image_is_an_error(record, complaint, tmp_path):
    tokenizer = tiny_tokenizer()
    add_special_tokens(tokenizer)
    with pytest.raises(DataError, match=complaint):
        our_row(record, tmp_path, tokenizer)
