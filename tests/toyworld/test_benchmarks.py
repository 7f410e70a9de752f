"""The benchmarks: the columns lmms-eval's tasks read, the properties of the real sets, no answers given away."""

import io
import json
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from voco_llama.toyworld import ToyWorldSettings, plan_world
from voco_llama.toyworld.benchmarks import MME_PROMPT, NAMES, write_benchmarks
from voco_llama.toyworld.questions import all_questions

SETTINGS = ToyWorldSettings(
    pretrain_images=0, instruct_images=0, val_images=0, text_rows=0, clips_train=0, clips_test=0,
)  # fmt: skip
FILES = {
    "GQA": "testdev_balanced_instructions/testdev-00000-of-00001.parquet",
    "MMBench": "en/dev-00000-of-00001.parquet",
    "MME": "data/test-00000-of-00001.parquet",
    "POPE": "data/test-00000-of-00001.parquet",
    "VQAv2": "data/validation-00000-of-00001.parquet",
}
# What the code of lmms-eval 0.7.3's tasks indexes by.
READ_BY_TASKS = {
    "GQA": {"imageId", "question", "answer"},
    "MMBench": {
        "index", "question", "hint", "A", "B", "C", "D", "answer", "category", "L2-category", "source", "split",
        "image",
    },
    "MME": {"question_id", "image", "question", "answer", "category"},
    "POPE": {"question_id", "image", "question", "answer", "category"},
    "VQAv2": {
        "question_id", "image", "question", "answers", "multiple_choice_answer", "answer_type", "question_type",
    },
}  # fmt: skip
SCENES = plan_world(SETTINGS).scenes

Rows = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_benchmarks(folder, {name: SCENES[f"benchmark {name}"] for name in NAMES}, SETTINGS)
    return folder / "benchmarks" / "lmms-lab-encoder"


@pytest.fixture(scope="module")
def rows(root: Path) -> Rows:
    return {name: pq.read_table(root / name / file).to_pylist() for name, file in FILES.items()}


def asked_in(rows: Rows) -> dict[str, list[tuple[str, str]]]:
    """Benchmark -> (question, answer)."""
    return {
        name: [(row["question"], row["multiple_choice_answer" if name == "VQAv2" else "answer"]) for row in found]
        for name, found in rows.items()
    }


def best_guess(asked: list[tuple[str, str]]) -> float:
    """The best accuracy without images: each text's most frequent answer, told by the benchmark itself."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for text, answer in asked:
        answers[text][answer] += 1
    return sum(max(given.values()) for given in answers.values()) / len(asked)


def truth(name: str, index: int) -> dict[str, str]:
    scene = SCENES[f"benchmark {name}"][index]
    return {question.text: question.answer for question in all_questions(scene, SETTINGS)}


def test_sizes_and_columns(rows: Rows) -> None:
    for name, found in rows.items():
        assert 400 <= len(found) <= 500, name
        assert READ_BY_TASKS[name] <= found[0].keys(), name


def test_questions_alone_do_not_answer(rows: Rows) -> None:
    guesses = {name: best_guess(asked) for name, asked in asked_in(rows).items()}
    assert guesses["POPE"] == 0.5
    assert guesses["MME"] < 0.57
    assert guesses["MMBench"] < 0.36
    assert guesses["GQA"] < 0.45
    assert guesses["VQAv2"] < 0.45
    assert sum(guesses.values()) / len(guesses) < 0.45


def test_nor_in_the_default_world(tmp_path: Path) -> None:
    settings = replace(ToyWorldSettings(), pretrain_images=0, instruct_images=0, val_images=0, text_rows=0)
    settings = replace(settings, clips_train=0, clips_test=0)
    scenes = plan_world(settings).scenes
    write_benchmarks(tmp_path, {name: scenes[f"benchmark {name}"] for name in NAMES}, settings)
    folder = tmp_path / "benchmarks" / "lmms-lab-encoder"
    asked = asked_in({name: pq.read_table(folder / name / file).to_pylist() for name, file in FILES.items()})
    guesses = [best_guess(pairs) for pairs in asked.values()]
    assert sum(guesses) / len(guesses) < 0.5


def test_a_leak_is_seen() -> None:
    """The measure above tells balanced from unbalanced questions."""
    assert best_guess([("a", "yes"), ("a", "no"), ("b", "yes"), ("b", "no")]) == 0.5
    assert best_guess([("a", "yes"), ("a", "yes"), ("b", "no"), ("b", "yes")]) == 0.75


def test_images_are_pngs_of_several_questions(rows: Rows) -> None:
    for name in ("MMBench", "MME", "POPE", "VQAv2"):
        cell = rows[name][0]["image"]
        with Image.open(io.BytesIO(cell["bytes"])) as image:
            assert image.size == (32, 32)
        images = {row["image"]["bytes"] for row in rows[name]}
        assert 80 <= len(images) <= SETTINGS.benchmark_images


def test_gqa(root: Path, rows: Rows) -> None:
    images = pq.read_table(root / "GQA" / "testdev_balanced_images" / "testdev-00000-of-00001.parquet").to_pylist()
    names = [row["id"] for row in images]
    assert len(set(names)) == SETTINGS.benchmark_images
    for row in rows["GQA"]:
        assert truth("GQA", names.index(row["imageId"]))[row["question"]] == row["answer"]
    assert {row["types"]["structural"] for row in rows["GQA"]} == {"verify", "query"}


def test_vqav2(rows: Rows) -> None:
    for row in rows["VQAv2"]:
        assert truth("VQAv2", row["image_id"] - 100_000)[row["question"]] == row["multiple_choice_answer"]
        assert [answer["answer"] for answer in row["answers"]] == [row["multiple_choice_answer"]] * 10
        assert len({answer["answer_id"] for answer in row["answers"]}) == 10
        kinds = {"yes": "yes/no", "no": "yes/no"} | dict.fromkeys("01234", "number")
        assert row["answer_type"] == kinds.get(row["multiple_choice_answer"], "other")
    assert len({row["question_id"] for row in rows["VQAv2"]}) == len(rows["VQAv2"])


def test_mmbench(rows: Rows) -> None:
    for row in rows["MMBench"]:
        index = int(row["image"]["path"].removesuffix(".png").rpartition("_")[2])
        assert truth("MMBench", index)[row["question"]] == row[row["answer"]]
        assert len({row[letter] for letter in "ABCD"}) == 4
        assert row["index"] < 1_000_000
        assert row["hint"] == "nan"
        assert row["split"] == "dev"
    letters = Counter(row["answer"] for row in rows["MMBench"])
    assert set(letters) == set("ABCD")
    assert max(letters.values()) < 1.25 * min(letters.values())


def test_mme_asks_one_yes_and_one_no(rows: Rows) -> None:
    pairs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows["MME"]:
        pairs[row["question_id"]].append(row)
        index = int(row["image"]["path"].removesuffix(".png").rpartition("_")[2])
        assert row["question"].endswith(f" {MME_PROMPT}")
        assert truth("MME", index)[row["question"].removesuffix(f" {MME_PROMPT}")] == row["answer"].lower()
    for pair in pairs.values():
        assert sorted(row["answer"] for row in pair) == ["No", "Yes"]
        assert len({row["category"] for row in pair}) == len({row["image"]["bytes"] for row in pair}) == 1
    assert Counter(row["category"] for row in rows["MME"]).keys() == {"existence", "count", "position", "color"}


def test_pope(rows: Rows) -> None:
    """Half yes, object by object; the absent objects are chosen as POPE's three ways say."""
    scenes = SCENES["benchmark POPE"]
    present = [{f"{thing.color} {thing.shape}" for thing in scene.things} for scene in scenes]
    frequency = Counter(name for objects in present for name in objects)
    absent: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for row in rows["POPE"]:
        index = int(row["image_source"].rpartition("_")[2])
        name = row["question"].removeprefix("Is there a ").removesuffix("?")
        assert (name in present[index]) == (row["answer"] == "yes")
        if row["answer"] == "no":
            absent[row["category"]].append((index, name))
    for category in ("random", "popular", "adversarial"):
        counted = Counter((row["question"], row["answer"]) for row in rows["POPE"] if row["category"] == category)
        assert all(counted[text, "yes"] == counted[text, "no"] for text, _ in counted)
        assert len(absent[category]) == SETTINGS.benchmark_questions // 6

    def popularity(category: str) -> float:
        return sum(frequency[name] for _, name in absent[category]) / len(absent[category])

    def together(category: str) -> float:
        """Images that show the absent object with one that is present, on average."""
        shared = [
            sum(name in objects and other in objects for objects in present)
            for index, name in absent[category]
            for other in present[index]
        ]
        return sum(shared) / len(shared)

    assert popularity("popular") > 1.2 * popularity("random")
    assert together("adversarial") > 1.5 * together("random")


def test_pope_full_has_the_categories_as_splits(root: Path, rows: Rows) -> None:
    for category in ("random", "popular", "adversarial"):
        found = pq.read_table(root / "POPE" / "Full" / f"{category}-00000-of-00001.parquet").to_pylist()
        assert found == [row for row in rows["POPE"] if row["category"] == category]


@pytest.mark.parametrize(
    ("name", "config", "split"),
    [
        ("GQA", "testdev_balanced_images", "testdev"),
        ("GQA", "testdev_balanced_instructions", "testdev"),
        ("MMBench", "en", "dev"),
        ("MME", None, "test"),
        ("POPE", None, "test"),
        ("POPE", "Full", "adversarial"),
        ("VQAv2", None, "validation"),
    ],
)
def test_datasets_loads_them_by_name(
    root: Path, name: str, config: str | None, split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the tasks do, with the working directory above the owner's folder."""
    import datasets

    monkeypatch.chdir(root.parent)
    loaded = datasets.load_dataset(f"lmms-lab-encoder/{name}", config, split=split, cache_dir=str(tmp_path))
    assert len(loaded) > 0
    if "image" in loaded.column_names:
        assert loaded[0]["image"].convert("RGB").size == (32, 32)


def test_cards_list_every_file(root: Path) -> None:
    for name in NAMES:
        head = yaml.safe_load((root / name / "README.md").read_text().split("---\n")[1])
        listed = {entry["path"] for config in head["configs"] for entry in config["data_files"]}
        assert listed == {file.relative_to(root / name).as_posix() for file in (root / name).rglob("*.parquet")}


def test_features_are_stored(root: Path) -> None:
    """Image columns say so in the file itself, so that any reader of the parquet gets images."""
    metadata = pq.read_schema(root / "MME" / FILES["MME"]).metadata[b"huggingface"]
    assert json.loads(metadata)["info"]["features"]["image"]["_type"] == "Image"
