import dataclasses
import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from voco_llama.data.media.images import (
    MAX_IMAGE_PIXELS,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    ImageHeader,
    ImageTransform,
    expand_to_square,
    format_in_name,
    load_image,
    read_image_header,
)
from voco_llama.data.media.stored import StoredFile
from voco_llama.errors import DataError, SettingsError


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values[..., 0] if channels == 1 else values)


def png_header_only(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels worth mentioning."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def error_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_image(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# ---- files


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "gif", "bmp", "tiff", "ppm"])
def test_every_format_is_read(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    noise(20, 10).save(path)
    image = load_image(path)
    assert (image.mode, image.size) == ("RGB", (20, 10))
    path.unlink()
    image.load()


def test_modes_are_converted_plainly(tmp_path):
    rgba = noise(6, 4, 4)
    rgba.save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(load_image(tmp_path / "alpha.png"), np.array(rgba)[..., :3])

    grey = noise(6, 4, 1)
    grey.save(tmp_path / "grey.png")
    np.testing.assert_array_equal(load_image(tmp_path / "grey.png"), np.array(grey)[..., None].repeat(3, axis=2))

    palette = noise(6, 4).quantize(8)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(load_image(tmp_path / "palette.png"), palette.convert("RGB"))

    noise(6, 4, 4).convert("RGB").convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert load_image(tmp_path / "cmyk.jpg").mode == "RGB"


def test_missing(tmp_path):
    assert "no such file" in error_of(tmp_path / "none.jpg")
    assert "no such file" in error_of(tmp_path)
    assert "no such file" in error_of(tmp_path / ("x" * 300))  # longer than a name may be


def test_not_an_image(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"<html>404</html>")
    assert "not an image that can be read" in error_of(tmp_path / "a.jpg")
    (tmp_path / "empty.jpg").touch()
    assert "not an image that can be read" in error_of(tmp_path / "empty.jpg")


def test_postscript_is_not_run(tmp_path):
    noise(4, 4).save(tmp_path / "a.eps")
    assert "not an image that can be read" in error_of(tmp_path / "a.eps")


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "gif", "bmp"])
def test_truncated(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    noise(64, 64).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert "corrupt or truncated" in error_of(path)


def test_corrupt(tmp_path):
    path = tmp_path / "a.png"
    noise(64, 64).save(path)
    data = bytearray(path.read_bytes())
    data[200:260] = bytes(60)
    path.write_bytes(data)
    assert "corrupt or truncated" in error_of(path)


def test_bomb_is_refused_from_its_header(tmp_path):
    side = int(MAX_IMAGE_PIXELS**0.5)
    for name, size in {"above ours": (side + 1, side), "Pillow warns": (10_000, 10_000)}.items():
        (tmp_path / "bomb.png").write_bytes(png_header_only(*size))
        message = error_of(tmp_path / "bomb.png")
        assert "too large to decode" in message, name
        assert f"{size[0]} x {size[1]}" in message
    (tmp_path / "bomb.png").write_bytes(png_header_only(60_000, 60_000))
    assert "too large to decode" in error_of(tmp_path / "bomb.png")  # Pillow's own error


def test_a_thin_image_counts_as_the_square_it_becomes(tmp_path):
    (tmp_path / "thin.png").write_bytes(png_header_only(60_000, 2))
    assert "too large to decode (60000 x 2; at most 8192 pixels on a side)" in error_of(tmp_path / "thin.png")


# ---- headers


class Bytes(StoredFile):
    def __init__(self, data: bytes) -> None:
        self.data = data

    name = "a.png"

    def open(self) -> io.BytesIO:
        return io.BytesIO(self.data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_format_and_size(tmp_path, kind):
    Image.new("RGB", (30, 20)).save(tmp_path / "a", format=kind)
    header = ImageHeader(kind, 30, 20)
    assert read_image_header(tmp_path / "a") == header
    assert read_image_header(Bytes((tmp_path / "a").read_bytes())) == header


def test_pictures_of_a_phone_are_jpegs(tmp_path):
    pictures = [Image.new("RGB", (8, 6), color) for color in ("red", "blue")]
    pictures[0].save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=pictures[1:])
    assert read_image_header(tmp_path / "a.jpg") == ImageHeader("JPEG", 8, 6)


def test_no_pixel_is_decoded(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-1000])
    assert read_image_header(tmp_path / "a.jpg") == ImageHeader("JPEG", 64, 64)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an image that can be read"),
        (b"<html>404</html>", "not an image that can be read"),
        (b"P6 9000 100 255\n", "too large to decode (9000 x 100; at most 8192 pixels on a side)"),
        (b"P6 90000 90000 255\n", "too large to decode (Image size (8100000000 pixels) exceeds limit"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image that can be read"),
        (None, "no such file; fetch it"),
    ],
)
def test_what_cannot_be_read(tmp_path, data, message):
    if data is not None:
        (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_image_header(tmp_path / "a.jpg")
    assert str(caught.value).startswith(f"image {tmp_path / 'a.jpg'}: {message}")
    assert "\n" not in str(caught.value)
    assert caught.value.kind == ("missing_file" if data is None else "undecodable")


def test_what_a_name_says():
    names = ["a.jpg", "b/a.JPEG", "a.png", "a.gif", "a.webp", "a", "a.txt"]
    assert [format_in_name(name) for name in names] == ["JPEG", "JPEG", "PNG", "GIF", "WEBP", None, None]


# ---- transform


def reference_transform(image: Image.Image, size: int) -> np.ndarray:
    """LLaVA's steps again, in NumPy and float64; only the bicubic resize is Pillow's."""
    pixels = np.array(image)
    height, width = pixels.shape[:2]
    side = max(height, width)
    square = np.empty((side, side, 3), dtype=np.uint8)
    square[:] = [122, 116, 104]  # int(255 * mean)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    resized = np.array(Image.fromarray(square).resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)
    return ((resized / 255 - np.array(OPENAI_CLIP_MEAN)) / np.array(OPENAI_CLIP_STD)).transpose(2, 0, 1)


@pytest.mark.parametrize("size", [(50, 31), (31, 50), (40, 40), (9, 100), (1, 2)])
def test_transform_equals_the_reference(size):
    image = noise(*size)
    before = image.tobytes()
    pixels = ImageTransform(24)(image)
    assert pixels.shape == (3, 24, 24)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    np.testing.assert_allclose(pixels.numpy(), reference_transform(image, 24), atol=2e-6)
    assert image.tobytes() == before


def test_odd_padding_goes_after():
    square = np.array(expand_to_square(Image.new("RGB", (4, 1), (9, 9, 9)), (1, 2, 3)))
    assert [row.tolist() for row in square[:, 0]] == [[1, 2, 3], [9, 9, 9], [1, 2, 3], [1, 2, 3]]


def test_transform_round_trip():
    transform = ImageTransform(28, (0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    assert ImageTransform(**transform.to_dict()) == transform
    assert transform.to_dict() == {"image_size": 28, "mean": [0.5, 0.5, 0.5], "std": [0.1, 0.2, 0.3]}
    assert pickle.loads(pickle.dumps(transform)) == transform
    with pytest.raises(dataclasses.FrozenInstanceError):
        transform.image_size = 3


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"image_size": 0}, "image_size must be a whole number of at least 1"),
        ({"mean": [0.5]}, "mean needs three values"),
        ({"mean": [127, 127, 127]}, "mean must lie in"),
        ({"std": [0, 1, 1]}, "std above 0"),
    ],
)
def test_bad_settings(values, text):
    with pytest.raises(SettingsError, match=text):
        ImageTransform(**values)
