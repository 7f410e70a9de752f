"""Pictures stand upright, whatever way they come in: as `datasets`, which decodes those of benchmarks, turns them."""

import io
import json
import zipfile

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.media.test_image_kinds import Stored, encoded, photograph
from tests.data.tables import LLAVA_TYPES, turns, written
from tests.tiny import tiny_processor
from voco_llama.data.media.images import load_image, to_rgb
from voco_llama.data.readers.hf_dataset import HfDataset, ParquetStream
from voco_llama.data.readers.llava_json import LlavaJson
from voco_llama.errors import DataError

ORIENTATION = 0x0112
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}
"""EXIF 2.3, 4.6.4: where the first row and the first column of what is stored belong."""


def turned(kind: str, orientation: object, **options) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encoded(photograph(), kind, exif=exif, **options)


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(("kind", "options"), [("JPEG", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})])
def test_every_orientation_of_every_format(kind, options, orientation):
    data = turned(kind, orientation, **options)
    shown = np.array(load_image(Stored(data)))
    np.testing.assert_array_equal(
        shown, UPRIGHT[orientation](np.array(load_image(Stored(encoded(photograph(), kind, **options)))))
    )
    theirs = datasets.Image().decode_example({"bytes": data, "path": None})
    np.testing.assert_array_equal(shown, theirs.convert("RGB"))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # Pillow's, when the test itself opens the image
@pytest.mark.parametrize(
    "exif", [b"no tiff header", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 30]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_broken_metadata_say_nothing(kind, exif):
    plain = np.array(load_image(Stored(encoded(photograph(), kind))))
    data = encoded(photograph(), kind) if kind == "TIFF" else encoded(photograph(), kind, exif=b"Exif\0\0" + exif)
    np.testing.assert_array_equal(load_image(Stored(data)), plain)
    opened = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(to_rgb(opened), plain)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_there_is_not(orientation):
    np.testing.assert_array_equal(load_image(Stored(turned("PNG", orientation))), photograph())


def test_every_way_in_gives_the_same_pixels(tmp_path, arrow_cache):
    """A file, an archive, tables read by map and in a stream, a folder of `save_to_disk`, and an image that is open."""
    data = turned("JPEG", 6, quality=95)
    conversation = turns("<image>\nWhat?", "So.")
    (tmp_path / "a.jpg").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "media.zip", "w") as archive:
        archive.writestr("a.jpg", data)
    (tmp_path / "chat.json").write_text(json.dumps([{"id": "0", "image": "a.jpg", "conversations": conversation}]))
    columns = {"id": ["0"], "image": [{"bytes": data, "path": "a.jpg"}], "conversations": [conversation]}
    table = written(tmp_path / "table", columns, LLAVA_TYPES)
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    readers = {
        "file": LlavaJson(tmp_path / "chat.json", tmp_path),
        "archive": LlavaJson(tmp_path / "chat.json", tmp_path / "media.zip"),
        "table": HfDataset(table),
        "stream": ParquetStream(table),
        "save_to_disk": HfDataset(tmp_path / "saved"),
    }
    processor = tiny_processor()
    expected = processor.pixels([Image.fromarray(UPRIGHT[6](np.array(Image.open(io.BytesIO(data)))))])
    for name, reader in readers.items():
        assert torch.equal(processor.row(reader[0])["pixel_values"], expected), name
    opened = Image.open(tmp_path / "a.jpg")
    assert torch.equal(processor.pixels([opened]), expected)
    assert torch.equal(processor.pixels([opened.convert("RGB")]), expected)  # which keeps the note of the orientation
    assert torch.equal(processor("<image>?", images=opened)["pixel_values"], expected)
    assert torch.equal(processor.pixels([to_rgb(opened)]), expected)  # not turned twice
    benchmark = datasets.Image().decode_example({"bytes": data, "path": None})
    assert torch.equal(processor.pixels([benchmark]), expected)
    assert opened.getexif()[ORIENTATION] == 6
    assert opened.size == (200, 120)


# ---- modes of images that a caller has


def in_mode(mode: str) -> Image.Image:
    rgba = photograph().convert("RGBA")
    rgba.putalpha(photograph().convert("L"))
    if mode.startswith("I;16"):
        deep = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (120, 200), dtype=np.uint16))
        return Image.frombytes(
            mode, deep.size, np.asarray(deep).astype(">u2" if mode.endswith("B") else "<u2").tobytes()
        )
    if mode == "P":
        palette = photograph().quantize(16)
        palette.info["transparency"] = 3
        return palette
    through = {"La": "LA", "RGBa": "RGBA", "PA": "P", "LA": "RGBA", "RGBA": "RGBA"}.get(mode, "RGB")
    return (rgba if through in ("LA", "RGBA") else photograph()).convert(through).convert(mode)


SAVED = {"1": "PNG", "L": "PNG", "LA": "PNG", "P": "PNG", "RGB": "PNG", "RGBA": "PNG", "I;16": "PNG", "CMYK": "TIFF"}
SAVED |= {"YCbCr": "TIFF", "LAB": "TIFF", "I;16B": "TIFF"}
"""Modes that a file may have, without loss."""


@pytest.mark.parametrize("square", [False, True], ids=["oblong", "square"])
@pytest.mark.parametrize("mode", [*SAVED, "La", "PA", "RGBa", "RGBX", "HSV", "I;16L"])
def test_pixels_of_an_image_of_any_mode(mode, square, tmp_path):
    """What `load_image` gives of the same image in a file."""
    image = in_mode(mode)
    image = image.crop((0, 0, 120, 120)) if square else image
    assert image.mode == mode
    before = image.tobytes()
    pixels = tiny_processor().pixels([image, photograph()])
    assert pixels.shape == (2, 3, 16, 16)
    assert (image.mode, image.tobytes()) == (mode, before)
    if mode in SAVED:
        image.save(tmp_path / "a", SAVED[mode])
        assert torch.equal(pixels[:1], tiny_processor().pixels([load_image(tmp_path / "a")]))
    plain = {"La": "LA"}.get(mode, mode)
    if not mode.startswith("I;16"):
        assert torch.equal(pixels[:1], tiny_processor().pixels([image.convert(plain).convert("RGB")]))


@pytest.mark.parametrize("image", [Image.new("I", (4, 4)), Image.new("F", (4, 4)), np.zeros((4, 4, 3)), None, "a.png"])
def test_what_is_no_picture_is_refused(image):
    with pytest.raises(
        DataError, match="image: (grey values of 32 bits|a [a-zA-Z]+ is no image; give a PIL.Image.Image)"
    ):
        tiny_processor().pixels([image])
