"""Tiny data in the right schema for every task: a local hub of data sets, and clips that two of them keep elsewhere.

Each builder writes one data set; what its rows are is arithmetic in `test_task_scores.py`, so change both together.
"""

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from voco_llama.data_tools.settings import DataPrepareSettings
from voco_llama.data_tools.video_qa import prepare_video_qa
from voco_llama.toyworld.benchmarks import IMAGE, INT, TEXT, write_card, write_table
from voco_llama.toyworld.world import encode_video

COLORS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200)}
SIDE = 32
FRAMES = 3
PERCEPTION = "existence count position color posters celebrity scene landmark artwork OCR".split()
COGNITION = "commonsense_reasoning"
CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
Rows = list[dict[str, Any]]


def picture(color: str) -> dict[str, Any]:
    """An image as a cell of a parquet file."""
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), COLORS[color]).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{color}.png"}


def write_clip(file: Path, *colors: str) -> None:
    """A clip of a few frames, one color after the other."""
    file.parent.mkdir(parents=True, exist_ok=True)
    frames = [Image.new("RGB", (SIDE, SIDE), COLORS[color]) for color in colors for _ in range(FRAMES)]
    encode_video(file, frames, rate=FRAMES)


def write_set(folder: Path, tables: dict[tuple[str, str], Rows], features: dict[str, Any]) -> None:
    """A data set: (configuration, split) to rows; each table has the features whose columns its rows have."""
    card: dict[str, dict[str, str]] = {}
    for (config, split), rows in tables.items():
        path = f"{config}/{split}-00000-of-00001.parquet"
        write_table(folder / path, rows, {name: features[name] for name in rows[0]})
        card.setdefault(config, {})[split] = path
    write_card(folder, card)


def write_gqa(hub: Path) -> None:
    features = dict.fromkeys(("id", "imageId", "question", "answer", "fullAnswer"), TEXT) | {"image": IMAGE}
    write_set(
        hub / "lmms-lab-encoder/GQA",
        {
            ("testdev_balanced_instructions", "testdev"): [
                {"id": "07", "imageId": "n2", "question": "What color is it?", "answer": "green"},
                {"id": "08", "imageId": "n1", "question": "Is it blue?", "answer": "no"},
                {"id": "09", "imageId": "n1", "question": "Is it red?", "answer": "yes"},
                {"id": "10", "imageId": "n1", "question": "Is it dark?", "answer": "no"},
            ],
            ("testdev_balanced_images", "testdev"): [
                {"id": "n1", "image": picture("red")},
                {"id": "n2", "image": picture("green")},
            ],
        },
        features,
    )


def write_mmbench(hub: Path) -> None:
    """Question 1 is asked in two rotations; one row has a hint, one has two options, one has four."""
    texts = ("question", "hint", "answer", "A", "B", "C", "D", "category", "source", "L2-category", "comment", "split")
    same = {"category": "color", "source": "tiny", "L2-category": "attribute", "comment": "nan", "split": "dev"}
    color = {"question": "Which color?", "hint": "nan", "image": picture("red"), **same}
    rows = [
        {"index": 1, "answer": "A", "A": "red", "B": "green", "C": "blue", "D": "nan", **color},
        {"index": 2, "answer": "B", "A": "red", "B": "green", "C": "nan", "D": "nan", **color}
        | {"hint": "Look closely.", "image": picture("green")},
        {"index": 3, "answer": "A", "A": "one", "B": "two", "C": "three", "D": "four", **color}
        | {"question": "How many?"},
        {"index": 1_000_001, "answer": "B", "A": "green", "B": "red", "C": "blue", "D": "nan", **color},
    ]
    features = {"index": INT, "image": IMAGE} | dict.fromkeys(texts, TEXT)
    write_set(hub / "lmms-lab-encoder/MMBench", {("en", "dev"): rows}, features)


def write_mme(hub: Path) -> None:
    """A pair of questions, yes and no, in each category of perception and in one of cognition."""
    rows = []
    for category in (*PERCEPTION, COGNITION):
        for question, answer in (("Is it red?", "Yes"), ("Is it blue?", "No")):
            asked = {"question": f"{question} Please answer yes or no.", "answer": answer, "category": category}
            rows.append({"question_id": f"{category}/a.png", "image": picture("red")} | asked)
    features = dict.fromkeys(("question_id", "question", "answer", "category"), TEXT) | {"image": IMAGE}
    write_set(hub / "lmms-lab-encoder/MME", {("default", "test"): rows}, features)


def write_pope(hub: Path) -> None:
    """Yes and no in each of three categories, which are also splits of the configuration `Full`."""
    splits = {
        category: [
            {"id": f"{number}", "question_id": f"{number}", "question": f"Is there a {thing} in the image?"}
            | {"answer": answer, "image_source": "red", "image": picture("red"), "category": category}
            for number, (thing, answer) in enumerate((("dog", "no"), ("ball", "yes"), ("cat", "no")), start)
        ]
        for start, category in ((0, "random"), (3, "popular"), (6, "adversarial"))
    }
    tables = {("default", "test"): [row for rows in splits.values() for row in rows]}
    tables |= {("Full", split): rows for split, rows in splits.items()}
    texts = ("id", "question_id", "question", "answer", "image_source", "category")
    write_set(hub / "lmms-lab-encoder/POPE", tables, dict.fromkeys(texts, TEXT) | {"image": IMAGE})


def change_rows(hub: Path, data_set: str, change: Callable[[Rows], Rows]) -> None:
    """Change the rows of a data set's first table."""
    file = next((hub / "lmms-lab-encoder" / data_set).rglob("*.parquet"))
    table = pq.read_table(file)
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), schema=table.schema), file)


def change_pope_image(hub: Path, row: int, change: Callable[[bytes], bytes]) -> None:
    """Change the PNG file of one of POPE's rows."""
    file = hub / "lmms-lab-encoder/POPE/default/test-00000-of-00001.parquet"
    table = pq.read_table(file)
    field = table.schema.field("image")
    cells = table.column("image").to_pylist()
    cells[row]["bytes"] = change(cells[row]["bytes"])
    pq.write_table(table.set_column(table.schema.get_field_index("image"), field, pa.array(cells, field.type)), file)


def write_vqav2(hub: Path) -> None:
    """Answers in the validation split only: ten times the same word, and a word that six of ten gave."""
    given = [["red"] * 10, ["two"] * 6 + ["three"] * 3 + ["4"]]
    tables = {}
    for split, number in (("validation", 0), ("testdev", 10), ("test", 20)):
        rows = []
        for row, (question, words) in enumerate(zip(("What color?", "How many?"), given, strict=True), number):
            marked = [{"answer": word, "answer_confidence": "yes", "answer_id": i} for i, word in enumerate(words, 1)]
            known = split == "validation"
            rows.append(
                {"question_type": "what", "question": question, "multiple_choice_answer": words[0] if known else None}
                | {"answers": marked if known else None, "image_id": 100 + row, "answer_type": "other"}
                | {"question_id": 1000 + row, "image": picture("red")}
            )
        tables["default", split] = rows
    features = dict.fromkeys(("question_type", "question", "multiple_choice_answer", "answer_type"), TEXT)
    features |= {"answers": [{"answer": TEXT, "answer_confidence": TEXT, "answer_id": INT}]}
    write_set(hub / "lmms-lab-encoder/VQAv2", tables, features | {"image_id": INT, "question_id": INT, "image": IMAGE})


def write_seed(hub: Path) -> None:
    """Two questions on an image and one on the frames of a clip, given as several images in a row."""
    named = dict(zip(CHOICES, ("red", "green", "blue", "grey"), strict=True))
    rows = [
        {"data_type": kind, "question": question, "answer": answer, "question_id": question_id, **named}
        | {"question_type_id": 1, "image": [picture(color) for color in colors], "data_id": question_id, "segment": []}
        for question_id, kind, question, answer, colors in (
            ("101", "image", "Which color is it?", "A", ["red"]),
            ("102", "image", "Which color is the ball?", "B", ["green"]),
            ("103", "video", "Which color comes last?", "C", ["red", "green", "blue"]),
        )
    ]
    features = dict.fromkeys(("data_type", "question", "answer", "question_id", "data_id", *CHOICES), TEXT)
    features |= {"question_type_id": INT, "image": [IMAGE], "segment": [INT]}
    write_set(hub / "lmms-lab-encoder/SEED-Bench", {("default", "test"): rows}, features)


def write_science_qa(hub: Path) -> None:
    """With and without an image, with and without a hint, two and three choices."""
    rows = [
        {"image": picture("red"), "question": "Which is warm?", "choices": ["red", "blue"], "answer": 0, "hint": ""},
        {"image": picture("green"), "question": "Which is it?", "choices": ["red", "green", "blue"], "answer": 1}
        | {"hint": "Grass has it."},
        {"image": None, "question": "What is 1 + 1?", "choices": ["1", "2"], "answer": 1, "hint": ""},
    ]
    features = {"image": IMAGE, "question": TEXT, "choices": [TEXT], "answer": INT, "hint": TEXT}
    write_set(hub / "lmms-lab-encoder/ScienceQA", {("ScienceQA-IMG", "test"): rows}, features)


def write_activitynet_qa(hub: Path, home: Path) -> None:
    rows = [
        {"video_name": "one", "question_id": "v_one_1", "question": "is the screen red", "answer": "yes", "type": "3"},
        {"video_name": "two", "question_id": "v_two_1", "question": "what color is it", "answer": "green", "type": "4"},
    ]
    write_clip(home / "activitynetqa/all_test/v_one.mp4", "red")
    write_clip(home / "activitynetqa/all_test/v_two.mkv", "green")
    write_set(hub / "lmms-eval/ActivityNetQA", {("default", "test"): rows}, dict.fromkeys(rows[0], TEXT))


def write_video_chatgpt(hub: Path, home: Path) -> None:
    """Consistency asks twice about a clip; the question that a row does not ask is the word `None`."""
    clips = {"one": "It turns green.", "two": "It turns blue."}
    asked = [{"video_name": clip, "question": "What happens?", "answer": answer} for clip, answer in clips.items()]
    twice = [
        {"video_name": clip, "question_1": first, "question_2": second, "answer": answer}
        for clip, answer in clips.items()
        for first, second in (("What happens?", "None"), ("None", "What changes?"))
    ]
    write_clip(home / "videochatgpt/Test_Videos/one.mp4", "red", "green")
    write_clip(home / "videochatgpt/Test_Videos/two.mp4", "red", "blue")
    tables = {("Generic", "test"): asked, ("Temporal", "test"): asked, ("Consistency", "test"): twice}
    write_set(hub / "lmms-eval/VideoChatGPT", tables, dict.fromkeys([*asked[0], *twice[0]], TEXT))


def write_video_qa(hub: Path, name: str, clip_name: str) -> None:
    """Made by the command, from annotations in the public layout."""
    source = hub.parent / f"{hub.name}_{name}"
    for number, color in ((1, "red"), (2, "green")):
        write_clip(source / f"videos/{clip_name.format(number)}.mp4", color)
    asked = [
        {"id": 7, "video_id": 1, "question": "what is the color of the screen?", "answer": "red"},
        {"id": 8, "video_id": 1, "question": "what does the screen show?", "answer": "color"},
        {"id": 9, "video_id": 2, "question": "what is the color of the screen?", "answer": "green"},
    ]
    annotations = source / "test_qa.json"
    annotations.write_text(json.dumps(asked))
    prepare_video_qa(DataPrepareSettings(hub.parent, hub, name, annotations=annotations, videos=source / "videos"))


BUILDERS: dict[str, Callable[[Path], None]] = {
    "GQA": write_gqa,
    "MMBench": write_mmbench,
    "MME": write_mme,
    "POPE": write_pope,
    "VQAv2": write_vqav2,
    "SEED-Bench": write_seed,
    "ScienceQA": write_science_qa,
    "MSVD-QA": partial(write_video_qa, name="msvd_qa", clip_name="vid{}"),
    "MSRVTT-QA": partial(write_video_qa, name="msrvtt_qa", clip_name="video{}"),
}
HOME_BUILDERS: dict[str, Callable[[Path, Path], None]] = {
    "ActivityNetQA": write_activitynet_qa,
    "VideoChatGPT": write_video_chatgpt,
}
"""These two keep their clips below HF_HOME."""


def write_hub(hub: Path, home: Path) -> None:
    """All of it: the data sets in `hub`, the working directory of lmms-eval, and clips in `home`, its HF_HOME."""
    for build in BUILDERS.values():
        build(hub)
    for build_with_home in HOME_BUILDERS.values():
        build_with_home(hub, home)
