"""Images and clips are read the same wherever their bytes lie."""

import hashlib
import io
import os
from dataclasses import dataclass
from typing import BinaryIO

import av
import numpy as np
import pytest
from PIL import Image

from voco_llama.data.media.images import load_image
from voco_llama.data.media.stored import StoredFile, content_key
from voco_llama.data.media.video import read_frames
from voco_llama.errors import DataError


@dataclass(frozen=True)
class Held(StoredFile):
    data: bytes
    name: str = "held"

    def open(self) -> BinaryIO:
        return io.BytesIO(self.data)

    def __str__(self) -> str:
        return f"table row 3 {self.name}"


def test_a_stored_image_is_read_as_a_file_is(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    stored = load_image(Held((tmp_path / "a.jpg").read_bytes()))
    np.testing.assert_array_equal(np.array(stored), np.array(load_image(tmp_path / "a.jpg")))


def test_a_stored_clip_is_read_as_a_file_is(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for brightness in range(0, 200, 20):
            frame = av.VideoFrame.from_image(Image.new("RGB", (32, 32), (brightness,) * 3))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    frames = read_frames(Held((tmp_path / "a.mp4").read_bytes()), 4)
    expected = read_frames(tmp_path / "a.mp4", 4)
    assert len({frame.tobytes() for frame in frames}) == 4
    for frame, other in zip(frames, expected, strict=True):
        np.testing.assert_array_equal(np.array(frame), np.array(other))


@pytest.mark.parametrize("read", [load_image, lambda file: read_frames(file, 2)])
def test_messages_name_where_it_is_stored(read):
    with pytest.raises(DataError, match="table row 3 held"):
        read(Held(b"nothing of the kind"))


def test_the_key_is_of_the_content_alone(tmp_path):
    data = bytes(range(256)) * 5000  # more than a block
    for name in ("a.mp4", "b.avi"):
        (tmp_path / name).write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()
    assert content_key(tmp_path / "a.mp4") == content_key(tmp_path / "b.avi") == content_key(Held(data)) == expected
    assert content_key(tmp_path / "a.mp4", "md5") == hashlib.md5(data, usedforsecurity=False).hexdigest()
    assert content_key(Held(data + b"!")) != expected


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_key_is_remembered_until_the_file_changes(tmp_path, change):
    file = tmp_path / "a.mp4"
    file.write_bytes(b"one")
    before, state = content_key(file), file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert content_key(file) == before  # not read again: neither its size nor its time tells
    file.write_bytes(b"three" if change == "size" else b"two")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + (change == "time")))
    assert content_key(file) == hashlib.sha256(file.read_bytes()).hexdigest()
