"""Parquet files for the tests, in row groups of two."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
TURNS = pa.list_(pa.struct({"from": pa.string(), "value": pa.string()}))
TEXTS = pa.list_(pa.struct({"user": pa.string(), "assistant": pa.string(), "source": pa.string()}))


def png(number: int, size: tuple[int, int] = (20, 14)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def stored(number: int) -> dict:
    return {"bytes": png(number), "path": f"{number}.png"}


def turns(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def written(folder: Path, columns: dict[str, list], types: dict[str, pa.DataType], name: str = "rows.parquet") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = {key: pa.array(values, types[key]) for key, values in columns.items()}
    pq.write_table(pa.table(arrays), file, row_group_size=2)
    return file


def llava_rows(number: int = 5) -> dict[str, list]:
    """Every third is text-only."""
    has_image = [i % 3 != 2 for i in range(number)]
    marks = ["<image>\n" if there else "" for there in has_image]
    return {
        "id": [f"r{i}" for i in range(number)],
        "image": [stored(i) if there else None for i, there in enumerate(has_image)],
        "conversations": [turns(f"{mark}What é{i}?", f"It is {i}.", "Why?", "So.") for i, mark in enumerate(marks)],
    }


LLAVA_TYPES = {"id": pa.string(), "image": IMAGE, "conversations": TURNS}
