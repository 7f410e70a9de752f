"""What every benchmark of the synthetic world is made of: drawn images, parquet tables, a card that lists them."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from voco_llama.toyworld.scenes import Scene, draw
from voco_llama.toyworld.settings import ToyWorldSettings
from voco_llama.toyworld.writers import pixels_rng

Row = dict[str, Any]
IMAGE = {"_type": "Image"}
TEXT = {"dtype": "string", "_type": "Value"}
INT = {"dtype": "int64", "_type": "Value"}
FLAG = {"dtype": "bool", "_type": "Value"}


@dataclass(frozen=True)
class Images:
    """A benchmark's scenes and their drawn images."""

    scenes: Sequence[Scene]
    encoded: tuple[bytes, ...]

    def cell(self, index: int, name: str) -> dict[str, Any]:
        """An image as a parquet cell: its bytes and its file name."""
        return {"bytes": self.encoded[index], "path": name}


def draw_all(scenes: Sequence[Scene], name: str, settings: ToyWorldSettings) -> Images:
    """Draws the scenes of the benchmark `name`."""
    rng = pixels_rng(settings, f"benchmark {name}")
    encoded = []
    for scene in scenes:
        buffer = io.BytesIO()
        draw(scene, settings, rng).save(buffer, "PNG", compress_level=1)
        encoded.append(buffer.getvalue())
    return Images(scenes, tuple(encoded))


def write_table(file: Path, rows: list[Row], features: dict[str, Any]) -> None:
    """Writes rows as parquet that `datasets` reads back with these features, images as image columns."""
    from datasets import Features

    schema = Features.from_dict(features).arrow_schema
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)


def write_card(folder: Path, configs: dict[str, dict[str, str]]) -> None:
    """Writes the README: config -> split -> parquet file."""
    listed = [
        {"config_name": config, "data_files": [{"split": split, "path": path} for split, path in splits.items()]}
        for config, splits in configs.items()
    ]
    head = yaml.safe_dump({"configs": listed}, sort_keys=False)
    body = f"# {folder.name}, toy edition\n\nSynthetic scenes in the column schema of {folder.name}.\n"
    (folder / "README.md").write_text(f"---\n{head}---\n\n{body}", encoding="utf-8")
