"""What a record or a question fails with is named, and passed over where the settings say so, whatever its type."""

import functools
import json
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import av
import pytest
from PIL import Image

from tests.rules.commands import LINES, replaced, seen
from tests.tiny import tiny_model, tiny_processor
from voco_llama.composition import compose
from voco_llama.data.mixture import LoadedMixture, summarize_bad_records
from voco_llama.errors import DataError, own_line
from voco_llama.evaluation.answering import Answerer
from voco_llama.evaluation.questions import Question
from voco_llama.inference import Inference
from voco_llama.settings import TrainSettings
from voco_llama.training.build import build_processor, open_mixture

EXCEPTIONS = (
    SyntaxError("no tiff header"),
    RecursionError("too deep"),
    MemoryError(),
    AssertionError(),
    KeyError("size"),
    IndexError("list index out of range"),
    OverflowError("int too large"),
    TypeError("not a\nnumber"),
    struct.error("unpack requires a buffer of 4 bytes"),
    zlib.error("Error -3 while decompressing"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
)
BAD = "boom"
"""In the name of what decoders fail at."""

each_exception = pytest.mark.parametrize("error", EXCEPTIONS, ids=lambda error: type(error).__name__)


def failing(function: Callable, error: Exception, is_bad: Callable[[object], bool]) -> Callable:
    """A library's function that fails at what is bad."""

    def called(what, *arguments, **named):
        if is_bad(what):
            raise error
        return function(what, *arguments, **named)

    return called


def fail_at(patch: pytest.MonkeyPatch, where: str, error: Exception) -> None:
    """Have a decoder fail: of images when they are opened or when their pixels are read, of clips, of JSON."""
    named = lambda what: BAD in str(what)  # noqa: E731
    if where == "open":
        patch.setattr(Image, "open", failing(Image.open, error, named))
    elif where == "load":
        patch.setattr(Image.Image, "convert", failing(Image.Image.convert, error, lambda i: i.size == (13, 13)))
    elif where == "clip":
        patch.setattr(av, "open", failing(av.open, error, named))
    else:
        patch.setattr(json, "loads", failing(json.loads, error, lambda text: isinstance(text, str) and BAD in text))


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    """Four records on images and four on clips; of each the second is about what decoders will fail at."""
    root = tmp_path_factory.mktemp("records")
    chat, clips = [], []
    for number, name in enumerate(("a", BAD, "b", "c")):
        side = 13 if name == BAD else 16
        Image.new("RGB", (side, side), "red").save(root / f"{name}.png")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red."}]
        chat.append({"id": str(number), "image": f"{name}.png", "conversations": turns})
        clips.append({"q": "What?", "a": "Red.", "video_id": name})
    (root / "chat.json").write_text(json.dumps(chat), encoding="utf-8")
    (root / "clips.json").write_text(json.dumps(clips), encoding="utf-8")
    return root


@functools.cache
def composed(*overrides: str) -> TrainSettings:
    return compose(overrides)


@pytest.fixture
def rows(records, place, tmp_path):
    """Rows of a training on them."""

    def make(where: str, skip: bool) -> LoadedMixture:
        form, name = ("video_chatgpt", "clips.json") if where == "clip" else ("llava_json", "chat.json")
        source = f"{{format: {form}, file: {records}/{name}, media_folder: {records}}}"
        line = replaced(place.training(), "data.sources", f"[{source}]")
        settings = composed(*line, f"data.skip_bad_records={skip}", "data.num_frames=2", f"output_dir={records}/run")
        return LoadedMixture(open_mixture(settings, tmp_path / "bad"), build_processor(settings).row)

    return make


@pytest.fixture(scope="module", autouse=True)
def videos(records, place):
    clip = place.root / "videos" / "video7010.mp4"
    for name in ("a", BAD, "b", "c"):
        shutil.copy(clip, records / f"{name}.mp4")
    with (records / f"{BAD}.mp4").open("ab") as file:  # clips of the same content are read once
        file.write(bytes(8))


@each_exception
@pytest.mark.parametrize("where", ["open", "load", "clip", "parse"])
def test_a_bad_record_is_named_and_passed_over(where, error, rows, monkeypatch, tmp_path):
    strict, skipping = rows(where, False), rows(where, True)
    fail_at(monkeypatch, where, error)
    with pytest.raises(DataError) as caught:
        [strict[index] for index in range(4)]  # a loop over it would take an IndexError for its end
    assert "\n" not in own_line(caught.value)
    assert re.search(rf"record 1\b|{BAD}", str(caught.value)), caught.value
    assert len([skipping[index] for index in range(4)]) == 4
    (bad,) = summarize_bad_records(tmp_path / "bad")
    assert bad["record"] == 1


@pytest.mark.parametrize("where", ["load", "parse"])
def test_a_training_lists_what_it_passed_over(where, records, place, monkeypatch, tmp_path):
    fail_at(monkeypatch, where, SyntaxError("no tiff header"))
    source = f"[{{format: llava_json, file: {records}/chat.json, media_folder: {records}}}]"
    line = ["train", *replaced(LINES["train"](place, tmp_path), "data.sources", source)]
    ended = seen(line)
    assert ended.is_refused, ended
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    ended = seen([*line, "data.skip_bad_records=true"])
    assert ended.status == 0, ended
    (bad,) = json.loads((tmp_path / "run" / "result.json").read_bytes())["bad_records"]
    assert (bad["record"], Path(bad["file"]).name) == (1, "chat.json")


@pytest.mark.parametrize("where", ["open", "load", "clip", "parse"])
def test_data_check_counts_it(where, records, place, monkeypatch, tmp_path):
    form, name = ("video_chatgpt", "clips.json") if where == "clip" else ("llava_json", "chat.json")
    source = f"[{{format: {form}, file: {records}/{name}, media_folder: {records}}}]"
    fail_at(monkeypatch, where, RecursionError("too deep"))
    ended = seen(["data-check", *replaced(LINES["data-check"](place, tmp_path), "data.sources", source)])
    assert (ended.status, ended.error) == (1, []), ended
    (problem,) = json.loads((tmp_path / "check.json").read_bytes())["problems"]
    assert problem["record"] == 1


@pytest.mark.parametrize("what", ["image", "video"])
@each_exception
def test_ask_names_what_it_cannot_read(what, error, place, records, monkeypatch, tmp_path):
    line = [text for text in LINES["ask"](place, tmp_path) if not text.startswith("image=")]
    line.append(f"{what}={records}/{BAD}.png")
    fail_at(monkeypatch, {"image": "open", "video": "clip"}[what], error)
    ended = seen(["ask", *line])
    assert ended.is_refused, ended
    assert f"{BAD}.png" in ended.error[0]


def test_evaluate_clips_names_the_clip(place, records, monkeypatch, tmp_path):
    line = replaced(LINES["evaluate-clips"](place, tmp_path), "questions", str(records / "clips.json"))
    fail_at(monkeypatch, "clip", KeyError("codec"))
    ended = seen(["evaluate-clips", *replaced(line, "videos", str(records))])
    assert ended.is_refused, ended
    assert BAD in ended.error[0]


@pytest.fixture(scope="module")
def inference() -> Inference:
    processor = tiny_processor()
    return Inference(tiny_model(processor), processor)


@each_exception
@pytest.mark.parametrize("where", ["look", "answer"])
def test_a_question_is_named_and_passed_over(where, error, inference, monkeypatch):
    def look() -> list[Image.Image]:
        if where == "look":
            raise error
        return [Image.new("RGB", (16, 16))]

    def asked(number: int) -> Question:
        is_bad = number == 1
        return Question(
            f"document {number}", BAD if is_bad else "What?", look if is_bad else tuple, {"max_new_tokens": 1}
        )

    if where == "answer":
        answer = Inference.answer

        def fails(self, prompts, *arguments, **named):
            if any(BAD in str(prompt) for prompt in prompts):
                raise error
            return answer(self, prompts, *arguments, **named)

        monkeypatch.setattr(Inference, "answer", fails)
    questions = [asked(number) for number in range(3)]
    with pytest.raises(DataError, match="document 1") as caught:
        list(Answerer(inference).answer(questions))
    assert "\n" not in str(caught.value)
    answerer = Answerer(inference, go_on=True)
    texts = list(answerer.answer(questions))
    assert len(texts) == 3
    assert texts[1] == ""
    assert list(answerer.counts.failures) == ["document 1"]


@pytest.mark.slow
@pytest.mark.parametrize("error", [EXCEPTIONS[0], EXCEPTIONS[4], EXCEPTIONS[2]], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["doc_to_text", "doc_to_visual"])
def test_a_benchmarks_document_is_named_and_passed_over(where, error, place, monkeypatch, tmp_path):
    from lmms_eval.api.task import ConfigurableTask

    ask = getattr(ConfigurableTask, where)
    first: list[object] = []

    def fails(self, document, *arguments, **named):
        key = str(document.get("question_id")) + str(document.get("question"))
        if not first:
            first.append(key)
        if key == first[0]:
            raise error
        return ask(self, document, *arguments, **named)

    monkeypatch.setattr(ConfigurableTask, where, fails)
    line = ["evaluate", *LINES["evaluate"](place, tmp_path)]
    ended = seen(line)
    assert ended.is_refused, ended
    assert "pope document 0" in ended.error[0]
    ended = seen([*line, "go_on=true"])
    assert ended.status == 0, ended
    made = json.loads((tmp_path / "results" / "voco_2.benchmarks.json").read_bytes())
    assert [failure["id"] for failure in made["failures"]] == ["pope document 0"]
