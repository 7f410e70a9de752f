"""Small benchmark files in the schemas lmms-eval reads, written with pyarrow alone, and requests made by hand."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from voco_llama.evaluation.benchmarks import Request

COLORS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200)}


def picture(color: str, size: int = 16) -> dict:
    """An image as the hub's parquet files hold it."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), COLORS[color]).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": f"{color}.png"}


def write_set(folder: Path, tables: dict[tuple[str, str], list[dict]]) -> None:
    """A data set folder: a card, and one parquet file for each (configuration, split)."""
    head = ["---", "configs:"]
    for (config, split), rows in tables.items():
        file = folder / config / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), file)
        head += [f"- config_name: {config}", "  data_files:", f"  - split: {split}"]
        head += [f"    path: {config}/{split}-*.parquet"]
    (folder / "README.md").write_text("\n".join([*head, "---", ""]))


def write_benchmarks(root: Path) -> None:
    """Two questions a benchmark (MMBench three), on a red and a green image."""
    folder = root / "lmms-lab-encoder"
    red, green = picture("red"), picture("green")
    write_set(
        folder / "GQA",
        {
            ("testdev_balanced_instructions", "testdev"): [
                {"id": "07", "imageId": "n2", "question": "What color is it?", "answer": "green"},
                {"id": "08", "imageId": "n1", "question": "Is it blue?", "answer": "no"},
            ],
            ("testdev_balanced_images", "testdev"): [{"id": "n1", "image": red}, {"id": "n2", "image": green}],
        },
    )
    option = {"A": "red", "B": "green", "C": "nan", "D": "nan", "category": "color", "L2-category": "attribute"}
    write_set(
        folder / "MMBench",
        {
            ("en", "dev"): [
                {"index": 1, "question": "Which color?", "hint": "nan", "answer": "A", "image": red, **option},
                {"index": 2, "question": "Which color?", "hint": "Look.", "answer": "B", "image": green, **option},
                {"index": 1_000_001, "question": "Which?", "hint": "nan", "answer": "A", "image": red, **option},
            ]
        },
    )
    mme = {"question_id": "a.png", "category": "color", "image": red}
    write_set(
        folder / "MME",
        {
            ("default", "test"): [
                {**mme, "question": "Is it red? Please answer yes or no.", "answer": "Yes"},
                {**mme, "question": "Is it blue? Please answer yes or no.", "answer": "No"},
            ]
        },
    )
    write_set(
        folder / "POPE",
        {
            ("default", "test"): [
                {"id": "0", "question": " Is there a dog?", "answer": "no", "category": "random", "image": red},
                {"id": "1", "question": "Is there red?", "answer": "yes", "category": "random", "image": red},
            ]
        },
    )
    ten = [{"answer": "red", "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)]
    write_set(
        folder / "VQAv2",
        {
            ("default", "validation"): [
                {"question_id": 11, "question": "What color?", "answers": ten, "image": red},
                {"question_id": 12, "question": "Which one?", "answers": ten, "image": green},
            ]
        },
    )


def request(benchmark: str, answer: str | tuple[str, ...], number: int = 0, color: str = "red", **meta) -> Request:
    """A question made by hand."""
    answers = (answer,) if isinstance(answer, str) else answer
    image = Image.new("RGB", (16, 16), COLORS[color])
    return Request(benchmark, str(number), color, lambda: image, f"Question {number}?", answers, meta)
