"""Settings of a preview over a few records, and its page read back."""

import base64
import io
import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.tiny import IMAGE_SIZE, tiny_tokenizer, tiny_vision_config
from voco_llama.composition import compose
from voco_llama.data.collate import Collator
from voco_llama.data_tools.preview import preview
from voco_llama.data_tools.settings import PreviewSettings
from voco_llama.layout import ROW_FIELDS
from voco_llama.training.build import build_processor, open_mixture

ATTACK = "<script>alert(1)</script> \" onload='x' &lt; $a_$ \u202eback \x00"


class Page(HTMLParser):
    """Samples of a page: title, error, tokens (kind, count, text, facts) and pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.samples, self._open = [], [], []
        self.attributes: set[str] = set()
        self.policy = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.attributes |= set(attrs)
        self.policy = attrs.get("content") if attrs.get("http-equiv") == "Content-Security-Policy" else self.policy
        if tag == "section":
            self.samples.append({"title": "", "error": "", "tokens": [], "images": [], "items": ""})
        if tag == "img":
            head, data = attrs["src"].split(",", 1)
            assert head == "data:image/png;base64"
            self.samples[-1]["images"].append(Image.open(io.BytesIO(base64.b64decode(data, validate=True))))
        if tag == "span" and "data-count" in attrs:
            kind = attrs["class"].removeprefix("token ")
            self.samples[-1]["tokens"].append([kind, int(attrs["data-count"]), "", attrs["title"]])
        if tag not in ("img", "meta"):
            self._open.append((tag, attrs))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        if not self.samples or not self._open:
            return
        tag, attrs = self._open[-1]
        sample = self.samples[-1]
        if tag == "h2":
            sample["title"] += data
        elif attrs.get("class") == "error":
            sample["error"] += data
        elif tag == "li":
            sample["items"] += f"{data}\n"
        elif "data-count" in attrs:
            sample["tokens"][-1][2] += data


def counts(sample: dict) -> Counter:
    found = Counter()
    for kind, count, _, _ in sample["tokens"]:
        found[kind] += count
    return found


def record(name: str, question: str, answer: str, images=()) -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": name, "conversations": turns} | ({"image": list(images)} if images else {})


RECORDS = [
    record("one", "<image>\nWhat is it?", "A cat.", ["wide.png"]),
    record("two", "Is <image> like <image>?", "No, it is not.", ["wide.png", "tall.png"]),
    record("text", "Why?", "Because."),
    record(ATTACK, ATTACK, f"Says: {ATTACK}"),
    record("gone", "<image>\nWhat is it?", "A cat.", ["<b>gone</b>.png"]),
    record("long", "Count.", "one two " * 500),
    record("foreign", "Wie?", "Grün \u4f60\u597d."),
    record("half", "What?", "A \ud800."),
]


def settings_in(folder: Path, *overrides: str, image_size: int = IMAGE_SIZE) -> PreviewSettings:
    """Settings of a preview over `RECORDS`, with the tiny tokenizer and a tower of 16 x 16 pixels."""
    random = np.random.default_rng(0)
    for name, size in (("wide.png", (40, 24)), ("tall.png", (24, 40))):
        Image.fromarray(random.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(folder / name)
    (folder / "records.json").write_text(json.dumps(RECORDS))
    (folder / "vision.json").write_text(json.dumps(tiny_vision_config(image_size)))
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    source = f"{{format: llava_json, file: {folder}/records.json, media_folder: {folder}}}"
    fixed = [
        f"data.sources=[{source}]",
        f"model.vision.name={folder}/vision.json",
        f"model.tokenizer={folder}/tokenizer",
        f"output={folder}/out",
        "compression=voco_2",
    ]
    return compose([*fixed, *overrides], "data_preview", PreviewSettings)


def page_of(settings: PreviewSettings) -> Page:
    return Page(preview(settings).read_text(encoding="utf-8"))


def rows_of(settings: PreviewSettings) -> list[dict[str, torch.Tensor]]:
    """The rows of the records named, padded together, as training lays them out."""
    processor, mixture = build_processor(settings), open_mixture(settings)
    batch = Collator(processor.tokens)([processor.row(mixture.readers[0][index]) for index in settings.records])
    return [{name: batch[name][index] for name in ROW_FIELDS} for index in range(len(settings.records))]
