"""Benchmarks are read as lmms-eval reads them: ids, prompts to the letter, images by content."""

import pytest
from PIL import Image

from tests.evaluation.files import picture, write_set
from voco_llama.errors import DataError, SettingsError
from voco_llama.evaluation.benchmarks import BENCHMARKS, read_benchmark

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\n\nAnswer with the option's letter from the given choices directly."


@pytest.mark.parametrize(
    ("name", "prompts", "answers", "ids"),
    [
        ("GQA", [f"What color is it?{SHORT}", f"Is it blue?{SHORT}"], [("green",), ("no",)], ["07", "08"]),
        (
            "MMBench",
            [
                f"Which color? There are several options:\nA. red\nB. green{LETTER}",
                f"Look. Which color? There are several options:\nA. red\nB. green{LETTER}",
                f"Which? There are several options:\nA. red\nB. green{LETTER}",
            ],
            [("A",), ("B",), ("A",)],
            ["1", "2", "1000001"],
        ),
        ("MME", [f"Is it red?{SHORT}", f"Is it blue?{SHORT}"], [("Yes",), ("No",)], ["a.png", "a.png"]),
        ("POPE", [f"Is there a dog?{SHORT}", f"Is there red?{SHORT}"], [("no",), ("yes",)], ["0", "1"]),
        ("VQAv2", [f"What color?{SHORT}", f"Which one?{SHORT}"], [("red",) * 10] * 2, ["11", "12"]),
    ],
)
def test_questions_as_lmms_eval_asks_them(benchmarks_root, name, prompts, answers, ids):
    requests = read_benchmark(benchmarks_root, name)
    assert [request.prompt for request in requests] == prompts
    assert [request.answers for request in requests] == answers
    assert [request.id for request in requests] == ids
    assert {request.benchmark for request in requests} == {name}


def test_image_belongs_to_its_question_and_is_known_by_content(benchmarks_root):
    green, red = read_benchmark(benchmarks_root, "GQA")
    assert green.load_image().getpixel((0, 0)) == (20, 200, 20)
    assert red.load_image().getpixel((0, 0)) == (200, 20, 20)
    assert red.image_key != green.image_key
    assert {r.image_key for r in read_benchmark(benchmarks_root, "POPE")} == {red.image_key}
    assert [r.image_key for r in read_benchmark(benchmarks_root, "VQAv2")] == [red.image_key, green.image_key]


def test_limit_takes_the_first(benchmarks_root):
    assert [r.id for r in read_benchmark(benchmarks_root, "POPE", limit=1)] == ["0"]
    assert len(read_benchmark(benchmarks_root, "POPE", limit=99)) == 2
    with pytest.raises(SettingsError, match="limit must be at least 1"):
        read_benchmark(benchmarks_root, "POPE", limit=0)


def test_files_that_changed_are_read_anew(tmp_path):
    row = {"id": "0", "question": "Is there a dog?", "answer": "no", "category": "x", "image": picture("red")}
    write_set(tmp_path / "lmms-lab-encoder" / "POPE", {("default", "test"): [row]})
    assert len(read_benchmark(tmp_path, "POPE")) == 1
    write_set(tmp_path / "lmms-lab-encoder" / "POPE", {("default", "test"): [row, row]})
    assert len(read_benchmark(tmp_path, "POPE")) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": None}, "holds no image bytes"),
        ({"image": {"bytes": b"not an image", "path": "x.png"}}, "not an image that can be read"),
        ({"question": ...}, "lack the column 'question'"),
        ({"category": ...}, "lack the column 'category'"),
    ],
)
def test_bad_row_is_named(tmp_path, change, message):
    row = {"id": "0", "question": "Is there a dog?", "answer": "no", "category": "x", "image": picture("red")} | change
    row = {column: value for column, value in row.items() if value is not ...}
    rows = [row, {**row, "image": picture("red")}] if row["image"] is None else [row]
    write_set(tmp_path / "lmms-lab-encoder" / "POPE", {("default", "test"): rows})
    with pytest.raises(DataError, match=message) as caught:
        read_benchmark(tmp_path, "POPE")[0].load_image()
    assert "POPE" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_image_too_large_is_refused_before_it_is_decoded(monkeypatch, tmp_path):
    monkeypatch.setattr("voco_llama.data.images.MAX_IMAGE_PIXELS", 15 * 15)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    row = {"id": "0", "question": "Is there a dog?", "answer": "no", "category": "x", "image": picture("red")}
    write_set(tmp_path / "lmms-lab-encoder" / "POPE", {("default", "test"): [row]})
    with pytest.raises(DataError, match="too large to decode"):
        read_benchmark(tmp_path, "POPE")[0].load_image()


def test_missing_files(tmp_path):
    with pytest.raises(DataError, match=r"no data set card README\.md"):
        read_benchmark(tmp_path, "POPE")
    folder = tmp_path / "lmms-lab-encoder" / "POPE"
    write_set(folder, {("default", "validation"): [{"question": "?"}]})
    with pytest.raises(DataError, match="split 'test'") as caught:
        read_benchmark(tmp_path, "POPE")
    assert "\n" not in str(caught.value)


def test_gqa_question_without_its_image(tmp_path):
    question = {"id": "07", "imageId": "gone", "question": "What?", "answer": "green"}
    write_set(
        tmp_path / "lmms-lab-encoder" / "GQA",
        {
            ("testdev_balanced_instructions", "testdev"): [question],
            ("testdev_balanced_images", "testdev"): [{"id": "n1", "image": picture("red")}],
        },
    )
    with pytest.raises(DataError, match="no image 'gone'"):
        read_benchmark(tmp_path, "GQA")


def test_unknown_benchmark(tmp_path):
    with pytest.raises(SettingsError, match=f"choose from {', '.join(BENCHMARKS)}"):
        read_benchmark(tmp_path, "SEED")
