"""Data a little wrong: each file is taken, or refused by one line of ours.

Seeded and bounded, about 1,800 files; what is saved of models and runs, and overrides: `test_fuzz_saved.py`.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import strategies as st
from PIL import Image

from tests.rules.fuzzing import bounded_memory, fuzz, shown
from tests.rules.mutations import bytes_of, text_of
from tests.tiny import tiny_processor
from voco_llama.data.media.images import load_image, read_image_header
from voco_llama.data.media.video import count_frames, read_frames
from voco_llama.data.readers import open_reader
from voco_llama.errors import VoCoError

__all__ = ["bounded_memory"]

pytestmark = pytest.mark.slow


# ---- records


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A small file of each format, and what it names."""
    root = tmp_path_factory.mktemp("sources")
    (root / "media").mkdir()
    Image.new("RGB", (8, 8), "red").save(root / "media" / "a.png")
    (root / "media" / "c1.mp4").write_bytes(clip("mp4"))
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "Red."}]
    records = [
        {"id": "1", "image": "a.png", "conversations": turns},
        {"id": "2", "conversations": [{**turns[0], "value": "Hi"}, turns[1]]},
    ]
    (root / "chat.json").write_text(json.dumps(records), encoding="utf-8")
    (root / "chat.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    (root / "clips.json").write_text(json.dumps([{"q": "What?", "a": "Red.", "video_id": "c1"}]), encoding="utf-8")
    (root / "captions.csv").write_text('videoid,page_dir,name\nc1,,"A red, red thing"\nc1,x,"Two\nlines"\n')
    write_parquet(root / "table.parquet", records)
    return root


def clip(form: str) -> bytes:
    """Six frames."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as container:
        stream = container.add_stream("libx264" if form == "mp4" else "gif", rate=3)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p" if form == "mp4" else "rgb8"
        for shade in range(6):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 40 * shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def write_parquet(file: Path, records: list[dict]) -> None:
    import pyarrow as pa

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    images = [{"bytes": buffer.getvalue(), "path": "a.png"}, None]
    turns = [record["conversations"] for record in records]
    pq.write_table(pa.table({"id": ["1", "2"], "image": images, "conversations": turns}), file)


def read_all(**source: Any) -> None:
    """Every record and what it names; a record that is refused does not hide the next."""
    reader = open_reader(**source)
    assert len(reader.sizes.media) == len(reader)
    refused = None
    for index in range(len(reader)):
        try:
            record = reader[index]
            for image in record.images:
                load_image(image)
            if record.video is not None:
                read_frames(record.video, 2)
        except VoCoError as error:
            refused = error
    if refused is not None:
        raise refused


@pytest.mark.parametrize(
    ("name", "format", "count"),
    [
        ("chat.json", "llava_json", 300),
        ("chat.jsonl", "llava_json", 150),
        ("clips.json", "video_chatgpt", 150),
        ("captions.csv", "caption_csv", 200),
        ("table.parquet", "hf_dataset", 60),
    ],
)
def test_records(name, format, count, sources, tmp_path, arrow_cache):
    whole = (sources / name).read_bytes()
    file = tmp_path / name

    def draw(data):
        changed = data.draw(text_of(whole, name.endswith("l")) if "json" in name else bytes_of(whole))
        file.write_bytes(changed)
        return f"{name} {shown(changed)}", lambda: read_all(format=format, file=file, media_folder=sources / "media")

    fuzz(count, draw)


def test_a_table_read_in_place(sources, tmp_path):
    from voco_llama.data.readers import STREAMS

    whole, file = (sources / "table.parquet").read_bytes(), tmp_path / "table.parquet"

    def read() -> None:
        reader = STREAMS["hf_dataset"](file, sources / "media")
        assert len(reader.sizes.media) == len(reader)
        for index in range(len(reader)):
            for image in reader[index].images:
                load_image(image)

    def draw(data):
        changed = data.draw(bytes_of(whole))
        file.unlink(missing_ok=True)
        file.write_bytes(changed)
        return f"table.parquet {shown(changed)}", read

    fuzz(150, draw)


@pytest.mark.parametrize("form", ["zip", "tar"])
def test_archives(form, sources, tmp_path):
    import shutil

    whole = Path(shutil.make_archive(str(tmp_path / "whole"), form, sources / "media")).read_bytes()
    file = tmp_path / f"media.{form}"

    def draw(data):
        changed = data.draw(bytes_of(whole, 64))
        file.write_bytes(changed)
        source = {"format": "llava_json", "file": sources / "chat.json", "media_folder": file}
        return f"media.{form} {shown(changed)}", lambda: read_all(**source)

    fuzz(80, draw)


# ---- images and clips


def pictures() -> dict[str, bytes]:
    """A small one of each format, with EXIF where the format has it."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    made = {}
    for form in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM"):
        buffer = io.BytesIO()
        noise.save(buffer, form, **({"exif": exif} if form in ("PNG", "JPEG", "WEBP", "TIFF") else {}))
        made[form] = buffer.getvalue()
    return made


@pytest.mark.parametrize("form", list(pictures()))
def test_images(form, tmp_path):
    whole, file = pictures()[form], tmp_path / f"a.{form.lower()}"

    def read() -> None:
        image = load_image(file)
        assert image.mode == "RGB"
        tiny_processor().pixels([image])

    def draw(data):
        changed = data.draw(bytes_of(whole, 120))
        file.write_bytes(changed)
        act = (lambda: read_image_header(file)) if data.draw(st.integers(0, 3)) == 0 else read
        return f"{form} {shown(changed)}", act

    fuzz(90, draw)


@pytest.mark.parametrize("form", ["mp4", "gif"])
def test_clips(form, tmp_path):
    whole, file = clip(form), tmp_path / f"a.{form}"

    def draw(data):
        changed = data.draw(bytes_of(whole, 200))
        file.write_bytes(changed)
        act = (lambda: count_frames(file)) if data.draw(st.integers(0, 3)) == 0 else (lambda: read_frames(file, 3))
        return f"{form} {shown(changed)}", act

    fuzz({"mp4": 200, "gif": 30}[form], draw)
