"""A data set with one of each defect, and settings over it that measure lengths with a tokenizer of bytes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.tiny import VISION_CONFIG, tiny_tokenizer
from voco_llama.composition import compose
from voco_llama.data_tools.settings import DataCheckSettings

MAX_LENGTH = 128
"""A byte is a token; an image is 4 vision tokens and a VoCo token."""


def conversation(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]


def record(record_id: str, question: str = "<image>\nWhat?", answer: str | None = None, **changes: Any) -> dict:
    """A good record, no two alike, but for what is changed."""
    answer = f"This is {record_id}." if answer is None else answer
    return {"id": record_id, "image": "good.png", "conversations": conversation(question, answer), **changes}


@pytest.fixture
def images(tmp_path) -> Path:
    """A good image, one cut off, one of zero bytes, and a GIF that is called a JPEG, as some of OCR-VQA's are."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (24, 12), "red").save(folder / "good.png")
    Image.effect_noise((64, 64), 50).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:-400])
    (folder / "empty.jpg").touch()
    Image.new("P", (8, 16)).save(folder / "gif.jpg", format="GIF")
    return folder


DEFECTS: dict[str, Any] = {
    "unreadable_record": record("half", answer="\ud83d"),
    "wrong_type": record("no list", conversations="Hi"),
    "no_turns": record("silent", conversations=[]),
    "roles": record(
        "order", conversations=[{"from": "human", "value": "<image>"}, *conversation("And?", "It.", "So?", "Yes.")]
    ),
    "mark_in_answer": record("mark", answer="See <image>."),
    "missing_mark": record("none", question="What?"),
    "too_many_marks": record("two", question="<image><image>"),
    "bad_file_name": record("outside", image="../good.png"),
    "missing_file": record("lost", image="lost.jpg"),
    "empty_file": record("zero", image="empty.jpg"),
    "undecodable": record("cut", image="cut.jpg"),
    "image_cut": record("many", question="<image>" * 30, image=["good.png"] * 30),
    "no_answer_left": record("long question", question=f"<image>{'w' * MAX_LENGTH}"),
    "cut": record("long answer", answer="w" * MAX_LENGTH),
    "empty_turn": record("empty", answer=" \n"),
    "left_out_turn": record("left out", conversations=conversation("<image>", "Here.", "<image>", "There.")[1:]),
    "unanswered": record("unanswered", conversations=conversation("<image>\nWhat?", "A.", "Why?")),
    "other_format": record("gif", image="gif.jpg"),
    "special_token_text": record("spelled", answer="That is </s>, they say."),
    "duplicate": record("another id", answer="This is first."),
    "repeated_id": record("first", answer="This is first, too."),
}
"""Kind -> a record that has this problem and no other, behind the good record `first`."""

RECORDS = [
    record("first"),
    *DEFECTS.values(),
    record("last"),
    {"id": "text", "conversations": conversation("Hi", "Ho.")},
]


def refused(kinds: Any) -> list[str]:
    """Kinds of `DEFECTS` whose record a training refuses."""
    notes = {"cut", "other_format", "special_token_text", "duplicate", "repeated_id"}
    notes |= {"empty_turn", "left_out_turn", "unanswered", "odd_marks"}
    return [kind for kind in kinds if kind not in notes]


@pytest.fixture
def defects(tmp_path, images) -> Path:
    file = tmp_path / "source" / "chat.json"
    file.parent.mkdir()
    file.write_text(json.dumps(RECORDS, indent=1), encoding="utf-8")
    return file


@pytest.fixture
def overrides(tmp_path) -> Callable[..., list[str]]:
    """Overrides for sources, each (format, file, media folder or None), and its options if it has some."""
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "vision.json").write_text(json.dumps(VISION_CONFIG))

    def make(*sources: tuple, **settings: Any) -> list[str]:
        described = ", ".join(
            f"{{format: {name}, file: {file}, media_folder: {folder or 'null'}, options: {{{', '.join(options)}}}}}"
            for name, file, folder, *options in sources
        )
        own = {"workers": 0, **settings}
        return [
            f"data.sources=[{described}]",
            f"data.max_length={MAX_LENGTH}",
            "prompt=no_system",
            f"model.vision.name={tmp_path / 'vision.json'}",
            f"model.tokenizer={tmp_path / 'tokenizer'}",
            *(f"{key}={'null' if value is None else value}" for key, value in own.items()),
        ]

    return make


@pytest.fixture
def settings(overrides) -> Callable[..., DataCheckSettings]:
    """Settings of `data check`; arguments as those of `overrides`."""
    return lambda *sources, **own: compose(overrides(*sources, **own), "data_check", DataCheckSettings)
